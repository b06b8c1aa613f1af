import pytest

from scripts.errors import BundleError
from scripts.runs.components import find_target, require_components

OWN = [{"loss": {"_target_": "not.looked.up", "weight": 1}}]


@pytest.mark.parametrize(
    ("component", "sentence"),
    [
        (
            {"_target_": "torch.optim.AdamV"},
            r"`a#b#_target_` must name .* got 'torch.optim.AdamV'; did you mean 'torch.optim.Ada",
        ),
        ({"_target_": "torhc.optim.Adam"}, "got 'torhc.optim.Adam'; check the spelling, or install"),
        ({"_target_": "SupervisedTrianer"}, "did you mean 'SupervisedTrainer'?"),
        ({"_target_": "scripts.losses.boundary_regularised.X"}, "did you mean 'scripts.losses.boundary_regularized'?"),
        (
            {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1, "kernel_sise": 3},
            "`a#b` must have only parameters of torch.nn.Conv2d, got 'kernel_sise'; did you mean 'kernel_size'",
        ),
        (
            {"_target_": "torch.nn.Conv2d", "in_channels": 1, "kernel_size": 3},
            "`a#b` must have the parameter 'out_channels' of torch.nn.Conv2d; it takes in_channels, out_channels, ker",
        ),
        ({"_target_": "scripts.losses.AdaptiveNoiseAwareLoss", "gama": 1}, "did you mean 'gamma'"),
    ],
)
def test_components_that_cannot_be_built_are_refused_by_name(component, sentence):
    with pytest.raises(BundleError, match=sentence):
        require_components({"a": {"b": component}}, OWN)


@pytest.mark.parametrize(
    "component",
    [
        {"_target_": "torch.nn.Conv2d", "_mode_": "callable", "kernel_size": 3},  # the rest comes later
        {"_target_": "torch.nn.Conv2d", "_disabled_": True},
        {"_target_": "Compose", "transforms": [], "_desc_": "MONAI's own, by name"},
        {"_target_": "builtins.dict", "anything": 1},
        {"_target_": "$torch.nn.Conv2d"},
        {"_target_": "not.looked.up", "weight": 2},  # as in our own config
    ],
)
def test_others_pass(component):
    require_components({"list": [component]}, OWN)


def test_targets_are_found_by_path_and_by_monai_s_names():
    import torch
    from monai.transforms import Compose

    assert find_target("torch.nn.Conv2d") is torch.nn.Conv2d and find_target("Compose") is Compose
    assert find_target("torch.nn.Nothing") is None and find_target("Nothing") is None
