"""What the pretend device must do: each is a test in ``test_pretend_device.py``, and works in the device's process."""

import copy
import io

import numpy as np
import pytest
import torch
from pretend_device import waits
from pretend_tensor import OnDevice
from torch.nn import functional as F

DEVICE = "pretend:0"  # no torch.device: pytest's process imports this too, and has none


def operations(action):
    """What ``action`` waits for."""
    with waits() as found:
        action()
    return [wait.operation for wait in found]


def check_tensors_of_two_devices_are_refused():
    ours, other = torch.rand(2, 3, device=DEVICE), torch.rand(2, 3)
    refused = [
        lambda: ours + other,
        lambda: ours.mul_(other),
        lambda: other.mul_(ours),
        lambda: other * ours.sum(),
        lambda: ours @ other.T,
        lambda: torch.cat([ours, other]),
        lambda: torch.stack([ours.sum(), other.sum()]),
        lambda: torch.where(ours > 0, other, ours),
        lambda: torch.add(ours, ours, out=torch.empty(2, 3)),
        lambda: other.sum().add_(ours.sum()),
        lambda: F.conv2d(ours[None, None], other[None, None]),
        lambda: torch.nn.Linear(3, 2)(ours),
        lambda: ours.gather(0, torch.zeros(1, 3, dtype=torch.int64)),
        lambda: ours.index_put_((torch.tensor([0]),), torch.rand(1, 3)),
        lambda: ours + torch.from_numpy(np.ones((2, 3), np.float32)),
    ]
    for action in refused:
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            action()
    with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same device"):
        other[torch.zeros(1, dtype=torch.int64, device=DEVICE)]


def check_scalars_of_the_cpu_are_taken_where_a_gpu_takes_them():
    ours, two = torch.tensor([1.0, 3.0], device=DEVICE), torch.tensor(2.0)
    for result, expected in ((ours * two, [2, 6]), (two - ours, [1, -1]), (ours.clamp(min=two), [2, 3])):
        assert str(result.device) == DEVICE and result.tolist() == expected
    assert torch.where(ours > two, ours, two).tolist() == [2, 3]
    assert ours.masked_fill(ours > two, two).tolist() == [1, 2]


def check_arrays_are_refused():
    ours = torch.rand(3, device=DEVICE)
    for action in (ours.numpy, lambda: np.asarray(ours), lambda: np.array(ours), lambda: np.stack([ours, ours])):
        with pytest.raises(TypeError, match="Use Tensor.cpu"):
            action()
    assert np.array_equal(ours.cpu().numpy(), ours.numpy(force=True))


def check_generators_belong_to_a_device():
    ours = torch.Generator(device=DEVICE)
    drawn = torch.rand(3, generator=ours.manual_seed(5), device=DEVICE)
    assert torch.equal(drawn.cpu(), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert str(torch.randperm(4, generator=ours, device=DEVICE).device) == str(ours.device) == DEVICE
    assert isinstance(ours, torch.Generator) and isinstance(torch.default_generator, torch.Generator)
    with pytest.raises(RuntimeError, match="Expected a generator of the tensors' device"):
        torch.rand(3, generator=torch.Generator(), device=DEVICE)


def check_waits_are_counted():
    ours, other, rows = torch.rand(2, 3, device=DEVICE), torch.rand(2, 3), torch.tensor([0, 1])
    to_device, to_cpu = ["copy to the device"], ["copy to the CPU"]
    cases = [
        (lambda: ours.sum().item(), ["_local_scalar_dense"]),
        (lambda: bool((ours > 0).any()), ["_local_scalar_dense"]),
        (lambda: float(ours[0, 0]), ["_local_scalar_dense"]),
        (ours.tolist, to_cpu),
        (ours.cpu, to_cpu),
        (lambda: other.clone().copy_(ours), to_cpu),
        (lambda: other.to(DEVICE), to_device),
        (lambda: other.to(ours), to_device),
        (lambda: ours.copy_(other), to_device),
        (lambda: torch.tensor([1, 2], device=DEVICE), to_device),
        (lambda: ours.new_tensor([1.0]), to_device),
        (lambda: ours[[0, 1]], to_device),
        (lambda: ours[rows], ["index with indices of the CPU"]),
        (lambda: ours[ours > 0], ["index with a mask"]),
        (lambda: torch.nonzero(ours), ["nonzero"]),
        (lambda: torch.where(ours > 0), ["nonzero"]),
        (lambda: torch.masked_select(ours, ours > 0), ["masked_select"]),
        (lambda: torch.unique(ours), ["_unique2"]),
        (lambda: torch.bincount(torch.zeros(2, dtype=torch.int64, device=DEVICE), minlength=3), ["bincount"]),
        (lambda: torch.equal(ours, ours), ["equal"]),
        (lambda: torch.allclose(ours, ours), ["allclose"]),
        (lambda: F.one_hot(torch.zeros(2, dtype=torch.int64, device=DEVICE)), ["_local_scalar_dense"]),
        (torch.get_device_module("pretend").synchronize, ["synchronize"]),
    ]
    for number, (action, expected) in enumerate(cases):
        found = operations(action)
        assert found == expected, f"case {number}: {found}, not {expected}"


def check_what_a_gpu_does_alone_is_no_wait():
    ours, other = torch.rand(2, 3, device=DEVICE), torch.rand(2, 3)

    def action():
        other.to(DEVICE, non_blocking=True).mul_(2).to(torch.float64)
        ours.to("cpu", non_blocking=True)
        copied = ours.clone()
        copied[ours > 0.5] = 0
        copied[0] = 1
        copied[:, 1] = ours[:, 0]
        torch.where(ours > 0, ours, 0.0).softmax(dim=1).sum()
        torch.full((2,), 3.0, device=DEVICE) + torch.arange(2, device=DEVICE)
        ours.repeat_interleave(2, dim=0).flip(1).nan_to_num()
        F.one_hot(ours.argmax(dim=1), 3)

    assert operations(action) == []


def check_a_wait_has_its_place():
    with waits() as found:
        torch.ones(1, device=DEVICE).item()
    assert found[0].place.startswith("tests/devices/device_checks.py:")


def check_copies_without_waiting_are_there_after_the_event():
    module = torch.get_device_module("pretend")
    ours = torch.tensor([1.0, 2.0], device=DEVICE)
    copies = ours.to("cpu", non_blocking=True), (ours > 1).to("cpu", non_blocking=True)
    event = module.Event()
    event.record()
    ours.zero_()  # comes later
    late = ours.to("cpu", non_blocking=True)
    assert copies[0].isnan().all() and copies[1].tolist() == [True, False]
    assert operations(lambda: [event.query(), event.query()]) == []
    assert copies[0].tolist() == [1, 2] and copies[1].tolist() == [False, True] and late.isnan().all()
    event.record()
    assert operations(event.synchronize) == ["Event.synchronize"] and late.tolist() == [0, 0]
    assert event.query()


def check_numbers_are_the_cpus():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten()
    )
    network.append(torch.nn.Linear(8 * 16, 4))
    results = []
    for device in ("cpu", DEVICE):
        other = copy.deepcopy(network).to(device, memory_format=torch.channels_last)
        image = torch.linspace(0, 1, 2 * 3 * 36, device=device).reshape(2, 3, 6, 6)
        loss = F.cross_entropy(other(image), torch.tensor([1, 3], device=device))
        loss.backward()
        results.append([loss.cpu(), *(parameter.grad.cpu() for parameter in other.parameters())])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def check_optimisers_take_the_cpus_steps():
    for kind, settings in ((torch.optim.SGD, {"momentum": 0.9}), (torch.optim.AdamW, {})):
        for mode in ({"fused": True}, {"foreach": True}, {"foreach": False}):
            weights = []
            for device in ("cpu", DEVICE):
                torch.manual_seed(0)
                network = torch.nn.Linear(3, 2).to(device)
                optimizer = kind(network.parameters(), lr=0.1, **settings, **mode)
                found = []
                for _ in range(3):
                    optimizer.zero_grad()
                    network(torch.ones(2, 3, device=device)).square().sum().backward()
                    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                    found += operations(optimizer.step)
                    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                weights.append(network.weight.detach().cpu())
                assert found == []
            assert torch.equal(*weights), (kind, mode)


def check_autocast_casts_as_cudas():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 2)).to(DEVICE)
    image = torch.rand(5, 3, 3, 3, device=DEVICE)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("pretend", dtype=dtype):
            output = network(image)
            loss = F.cross_entropy(output, torch.zeros(5, dtype=torch.int64, device=DEVICE))
            assert (output.dtype, (output @ output.T).dtype, (output + output).dtype) == (dtype,) * 3
            assert (output.softmax(1).dtype, output.sum().dtype, loss.dtype) == (torch.float32,) * 3
            with torch.autocast("pretend", enabled=False):
                assert network(image).dtype == torch.float32
        network.zero_grad()
        loss.backward()
        assert network[0].weight.grad.dtype == torch.float32 and network[0].weight.grad.abs().sum() > 0


def check_copies_and_files_keep_the_device():
    network = torch.nn.Linear(3, 2).to(DEVICE)
    copied = copy.deepcopy(network)
    copied.weight.data.zero_()
    assert isinstance(copied.weight, torch.nn.Parameter) and network.weight.abs().sum() > 0
    copied.load_state_dict(network.state_dict())
    copied.weight.data = copied.weight.data + 1
    assert torch.equal(copied.weight, network.weight + 1)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    for location, expected in ((None, DEVICE), ("cpu", "cpu")):
        file.seek(0)
        loaded = torch.load(file, map_location=location, weights_only=True)["weight"]
        assert str(loaded.device) == expected and torch.equal(loaded.cpu(), network.weight.cpu())


def check_views_share_their_values():
    with torch.inference_mode():
        ours = torch.zeros(2, 3, device=DEVICE)
        ours[:, 1] += 2
        ours.view(-1)[0] = 1
        assert type(ours.T) is OnDevice and ours.tolist() == [[1, 2, 0], [0, 2, 0]]
