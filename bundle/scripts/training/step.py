"""A training step: MONAI's, on CUDA captured as a CUDA graph so that the GPU does not wait for Python."""

import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from ..runs.devices import memory_advice, training_algorithms
from .augmentation import PrepareBatch

logger = logging.getLogger(__name__)

GRAPH_DEVICES = ("cuda",)  # device types on which steps can be captured
ORDINARY_STEPS = 3  # before a capture: cuDNN and cuBLAS choose their algorithms during these
GRADIENT_EVENTS = (
    IterationEvents.FORWARD_COMPLETED,
    IterationEvents.LOSS_COMPLETED,
    IterationEvents.BACKWARD_COMPLETED,
)


class TrainingStep:
    """A ``SupervisedTrainer``'s ``iteration_update``.

    A deep network's step launches thousands of small kernels, which takes longer than the GPU needs to run them. On
    CUDA the forward pass, the loss and the backward pass are therefore captured once as a CUDA graph, after some
    ordinary training steps, and replayed as a whole in all following steps. The optimiser step is not part of the
    graph. Batches of another size, such as the last one of an epoch, run as ordinary steps.

    Steps are not captured with MONAI's ``amp``, with gradient accumulation, with several processes
    (``DistributedDataParallel``), or for networks with gradient checkpointing (``checkpointing``).

    Args:
        advice: how to halve the memory, for the message when it runs out.
        cuda_graph: capture steps on CUDA.
        benchmark: let cuDNN measure its fastest algorithm for batches of the first batch's size.
        scheduled: float attributes of the loss that change during training: a captured step reads them from the device.
            When any other number of the loss changes, the step is captured again.
    """

    def __init__(
        self, advice: str, cuda_graph: bool = True, benchmark: bool = True, scheduled: Sequence[str] = ()
    ) -> None:
        self.advice = advice
        self.benchmark = benchmark
        self._usual: torch.Size | None = None  # size of the first batch; others are not worth benchmarking
        self.scheduled = tuple(scheduled)
        self._uses_graph: bool | None = None if cuda_graph else False  # None: unknown before the first step
        self._captured: CapturedStep | None = None
        self._last_form: Any = None
        self._alike = 0  # consecutive batches of the same form so far

    def __call__(self, engine: SupervisedTrainer, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Train on a batch.

        Returns:
            A list, as MONAI's handlers expect it of an engine, of one dictionary for the whole batch: ``image``,
            ``label``, ``pred`` and ``loss``, without a gradient.
        """
        size = batch[Keys.IMAGE].shape
        if self._usual is None:
            self._usual = size
            if self.benchmark and torch.device(engine.state.device).type == "cuda":
                logger.info(
                    "cuDNN benchmarks its algorithms in the first step, which takes up to a minute; "
                    "--cudnn_benchmark False starts at once but trains more slowly."
                )
        with memory_advice(self.advice), training_algorithms(self.benchmark and size == self._usual):
            if self._uses_graph is None:
                self._uses_graph = can_be_captured(engine)
            output = self._step(engine, batch) if self._uses_graph else _detached(engine._iteration(engine, batch))
        return output if isinstance(output, list) else [output]  # a trainer that decollates has made a list

    def _step(self, engine: SupervisedTrainer, batch: Mapping[str, Any]) -> dict[str, Any]:
        image, label = engine.prepare_batch(batch, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        captured = self._graph_for(engine, image, label)
        pred, loss = _ordinary_gradients(engine, image, label) if captured is None else captured.run(image, label)
        engine.state.output = {Keys.IMAGE: image, Keys.LABEL: label, Keys.PRED: pred, Keys.LOSS: loss}
        for event in GRADIENT_EVENTS:
            engine.fire_event(event)
        engine.optimizer.step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _graph_for(self, engine: SupervisedTrainer, image: torch.Tensor, label: torch.Tensor) -> "CapturedStep | None":
        """The captured step for a batch; ``None`` for an ordinary step."""
        sizes = (image.shape, image.dtype, label.shape, label.dtype)
        form = (*sizes, _numbers(engine.loss_function, self.scheduled))
        self._alike = self._alike + 1 if form == self._last_form else 1
        self._last_form = form
        if self._alike == 2 and image.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(image.device)  # in the first step cuDNN tried all its algorithms
        if self._captured is not None and self._captured.form == form:
            return self._captured
        if self._alike <= ORDINARY_STEPS:
            return None
        self._captured = None  # frees its memory for the next one
        try:
            with _as_before_if_it_fails(image.device):
                self._captured = CapturedStep(engine, image, label, form, self.scheduled)
        except (RuntimeError, TypeError) as error:  # PyTorch's, for anything that cannot be captured
            self._uses_graph = False
            while error.__context__ is not None:  # PyTorch reports the failed capture, not its cause
                error = error.__context__
            logger.warning(f"Training runs without a CUDA graph, more slowly: the step cannot be captured. {error}")
        return self._captured


class CapturedStep:
    """The forward pass, loss and backward pass as a CUDA graph, for batches of one form.

    Args:
        engine: has the network, the loss and the optimiser.
        image, label: a batch on the device.
        form: what all batches of the graph have in common.
        scheduled: attributes of the loss that are read from the device in each step.
    """

    def __init__(
        self, engine: SupervisedTrainer, image: torch.Tensor, label: torch.Tensor, form: Any, scheduled: Sequence[str]
    ) -> None:
        self.form = form
        self.image, self.label = image.clone(), label.clone()
        self.loss_function, self.scheduled = engine.loss_function, tuple(scheduled)
        self._numbers = torch.zeros(len(self.scheduled), device=image.device)
        self._values: tuple[float, ...] = ()
        self._read_schedule()
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=True)  # the graph allocates the gradients in its own memory
        values = self._values
        try:
            self._set_schedule(self._numbers)
            self._replay, (self.pred, self.loss) = capture(lambda: _gradients(engine, self.image, self.label))
        finally:
            self._set_schedule(values)
        parameters = [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]
        self._own_gradients = [(parameter, parameter.grad) for parameter in parameters]

    def run(self, image: torch.Tensor, label: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Compute the gradients of a batch; return the predictions, valid until the next step, and the loss."""
        self.image.copy_(image, non_blocking=True)
        self.label.copy_(label, non_blocking=True)
        self._read_schedule()
        for parameter, gradient in self._own_gradients:  # an ordinary step replaces them
            parameter.grad = gradient
        self._replay()
        return self.pred, self.loss.clone()

    def _read_schedule(self) -> None:
        """Copy the scheduled numbers to the device if they have changed."""
        values = tuple(getattr(self.loss_function, name) for name in self.scheduled)
        if values != self._values:
            self._values = values
            for number, value in zip(self._numbers, values, strict=True):
                number.fill_(value)

    def _set_schedule(self, values: Iterable[float | torch.Tensor]) -> None:
        for name, value in zip(self.scheduled, values, strict=True):
            setattr(self.loss_function, name, value)


def can_be_captured(engine: SupervisedTrainer) -> bool:
    """Whether an engine's step can be captured as a CUDA graph; see ``TrainingStep``."""
    return (
        engine.state.device.type in GRAPH_DEVICES
        and not engine.amp
        and engine.accumulation_steps == 1
        and isinstance(engine.prepare_batch, PrepareBatch)
        and not isinstance(engine.network, DistributedDataParallel)
        and not any(getattr(module, "checkpointing", False) for module in engine.network.modules())
    )


_graphs: list[Any] = []  # being captured; failed ones stay, since PyTorch's allocator still uses them


def capture(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record ``work`` as a CUDA graph without running it.

    Returns:
        A function that replays the graph, and the outputs of ``work``, which each replay overwrites.

    Raises:
        RuntimeError: if ``work`` cannot be captured, or there is not enough memory.
    """
    gc.collect()  # leftover references to an earlier step's gradients would tie the capture to it
    free, _ = torch.cuda.mem_get_info()
    free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    if free < 2 * torch.cuda.max_memory_allocated():  # for the graph plus ordinary steps and validation
        raise RuntimeError(f"It would need more than the {free / 2**30:.1f} GiB of free GPU memory.")
    graph = torch.cuda.CUDAGraph()
    _graphs.append(graph)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads prefetch meanwhile
        outputs = work()
    _graphs.remove(graph)
    return graph.replay, outputs


@contextmanager
def _as_before_if_it_fails(device: torch.device) -> Iterator[None]:
    """After a failed capture, restore the current stream and release the random generator."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.current_stream(device)
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(stream)
        torch.cuda.synchronize(device)
        generator = torch.cuda.default_generators[stream.device_index]
        generator.graphsafe_set_state(generator.clone_state())
        raise


def _ordinary_gradients(
    engine: SupervisedTrainer, image: torch.Tensor, label: torch.Tensor
) -> tuple[Any, torch.Tensor]:
    """Compute the gradients of a batch without a graph; return the predictions and the loss."""
    engine.network.train()
    engine.optimizer.zero_grad(set_to_none=True)
    return _gradients(engine, image, label)


def _gradients(engine: SupervisedTrainer, image: torch.Tensor, label: torch.Tensor) -> tuple[Any, torch.Tensor]:
    pred = engine.inferer(image, engine.network)
    loss = engine.loss_function(pred, label).mean()
    loss.backward()
    return _detached(pred), loss.detach()


def _detached(value: Any) -> Any:
    """Detach tensors from autograd, whose graph would hold memory and break a later capture."""
    return tree_map_only(torch.Tensor, torch.Tensor.detach, value)


def _numbers(loss_function: Any, scheduled: Sequence[str]) -> list[tuple[str, Any]]:
    """The numeric attributes of a loss, by name, except the scheduled ones."""
    modules = loss_function.named_modules() if isinstance(loss_function, nn.Module) else ()
    attributes = ((f"{part}.{name}", value) for part, module in modules for name, value in vars(module).items())
    left_out = {f".{name}" for name in scheduled}
    return [(name, value) for name, value in attributes if isinstance(value, (int, float)) and name not in left_out]
