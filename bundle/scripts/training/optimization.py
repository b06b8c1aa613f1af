"""The papers' optimiser parameter groups, and freezing of submodules."""

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
    """Optimiser parameter groups for a network: biases get a higher learning rate and no weight decay.

    Args:
        network: parameters that do not require a gradient are left out.
        lr: learning rate of the weights.
        weight_decay: weight decay of the weights.
        bias_multiplier: factor on ``lr`` for biases, i.e. all one-dimensional parameters.
        part_multipliers: factor on ``lr`` for named submodules, e.g. ``{"deep_head": 10}``; if nested, the innermost
            applies.

    Returns:
        Groups of ``params``, ``lr`` and ``weight_decay`` for a torch optimiser.

    Raises:
        BundleError: if a named submodule has no trainable parameter.
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
        raise BundleError(
            "`part_multipliers` must name submodules with trainable parameters, got "
            f"{sorted(unused)}, which have none; remove them."
        )
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def freeze(network: nn.Module, parts: Sequence[str], statistics: bool = False) -> nn.Module:
    """Freeze submodules of a network: parameters are not trained, batch norm and dropout stay in evaluation mode.

    Args:
        network: the network.
        parts: names of the submodules, for instance ``["network.encoder.model"]``.
        statistics: freeze the running mean and variance of every batch norm, which few images would estimate poorly;
            its weight and bias are still trained.

    Returns:
        ``network`` itself.

    Raises:
        BundleError: if a submodule does not exist.
    """
    for name in parts:
        try:
            part = network.get_submodule(name)
        except AttributeError as error:
            raise BundleError(
                f"`parts` must name submodules of {type(network).__name__}, got {name!r}; {error}."
            ) from error
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
