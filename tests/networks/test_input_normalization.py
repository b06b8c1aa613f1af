import pytest
import torch

from scripts.networks import InputNormalization

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def test_subtracts_each_channel_s_mean_and_divides_by_its_deviation():
    image = torch.rand(2, 3, 4, 5)
    normalized = InputNormalization(MEAN, STD)(image)
    for channel in range(3):
        expected = (image[:, channel].double() - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(normalized[:, channel].double(), expected, rtol=1e-5, atol=1e-6)


def test_constants_are_neither_trained_nor_saved():
    layer = InputNormalization(MEAN, STD)
    assert not list(layer.parameters()) and not layer.state_dict()


def test_constants_follow_the_network_s_type():
    layer = InputNormalization([0.5], [0.25]).double()
    image = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert layer(image).dtype == torch.float64 and layer(image).item() == 2


@pytest.mark.parametrize(("mean", "std"), [([0.5, 0.5], [0.5]), ([0.5, 0.5], [0.5, 0.0]), ([0.5, 0.5], [0.5, -0.1])])
def test_refuses_unequal_lengths_and_deviations_that_are_not_positive(mean, std):
    with pytest.raises(ValueError, match="`std` must be positive, got"):
        InputNormalization(mean, std)
