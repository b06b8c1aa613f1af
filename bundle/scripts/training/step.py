"""A training step: MONAI's, and on CUDA the same as one CUDA graph, so that the GPU does not wait for Python."""

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

GRAPH_DEVICES = ("cuda",)  # where steps can be captured
ORDINARY_STEPS = 3  # before a capture: cuDNN and cuBLAS choose their algorithms in them
GRADIENT_EVENTS = (
    IterationEvents.FORWARD_COMPLETED,
    IterationEvents.LOSS_COMPLETED,
    IterationEvents.BACKWARD_COMPLETED,
)


class TrainingStep:
    """A ``SupervisedTrainer``'s ``iteration_update``.

    A deep network's step launches thousands of small kernels, in more time than the GPU takes to run them. On CUDA the
    forward pass, the loss and the backward pass are therefore captured once as a CUDA graph, after some ordinary steps
    that train as ever, and launched as a whole in every step that follows. The optimiser's step is not part of it.
    Batches of another size, as the last one of an epoch may be, take the ordinary way.

    Not captured are steps with MONAI's ``amp``, with gradients accumulated over several steps, of several processes
    (``DistributedDataParallel``), and of networks that compute activations again (``checkpointing``).

    Args:
        advice: what halves the memory, if it is full.
        cuda_graph: capture steps on CUDA.
        benchmark: let cuDNN measure which of its algorithms is the fastest for batches of the first one's size.
        scheduled: attributes of the loss that change while it trains, floats: a captured step reads them from the
            device. It is captured again when another number of the loss has changed.
    """

    def __init__(
        self, advice: str, cuda_graph: bool = True, benchmark: bool = True, scheduled: Sequence[str] = ()
    ) -> None:
        self.advice = advice
        self.benchmark = benchmark
        self._usual: torch.Size | None = None  # of the first batch; not worth it for others
        self.scheduled = tuple(scheduled)
        self._uses_graph: bool | None = None if cuda_graph else False  # None: not known before the first step
        self._captured: CapturedStep | None = None
        self._last_form: Any = None
        self._alike = 0  # batches of one form so far

    def __call__(self, engine: SupervisedTrainer, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Train on a batch; the output has ``image``, ``label``, ``pred`` and ``loss``, without a gradient."""
        size = batch[Keys.IMAGE].shape
        if self._usual is None:
            self._usual = size
            if self.benchmark and torch.device(engine.state.device).type == "cuda":
                logger.info(
                    "cuDNN measures its algorithms in the first step, which takes up to a minute; "
                    "--cudnn_benchmark False starts at once, and trains slower."
                )
        with memory_advice(self.advice), training_algorithms(self.benchmark and size == self._usual):
            if self._uses_graph is None:
                self._uses_graph = can_be_captured(engine)
            return self._step(engine, batch) if self._uses_graph else _detached(engine._iteration(engine, batch))

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
        """The captured step for a batch; ``None`` if it takes an ordinary step."""
        sizes = (image.shape, image.dtype, label.shape, label.dtype)
        form = (*sizes, _numbers(engine.loss_function, self.scheduled))
        self._alike = self._alike + 1 if form == self._last_form else 1
        self._last_form = form
        if self._alike == 2 and image.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(image.device)  # the first step had cuDNN try all its algorithms
        if self._captured is not None and self._captured.form == form:
            return self._captured
        if self._alike <= ORDINARY_STEPS:
            return None
        self._captured = None  # so that its memory is free for the next one
        try:
            with _as_before_if_it_fails(image.device):
                self._captured = CapturedStep(engine, image, label, form, self.scheduled)
        except (RuntimeError, TypeError) as error:  # PyTorch's own, of whatever cannot be captured
            self._uses_graph = False
            while error.__context__ is not None:  # PyTorch tells of the capture that failed, not of what made it fail
                error = error.__context__
            logger.warning(f"Training goes on without a CUDA graph, and slower: the step cannot be captured. {error}")
        return self._captured


class CapturedStep:
    """The forward pass, loss and backward pass of batches of one form as a CUDA graph.

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
        engine.optimizer.zero_grad(set_to_none=True)  # the graph makes the gradients, in its own memory
        values = self._values
        try:
            self._set_schedule(self._numbers)
            self._replay, (self.pred, self.loss) = capture(lambda: _gradients(engine, self.image, self.label))
        finally:
            self._set_schedule(values)
        parameters = [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]
        self._own_gradients = [(parameter, parameter.grad) for parameter in parameters]

    def run(self, image: torch.Tensor, label: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Compute the gradients of a batch; returns the predictions, which hold until the next step, and the loss."""
        self.image.copy_(image, non_blocking=True)
        self.label.copy_(label, non_blocking=True)
        self._read_schedule()
        for parameter, gradient in self._own_gradients:  # an ordinary step puts its own in their place
            parameter.grad = gradient
        self._replay()
        return self.pred, self.loss.clone()

    def _read_schedule(self) -> None:
        """Bring the scheduled numbers to the device if they have changed."""
        values = tuple(getattr(self.loss_function, name) for name in self.scheduled)
        if values != self._values:
            self._values = values
            for number, value in zip(self._numbers, values, strict=True):
                number.fill_(value)

    def _set_schedule(self, values: Iterable[float | torch.Tensor]) -> None:
        for name, value in zip(self.scheduled, values, strict=True):
            setattr(self.loss_function, name, value)


def can_be_captured(engine: SupervisedTrainer) -> bool:
    """Whether an engine's step can be a CUDA graph; see ``TrainingStep``."""
    return (
        engine.state.device.type in GRAPH_DEVICES
        and not engine.amp
        and engine.accumulation_steps == 1
        and isinstance(engine.prepare_batch, PrepareBatch)
        and not isinstance(engine.network, DistributedDataParallel)
        and not any(getattr(module, "checkpointing", False) for module in engine.network.modules())
    )


_graphs: list[Any] = []  # that are being captured; one that failed stays, since PyTorch's allocator still looks at it


def capture(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record ``work`` as a CUDA graph without doing it.

    Returns:
        What does it, each time that it is called, and the outputs of ``work``, which are written anew each time.

    Raises:
        RuntimeError: if ``work`` does what a graph cannot, or there is too little memory for it.
    """
    gc.collect()  # what holds an earlier step's gradients would tie the capture to it
    free, _ = torch.cuda.mem_get_info()
    free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    if free < 2 * torch.cuda.max_memory_allocated():  # for the graph, and for ordinary steps and validation beside it
        raise RuntimeError(f"It would take more than the {free / 2**30:.1f} GiB of the GPU's memory that are free.")
    graph = torch.cuda.CUDAGraph()
    _graphs.append(graph)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads read ahead meanwhile
        outputs = work()
    _graphs.remove(graph)
    return graph.replay, outputs


@contextmanager
def _as_before_if_it_fails(device: torch.device) -> Iterator[None]:
    """Leave a capture that fails as if it had not been tried: its stream, and its hold on the random numbers."""
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
    """Compute the gradients of a batch without a graph; returns the predictions and the loss."""
    engine.network.train()
    engine.optimizer.zero_grad(set_to_none=True)
    return _gradients(engine, image, label)


def _gradients(engine: SupervisedTrainer, image: torch.Tensor, label: torch.Tensor) -> tuple[Any, torch.Tensor]:
    pred = engine.inferer(image, engine.network)
    loss = engine.loss_function(pred, label).mean()
    loss.backward()
    return _detached(pred), loss.detach()


def _detached(value: Any) -> Any:
    """Tensors without what autograd knows of them, which would keep memory, and a later capture from working."""
    return tree_map_only(torch.Tensor, torch.Tensor.detach, value)


def _numbers(loss_function: Any, scheduled: Sequence[str]) -> list[tuple[str, Any]]:
    """The numbers, by name, that a loss would compute with; those that are scheduled are left out."""
    modules = loss_function.named_modules() if isinstance(loss_function, nn.Module) else ()
    attributes = ((f"{part}.{name}", value) for part, module in modules for name, value in vars(module).items())
    left_out = {f".{name}" for name in scheduled}
    return [(name, value) for name, value in attributes if isinstance(value, (int, float)) and name not in left_out]
