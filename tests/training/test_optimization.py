import pytest
import torch
from torch import nn

from scripts.training.optimization import freeze, parameter_groups


class TinyClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.squeeze = nn.Linear(4, 2, bias=False)
        self.deep_head = nn.Conv2d(4, 3, 1)
        self.deep_head2 = nn.Conv2d(4, 3, 1, bias=False)


def settings(network, groups):
    """(lr, weight decay) of each parameter, by name."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_weights_biases_and_heads_have_their_rates():
    network = TinyClassifier()
    network.norm.requires_grad_(False)
    groups = parameter_groups(network, lr=0.01, weight_decay=5e-4, part_multipliers={"deep_head": 10})
    assert settings(network, groups) == {
        "stem.weight": (0.01, 5e-4),
        "stem.bias": (0.02, 0.0),
        "squeeze.weight": (0.01, 5e-4),
        "deep_head.weight": (pytest.approx(0.1), 5e-4),
        "deep_head.bias": (pytest.approx(0.2), 0.0),
        "deep_head2.weight": (0.01, 5e-4),
    }


def test_each_trainable_parameter_is_in_one_group():
    network = TinyClassifier()
    network.stem.weight.requires_grad_(False)
    groups = parameter_groups(network, 0.1, 0.1, part_multipliers={"squeeze": 3})
    found = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = [id(parameter) for parameter in network.parameters() if parameter.requires_grad]
    assert sorted(found) == sorted(trainable)


def test_trainable_batch_norms_count_as_biases():
    network = TinyClassifier()
    found = settings(network, parameter_groups(network, lr=0.1, weight_decay=0.5, bias_multiplier=3))
    assert found["norm.weight"] == found["norm.bias"] == (pytest.approx(0.3), 0.0)


def test_a_step_moves_each_group_at_its_rate():
    network = nn.Sequential()
    network.add_module("body", nn.Linear(1, 1))
    network.add_module("head", nn.Linear(1, 1, bias=False))
    for parameter in network.parameters():
        parameter.data.fill_(1)
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(parameter_groups(network, 0.01, 0.5, 2, {"head": 10}), lr=99).step()
    # w - lr * (gradient + decay * w)
    assert network.body.weight.item() == pytest.approx(1 - 0.01 * 1.5)
    assert network.body.bias.item() == pytest.approx(1 - 0.02)
    assert network.head.weight.item() == pytest.approx(1 - 0.1 * 1.5)


@pytest.mark.parametrize("part", ["deep", "missing", "norm", "deep_head.weight"])
def test_refuses_parts_without_a_trainable_parameter(part):
    network = TinyClassifier()
    network.norm.requires_grad_(False)
    with pytest.raises(ValueError, match=rf"`part_multipliers` must name .* got \['{part}'\], which have none; remove"):
        parameter_groups(network, 0.1, 0.1, part_multipliers={part: 2, "squeeze": 2})


def test_a_frozen_part_stays_as_it_is_while_the_rest_learns():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    network = nn.Sequential(block, nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    assert freeze(network, ["0"]) is network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.1)
    image = torch.rand(2, 3, 6, 6)
    for _ in range(2):
        network.train()  # as a trainer does before every step
        network(image).square().sum().backward()
        optimizer.step()
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    learning = {"1.weight", "1.bias", "2.weight", "2.bias", "2.running_mean", "2.running_var", "2.num_batches_tracked"}
    assert changed <= learning and {"1.weight", "2.bias", "2.num_batches_tracked"} <= changed
    torch.testing.assert_close(block(image), block(image), rtol=0, atol=0)  # no dropout


def test_nothing_is_frozen_unless_named():
    network = freeze(TinyClassifier(), [])
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_fixed_statistics_of_batch_norms_whose_weights_train():
    network = freeze(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout()), [], statistics=True).train()
    norm = network[1]
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    network(torch.randn(2, 3, 5, 5) * 7 + 3).square().sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())
    assert norm.weight.grad.abs().sum() > 0 and network[2].training
    free = freeze(nn.Sequential(nn.BatchNorm2d(3)), []).train()
    free(torch.randn(2, 3, 5, 5))
    assert free[0].num_batches_tracked == 1


def test_refuses_to_freeze_what_is_not_there():
    with pytest.raises(ValueError, match="`parts` must name submodules of TinyClassifier, got 'encoder'"):
        freeze(TinyClassifier(), ["encoder"])
