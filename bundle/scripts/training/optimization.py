"""What an optimiser trains: parameter groups as the papers have them, and parts that stay as they are."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import BundleError


def parameter_groups(
    network: nn.Module,
    lr: float,
    weight_decay: float,
    bias_multiplier: float = 2.0,
    part_multipliers: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Optimiser groups of a network's trainable parameters: biases learn faster and do not decay.

    Args:
        network: parameters that do not require a gradient are left out.
        lr: learning rate of the weights.
        weight_decay: weight decay of the weights.
        bias_multiplier: factor on ``lr`` for biases; one-dimensional parameters count as such.
        part_multipliers: factor on ``lr`` for named parts, e.g. ``{"deep_head": 10}``; of nested ones the inner.

    Returns:
        Groups of ``params``, ``lr`` and ``weight_decay`` for a torch optimiser.

    Raises:
        BundleError: if a named part has no trainable parameter.
    """
    part_multipliers = dict(part_multipliers or {})
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    unused = set(part_multipliers)
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        part = max((part for part in part_multipliers if name.startswith(f"{part}.")), key=len, default=None)
        unused.discard(part)
        is_bias = parameter.ndim == 1
        multiplier = (bias_multiplier if is_bias else 1.0) * part_multipliers.get(part, 1.0)
        groups.setdefault((lr * multiplier, 0.0 if is_bias else weight_decay), []).append(parameter)
    if unused:
        raise BundleError(f"`part_multipliers` must name parts with trainable parameters; {sorted(unused)} have none.")
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def freeze(network: nn.Module, parts: Sequence[str], statistics: bool = False) -> nn.Module:
    """Keep parts of a network as they are: no parameter trains, and batch norms and dropout stay in evaluation mode.

    Args:
        network: the network.
        parts: names of its parts, for instance ``["network.encoder.model"]``.
        statistics: every batch norm keeps its running mean and variance, which a few images would give poorly; its
            weight and bias train.

    Returns:
        ``network`` itself.

    Raises:
        BundleError: if there is no such part.
    """
    for name in parts:
        try:
            part = network.get_submodule(name)
        except AttributeError as error:
            raise BundleError(f"`parts` must name parts of {type(network).__name__}, got {name!r}; {error}.") from error
        part.requires_grad_(False)
        part.register_forward_pre_hook(_evaluation_mode)
    if statistics:
        network.register_forward_pre_hook(_fixed_statistics)
    return network


def _evaluation_mode(module: nn.Module, inputs: tuple) -> None:
    module.eval()


def _fixed_statistics(module: nn.Module, inputs: tuple) -> None:
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
