"""Handlers for the training engines: seeds, losses, schedules, size and expected time."""

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from ignite import distributed
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from monai.handlers import LrScheduleHandler, TensorBoardStatsHandler, ValidationHandler
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter

from ..errors import BundleError
from ..files.atomic import write_state_dict
from ..runs.devices import HostCopy, seed_everything
from ..runs.progress import duration, show_progress
from .checkpoints import BestModelHandler, ResumeHandler

logger = logging.getLogger(__name__)


class RandomSeedHandler:
    """Seed all random generators from (seed, epoch) at the start of each epoch, so that resuming does not change a run.

    Args:
        seed: the run's seed, non-negative.
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
    """Clip the Euclidean norm of all gradients before each optimiser step.

    Args:
        optimizer: the optimiser.
        max_norm: largest norm of all gradients together, above 0.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        if not max_norm > 0:
            raise BundleError(f"`max_norm` must be above 0, got {max_norm}; set it to null to disable clipping.")
        self.optimizer = optimizer
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Register with a trainer's optimiser, whose step comes after the gradients are unscaled (mixed precision)."""
        self.optimizer.register_step_pre_hook(self)

    def __call__(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.max_norm)


class LossHandler:
    """Report the training loss: a progress bar on a terminal, TensorBoard, and a log line after each epoch.

    Losses are read once they have been copied from the device, so that no step waits for the one before. A loss that is
    not finite stops the training instead of continuing with corrupted weights, at the latest at the end of the epoch,
    before anything from it is saved.

    Args:
        name: what is being trained.
        log_dir: folder for TensorBoard's files; ``None`` writes none.
    """

    def __init__(self, name: str, log_dir: str | Path | None = None) -> None:
        self.name = name
        self.quiet = distributed.get_rank() > 0
        self._writer = None if log_dir is None or self.quiet else SummaryWriter(log_dir)
        self._on_their_way: deque[tuple[int, HostCopy]] = deque()  # step, loss
        self._losses: list[float] = []  # of this epoch
        self._since, self._first_epoch = 0.0, None  # when this session's training began, and with which epoch

    def attach(self, engine: Engine) -> None:
        """Register with a trainer whose step is a ``TrainingStep``, before the handlers that validate and save."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish_epoch)
        if not self.quiet:
            show_progress(engine, self.name, lambda: {"loss": self._losses[-1]} if self._losses else {})

    def start_epoch(self, engine: Engine) -> None:
        """Clear the losses of the previous epoch; start the clock in the first one, which a resumed run knows now."""
        if self._first_epoch is None:
            self._since, self._first_epoch = time.monotonic(), engine.state.epoch
        self._losses.clear()
        self._on_their_way.clear()

    def collect(self, engine: Engine) -> None:
        """Start copying a step's loss to the host, and record those that have arrived."""
        self._on_their_way.append((engine.state.iteration, HostCopy(engine.state.output[0]["loss"])))
        while self._on_their_way and self._on_their_way[0][1].is_there():
            self._take(engine)

    def finish_epoch(self, engine: Engine) -> None:
        """Record the losses still being copied; log the epoch's mean and time."""
        while self._on_their_way:
            self._take(engine)
        if self._writer is not None:
            self._writer.flush()
        if not self.quiet:
            state, loss = engine.state, sum(self._losses) / len(self._losses)
            seconds = state.times[Events.EPOCH_COMPLETED.name]
            per_epoch = (time.monotonic() - self._since) / (state.epoch - self._first_epoch + 1)  # with validation
            left = per_epoch * (state.max_epochs - state.epoch)
            logger.info(
                f"{self.name}, epoch {state.epoch} of {state.max_epochs}: loss {loss:.4f}, {duration(seconds)}"
                f"{f', about {duration(left)} left' if left else ''}."
            )

    def _take(self, engine: Engine) -> None:
        """Check and record the oldest loss still being copied."""
        step, copy = self._on_their_way.popleft()
        loss = copy.get().item()
        if not math.isfinite(loss):
            raise BundleError(
                f"the loss must be finite, got {loss} in epoch {engine.state.epoch}, step {step}; lower the learning "
                "rate, or use --precision float32."
            )
        self._losses.append(loss)
        if self._writer is not None:
            self._writer.add_scalar(f"{self.name}_loss", loss, step)


class WeightAveragingHandler:
    """Average a network's weights over training steps; ``averaged_network`` has the average.

    Args:
        network: the network being trained.
        momentum: weight of the newest weights in the exponential moving average (EMA), above 0 and below 1; ``None``
            for no averaging: ``averaged_network`` is the network itself.
    """

    def __init__(self, network: nn.Module, momentum: float | None) -> None:
        self._average = None if momentum is None else _FewOperationsEMA(network, momentum)
        self.averaged_network = network if self._average is None else self._average.ema_model

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if self._average is not None:
            self._average.attach(engine)


class _FewOperationsEMA(EMAHandler):
    """Ignite's EMA of a network's weights and buffers in a few fused operations instead of hundreds."""

    def __init__(self, model: nn.Module, momentum: float) -> None:
        super().__init__(model, momentum=momentum)
        pairs = [*zip(self.ema_model.parameters(), model.parameters(), strict=True)]
        pairs += zip(self.ema_model.buffers(), model.buffers(), strict=True)
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        copied = [pair for pair in pairs if not pair[0].is_floating_point()]  # step counts of the batch norms
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
    """Log an evaluator's metrics, one line per validation, and write them to TensorBoard.

    Args:
        log_dir: folder for TensorBoard's files; ``None`` writes none.
    """

    def __init__(self, log_dir: str | Path | None = None) -> None:
        self.log_dir = log_dir

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, on one process only."""
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
    """Schedule attributes of an object by epoch: at epoch e = 0..E-1 they are ``start + (end - start) * e / E``.

    Args:
        target: the object, for instance a loss.
        start: value of each attribute in the first epoch.
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
    """Log the size of a training and, after its first steps, its expected time.

    Args:
        name: what is being trained.
        network: the network whose parameters are counted.
        warmup_steps: steps measured for the estimate, after skipping the first one. On a GPU, whose first steps choose
            algorithms, another ``warmup_steps`` are skipped.
    """

    def __init__(self, name: str, network: nn.Module, warmup_steps: int = 6) -> None:
        self.name = name
        self.network = network
        self.warmup_steps = warmup_steps
        self._first_step = 0
        self._since = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; must come after the handler that resumes."""
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
        """Time the steps after the first, and log once how long the rest will take."""
        state = engine.state
        steps = state.iteration - self._first_step
        if steps == 0:
            _wait_for(state.device)
            self._since = time.monotonic()
        elif steps == self.warmup_steps:
            _wait_for(state.device)
            seconds_per_step = (time.monotonic() - self._since) / steps
            left = duration(seconds_per_step * (state.max_epochs * state.epoch_length - state.iteration))
            logger.info(
                f"{seconds_per_step:.3g} s per step: the {self.name} will take about {left}, validation not "
                "counted; each epoch corrects this."
            )


class TrainingHandlers:
    """All handlers of a training, attached in the required order.

    They average the weights; make random numbers depend on the epoch only; log and check losses, also for TensorBoard;
    clip gradients; schedule the loss; validate; schedule the learning rate; save a checkpoint after each epoch, from
    which an interrupted training resumes; save the last epoch's weights if no validation saved any; and log the size of
    the training and its expected time. With several processes, only the first writes and logs.

    Args:
        name: what is being trained, for the log and the checkpoint's file name.
        network: the network being trained; the trainer may wrap it.
        averaging: the handler that averages the weights; the average is what is saved.
        path: file for the saved weights.
        optimizer, loss: the trainer's.
        lr_scheduler: updates the learning rate after each step.
        loss_schedule: ``start`` and ``end`` of attributes of the loss; see ``LinearScheduleHandler``.
        max_gradient_norm: norm to clip gradients to; ``None`` disables clipping.
        validator: MONAI evaluator for validation; ``None`` for a training without validation.
        val_interval: number of epochs between validations.
        best_model: saves weights at validation; ``None`` for a training without validation.
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
        """Register all handlers with a trainer."""
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
        if self.validator is not None and self.validator.state.epoch_length != 0:  # there are val images
            yield ValidationHandler(self.val_interval, self.validator)
        yield LrScheduleHandler(self.lr_scheduler, print_lr=False, epoch_level=False)
        yield ResumeHandler(self.output_dir / "checkpoints" / f"{self.name}.pt", resumed)
        if distributed.get_rank() == 0:
            yield StageSizeHandler(self.name, self.network)

    @distributed.one_rank_only(with_barrier=True)
    def keep_last_weights(self, engine: Engine) -> None:
        """Write the weights unless a validation saved some; all processes wait for the file."""
        if self.best_model is None or self.best_model.best is None:
            write_state_dict(self.path, self.averaging.averaged_network.state_dict())


def _wait_for(device: str | torch.device) -> None:
    """Wait until a device has finished its work."""
    if torch.device(device).type != "cpu":
        torch.get_device_module(device).synchronize()
