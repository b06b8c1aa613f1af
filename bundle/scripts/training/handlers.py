"""Handlers of the training engines: seeds, losses, schedules, size and expected time."""

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from ignite import distributed
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler, ProgressBar
from monai.handlers import LrScheduleHandler, TensorBoardStatsHandler, ValidationHandler
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter

from ..errors import BundleError
from ..files.atomic import write_state_dict
from ..runs.devices import HostCopy, seed_everything
from .checkpoints import BestModelHandler, ResumeHandler

logger = logging.getLogger(__name__)


class RandomSeedHandler:
    """Seed all random generators by (seed, epoch) at the start of each epoch, so that a resumed run is the same run.

    Args:
        seed: the run's seed, not negative.
        deterministic: as for ``devices.prepare_device``.
    """

    def __init__(self, seed: int, deterministic: bool = False) -> None:
        self.seed = seed
        self.deterministic = deterministic

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        seed_everything((self.seed * 100_003 + engine.state.epoch) % 2**32, self.deterministic)


class GradientClippingHandler:
    """Scale the gradients of all parameters down to a largest Euclidean norm before each step of an optimiser.

    Args:
        optimizer: the optimiser.
        max_norm: the largest norm of all gradients together, above 0.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        if not max_norm > 0:
            raise BundleError(f"`max_norm` must be above 0, got {max_norm}; set it to null to clip nothing.")
        self.optimizer = optimizer
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Register with a trainer's optimiser, which with mixed precision comes after the gradients are unscaled."""
        self.optimizer.register_step_pre_hook(self)

    def __call__(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.max_norm)


class LossHandler:
    """Follow the loss of a training: a progress bar on a terminal, TensorBoard, a line in the log after each epoch.

    Losses are read from the device when they have arrived, so that no step waits for the one before it. One that is not
    finite ends the training, instead of going on with ruined weights; at the latest after the epoch, before anything
    of it is kept.

    Args:
        name: what is trained.
        log_dir: folder of TensorBoard's files; ``None`` writes none.
    """

    def __init__(self, name: str, log_dir: str | Path | None = None) -> None:
        self.name = name
        self.quiet = distributed.get_rank() > 0
        self._writer = None if log_dir is None or self.quiet else SummaryWriter(log_dir)
        self._on_their_way: deque[tuple[int, HostCopy]] = deque()  # step, loss
        self._losses: list[float] = []  # of this epoch

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; must stand before the handlers that validate and save."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish_epoch)
        if not self.quiet:
            bar = ProgressBar(desc=f"{self.name}, epoch", disable=None)  # None: no bar where there is no terminal
            bar.attach(engine, output_transform=lambda output: {"loss": self._losses[-1]} if self._losses else {})

    def start_epoch(self, engine: Engine) -> None:
        """Forget the epoch before."""
        self._losses.clear()
        self._on_their_way.clear()

    def collect(self, engine: Engine) -> None:
        """Send for the loss of a step, and take those that have come."""
        self._on_their_way.append((engine.state.iteration, HostCopy(engine.state.output["loss"])))
        while self._on_their_way and self._on_their_way[0][1].is_there():
            self._take(engine)

    def finish_epoch(self, engine: Engine) -> None:
        """Take the losses that are still on their way; log the epoch's mean and time."""
        while self._on_their_way:
            self._take(engine)
        if self._writer is not None:
            self._writer.flush()
        if not self.quiet:
            state, loss = engine.state, sum(self._losses) / len(self._losses)
            seconds = state.times[Events.EPOCH_COMPLETED.name]
            logger.info(f"{self.name}, epoch {state.epoch} of {state.max_epochs}: loss {loss:.4f}, {seconds:.0f} s.")

    def _take(self, engine: Engine) -> None:
        """Check and note the loss of the first step whose loss is on its way."""
        step, copy = self._on_their_way.popleft()
        loss = copy.get().item()
        if not math.isfinite(loss):
            raise BundleError(
                f"the loss must be finite, got {loss} in epoch {engine.state.epoch}, step {step}; lower the learning "
                "rate, or take --precision float32."
            )
        self._losses.append(loss)
        if self._writer is not None:
            self._writer.add_scalar(f"{self.name}_loss", loss, step)


class WeightAveragingHandler:
    """Average a network's weights over the steps of its training; ``averaged_network`` has the average.

    Args:
        network: the network that trains.
        momentum: the share of the newest weights in the exponential moving average, above 0 and below 1; ``None`` for
            no average: ``averaged_network`` is the network itself.
    """

    def __init__(self, network: nn.Module, momentum: float | None) -> None:
        self._average = None if momentum is None else _FewOperationsEMA(network, momentum)
        self.averaged_network = network if self._average is None else self._average.ema_model

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if self._average is not None:
            self._average.attach(engine)


class _FewOperationsEMA(EMAHandler):
    """Ignite's exponential moving average of a network's weights and buffers, in few operations instead of hundreds."""

    def __init__(self, model: nn.Module, momentum: float) -> None:
        super().__init__(model, momentum=momentum)
        pairs = [*zip(self.ema_model.parameters(), model.parameters(), strict=True)]
        pairs += zip(self.ema_model.buffers(), model.buffers(), strict=True)
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        copied = [pair for pair in pairs if not pair[0].is_floating_point()]  # batch norms' numbers of steps
        self._averaged, self._copied = (
            [list(part) for part in zip(*these, strict=True)] for these in (averaged, copied)
        )
        self._average = get_ema_multi_avg_fn(1 - momentum)

    @torch.no_grad()
    def _update_ema_model(self, engine: Engine, name: str) -> None:
        self._average(*self._averaged, None)
        if self._copied:
            torch._foreach_copy_(*self._copied)


class ScoreLogHandler:
    """Log an evaluator's metrics, one line for each validation, and keep them for TensorBoard.

    Args:
        log_dir: folder of TensorBoard's files; ``None`` writes none.
    """

    def __init__(self, log_dir: str | Path | None = None) -> None:
        self.log_dir = log_dir

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator; of several processes, one logs."""
        if distributed.get_rank() > 0:
            return
        engine.add_event_handler(Events.COMPLETED, self)
        if self.log_dir is not None:
            TensorBoardStatsHandler(log_dir=str(self.log_dir), iteration_log=False).attach(engine)

    def __call__(self, engine: Engine) -> None:
        scores = {name: value for name, value in engine.state.metrics.items() if isinstance(value, float)}
        logger.info(
            f"Epoch {engine.state.epoch}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        )


class LinearScheduleHandler:
    """Move attributes of an object with the epochs: at epoch e = 0..E-1 they are ``start + (end - start) * e / E``.

    Args:
        target: the object, for instance a loss.
        start: value of each attribute at the first epoch.
        end: value that each attribute would have after the last epoch.
    """

    def __init__(self, target: Any, start: Mapping[str, float], end: Mapping[str, float]) -> None:
        missing = [name for name in start if not hasattr(target, name)]
        if missing or start.keys() != end.keys():
            raise BundleError(
                f"`start` and `end` must name the same attributes of {type(target).__name__}, got {sorted(start)} and "
                f"{sorted(end)}; {missing} do not exist."
            )
        self.target = target
        self.start = dict(start)
        self.end = dict(end)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        progress = (engine.state.epoch - 1) / engine.state.max_epochs  # Ignite counts epochs from 1
        for name, start in self.start.items():
            setattr(self.target, name, start + (self.end[name] - start) * progress)


class StageSizeHandler:
    """Log what a training is about to do, and after its first steps the time it will take.

    Args:
        name: what is trained.
        network: its parameters are counted.
        warmup_steps: steps that pass before the first estimate. The first one is not measured; on a GPU, where the
            first ones choose algorithms, as many again are not.
    """

    def __init__(self, name: str, network: nn.Module, warmup_steps: int = 6) -> None:
        self.name = name
        self.network = network
        self.warmup_steps = warmup_steps
        self._first_step = 0
        self._since = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; must stand after the handler that resumes."""
        engine.add_event_handler(Events.STARTED, self.log_size)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.log_expected_time)

    def log_size(self, engine: Engine) -> None:
        """Log patches, epochs, steps and parameters."""
        state = engine.state
        parameters = list(self.network.parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        logger.info(
            f"Training the {self.name}: {len(state.dataloader.dataset)} patches, {state.max_epochs} epochs of "
            f"{state.epoch_length} steps, {sum(p.numel() for p in parameters) / 1e6:.1f} million parameters, "
            f"{trained / 1e6:.1f} of them trained, on {state.device}."
        )
        unmeasured = 0 if torch.device(state.device).type == "cpu" else self.warmup_steps
        self._first_step = state.epoch * state.epoch_length + 1 + unmeasured

    def log_expected_time(self, engine: Engine) -> None:
        """Measure the steps after the first, and log once how long the rest will take."""
        state = engine.state
        steps = state.iteration - self._first_step
        if steps == 0:
            _wait_for(state.device)
            self._since = time.monotonic()
        elif steps == self.warmup_steps:
            _wait_for(state.device)
            seconds_per_step = (time.monotonic() - self._since) / steps
            left = state.max_epochs * state.epoch_length - state.iteration
            logger.info(
                f"{seconds_per_step:.3g} s per step: the {self.name} will take about "
                f"{timedelta(seconds=round(seconds_per_step * left))} h, validation not counted."
            )


class TrainingHandlers:
    """What every training does beside its steps, in the order that it must have.

    The weights' average; random numbers that depend on the epoch alone; losses in the log, in TensorBoard, and
    checked; gradients clipped; the loss's schedule; validation; the learning rate's schedule; a checkpoint after each
    epoch, from which an interrupted training goes on; the last epoch's weights, where no validation kept any; the size
    of the training and its expected time. Of several processes, the first one writes and logs.

    Args:
        name: of what trains, for the log and the checkpoint's file.
        network: the network that trains; the trainer may have it in a wrapper.
        averaging: the handler that averages the weights; the average is what is kept.
        path: file of the weights that are kept.
        optimizer, loss: the trainer's.
        lr_scheduler: moves the learning rate after each step.
        loss_schedule: ``start`` and ``end`` of attributes of the loss; see ``LinearScheduleHandler``.
        max_gradient_norm: the norm that gradients are clipped to; ``None`` leaves them.
        validator: MONAI's evaluator that validates; ``None`` for a training that does not.
        val_interval: epochs from one validation to the next.
        best_model: keeps weights when it is validated; ``None`` for a training that does not.
        output_dir: the run folder.
        seed, deterministic: as for ``RandomSeedHandler``.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        averaging: WeightAveragingHandler,
        path: str | Path,
        optimizer: torch.optim.Optimizer,
        loss: nn.Module,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
        loss_schedule: Mapping[str, Mapping[str, float]],
        max_gradient_norm: float | None,
        validator: Engine | None,
        val_interval: int,
        best_model: BestModelHandler | None,
        output_dir: str | Path,
        seed: int,
        deterministic: bool,
    ) -> None:
        self.name = name
        self.network = network
        self.averaging = averaging
        self.path = Path(path)
        self.optimizer = optimizer
        self.loss = loss
        self.lr_scheduler = lr_scheduler
        self.loss_schedule = loss_schedule
        self.max_gradient_norm = max_gradient_norm
        self.validator = validator
        self.val_interval = val_interval
        self.best_model = best_model
        self.output_dir = Path(output_dir)
        self.seed = seed
        self.deterministic = deterministic

    def attach(self, engine: Engine) -> None:
        """Register all of them with a trainer."""
        for handler in self._handlers():
            handler.attach(engine)
        engine.add_event_handler(Events.COMPLETED, self.keep_last_weights)

    def _handlers(self) -> Iterator[Any]:
        resumed = {
            "network": self.network,
            "averaged_network": self.averaging.averaged_network,
            "optimizer": self.optimizer,
            "lr_scheduler": self.lr_scheduler,
        }
        if self.best_model is not None:
            resumed["best_model"] = self.best_model
        yield self.averaging
        yield RandomSeedHandler(self.seed, self.deterministic)
        yield LossHandler(self.name, self.output_dir / "tensorboard")
        if self.max_gradient_norm is not None:
            yield GradientClippingHandler(self.optimizer, self.max_gradient_norm)
        yield LinearScheduleHandler(self.loss, **self.loss_schedule)
        if self.validator is not None:
            yield ValidationHandler(self.val_interval, self.validator)
        yield LrScheduleHandler(self.lr_scheduler, print_lr=False, epoch_level=False)
        yield ResumeHandler(self.output_dir / "checkpoints" / f"{self.name}.pt", resumed)
        if distributed.get_rank() == 0:
            yield StageSizeHandler(self.name, self.network)

    @distributed.one_rank_only(with_barrier=True)
    def keep_last_weights(self, engine: Engine) -> None:
        """Write the weights, unless a validation has kept some; all processes go on when they are there."""
        if self.best_model is None or self.best_model.best is None:
            write_state_dict(self.path, self.averaging.averaged_network.state_dict())


def _wait_for(device: str | torch.device) -> None:
    """Wait until a device has done what it was given."""
    if torch.device(device).type != "cpu":
        torch.get_device_module(device).synchronize()
