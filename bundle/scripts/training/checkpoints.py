"""Handlers that save checkpoints to resume from, and the best weights."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite import distributed
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from torch import nn

from ..errors import BundleError
from ..files.atomic import write_checkpoint, write_state_dict
from ..files.foreign_files import read_tensors

logger = logging.getLogger(__name__)

WAYS = ("fused", "foreach", "capturable")  # optimiser settings that change how it computes, not what


class ResumeHandler:
    """Save the full training state as a checkpoint after each epoch, and resume from it at the start.

    Args:
        path: the checkpoint file.
        objects: objects to save and restore, by name; each has ``state_dict`` and ``load_state_dict``. The trainer
            itself is added as ``"trainer"``.
    """

    def __init__(self, path: str | Path, objects: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.objects = dict(objects)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; must come after the validation handler, so that its result is saved too."""
        self.objects["trainer"] = engine
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def load(self, engine: Engine) -> None:
        """Restore the state, if a checkpoint exists."""
        scaler = getattr(engine, "scaler", None)  # exists with automatic mixed precision
        if scaler is not None:
            self.objects["scaler"] = scaler
        if not self.path.exists():
            return
        state = read_tensors(self.path)
        for name in ("max_epochs", "epoch_length"):
            saved, asked = state["trainer"][name], getattr(engine.state, name)
            if saved != asked:
                raise BundleError(
                    f"{self.path} must have the `{name}` of this training, {asked}, to resume from it; it has {saved}. "
                    "Use the same epochs and training images, or train from scratch: another `output_dir`, or `redo`."
                )
        optimizers = [item for item in self.objects.values() if isinstance(item, torch.optim.Optimizer)]
        ways = [[{key: group[key] for key in WAYS if key in group} for group in o.param_groups] for o in optimizers]
        Checkpoint.load_objects(to_load=self.objects, checkpoint=state, strict=True)
        for optimizer, settings in zip(optimizers, ways, strict=True):
            _work_in_own_way(optimizer, settings)
        logger.info(f"Resuming after epoch {engine.state.epoch} of {engine.state.max_epochs} from {self.path}.")

    @distributed.one_rank_only()
    def save(self, engine: Engine) -> None:
        """Write the state, on one process only."""
        write_checkpoint(self.path, {name: item.state_dict() for name, item in self.objects.items()})


def _work_in_own_way(optimizer: torch.optim.Optimizer, ways: Sequence[Mapping[str, Any]]) -> None:
    """Restore an optimiser's own ``WAYS``, which loading the state of a run on another device overwrites.

    Args:
        optimizer: the optimiser; its state is on its parameters' device.
        ways: the settings of ``WAYS`` for each parameter group.
    """
    for group, way in zip(optimizer.param_groups, ways, strict=True):
        group |= way
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if not isinstance(value, torch.Tensor):
                    continue
                if value.shape == parameter.shape:  # fused kernels need both in the same memory format
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                elif name == "step":
                    state[name] = value.to(parameter.device if way.get("fused") or way.get("capturable") else "cpu")


class BestModelHandler:
    """Save the weights with the best validation score, or those of the last validation, as a bare state dict.

    Args:
        path: the file.
        network: the network whose weights are saved.
        metric_name: name of the score among the evaluator's metrics; higher is better, ties keep the earlier weights.
        choose: ``False`` keeps the weights of the last validation, so that the validation images select nothing.
    """

    def __init__(self, path: str | Path, network: nn.Module, metric_name: str, choose: bool = True) -> None:
        self.path = Path(path)
        self.network = network
        self.metric_name = metric_name
        self.choose = choose
        self.best: float | None = None

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator that a ``ValidationHandler`` runs."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        score = float(engine.state.metrics[self.metric_name])
        if score != score:
            raise BundleError(f"{self.metric_name!r} must be a number to select the best model by, got NaN.")
        better = self.best is None or score > self.best
        if better:
            self.best = score
            if self.choose:
                logger.info(f"Best {self.metric_name} so far: {score:.4f}.")
        if distributed.get_rank() == 0 and (better or not self.choose):
            write_state_dict(self.path, self.network.state_dict())

    def state_dict(self) -> dict[str, float | None]:
        """The best score so far."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        """Restore the best score."""
        self.best = state["best"]
