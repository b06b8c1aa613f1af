"""Training steps: the configured MONAI trainer beside the plain code, in turn, on batches in the device's memory.

The trainer is the one of the configs, with other data and without handlers; what it does in a step is measured,
whatever that is. The plain code is that of ``baselines``: fusion blocks, losses and DPR as they are written, float32,
PyTorch's own settings with cuDNN's benchmark.
"""

import gc
import itertools
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import baselines
import run
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from rows_environment import peak_tflops
from table import Conditions, Row, judged
from timing import peak_gib, plain_flags, precision_of, reset_peak, seconds, synchronize
from torch.utils.flop_counter import FlopCounterMode

from scripts.data.preparing.demo import make_demo_data
from scripts.runs.stages import stage_config

WARM_UP = 12  # steps of a run that are slower: kernels are chosen, graphs captured; 1 where rows are tried out
LR = 1e-5  # random weights stay what they are


class Stage(NamedTuple):
    """A stage in the configs.

    Args:
        name: its name.
        network, loss: their keys.
        momentum: of SGD, as the methods have it.
    """

    name: str
    network: str
    loss: str
    momentum: float


STAGES = {1: Stage("train_classifier", "classifier_def", "classifier_loss", 0.0005)}
STAGES[2] = Stage("train_segmenter", "segmenter_def", "segmenter_loss", 0.9)
CLASSES = {"esfan": 4, "ibdr": 2}
BATCHES = {("esfan", 1): 20, ("esfan", 2): 20, ("ibdr", 1): 20, ("ibdr", 2): 16}
LEAST_RATIOS = {("esfan", 1): 3.5, ("esfan", 2): 1.5, ("ibdr", 1): 2.0, ("ibdr", 2): 1.5}
MOST_LITE_MS = 8


class ReadyBatches:
    """What a loader gives, ready in the device's memory: two batches by turns.

    Args:
        batches: as the loader of a stage gives them: images uint8, and labels.
        length: number of batches in an epoch.
    """

    def __init__(self, batches: list[Mapping[str, torch.Tensor]], length: int) -> None:
        self.batches, self.length = batches, length
        self.dataset = range(length * len(batches[0]["image"]))  # its length is logged

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Mapping[str, torch.Tensor]]:
        return itertools.islice(itertools.cycle(self.batches), self.length)


def random_batches(stage: int, classes: int, batch: int, size: int, device: str) -> list[dict[str, torch.Tensor]]:
    """Two random batches: images (B, 3, H, W) uint8; labels (B, K) of 0 and 1, or masks (B, 1, H, W) uint8."""
    generator = torch.Generator().manual_seed(stage)

    def numbers(high, *shape):
        return torch.randint(0, high, shape, generator=generator, dtype=torch.uint8).to(device)

    return [
        {
            "image": numbers(256, batch, 3, size, size),
            "label": numbers(2, batch, classes).float() if stage == 1 else numbers(classes, batch, 1, size, size),
        }
        for _ in range(2)
    ]


class Blocks:
    """Trainer's handler: times blocks of steps after the warm-up, with a turn of something else after each.

    Args:
        between: does its turn, and returns its seconds; called the first time after a block that is not timed.
        steps: of a block.
        turns: number of blocks that are timed.
        warm_up: number of steps before them.
        device: what is waited for.
    """

    def __init__(self, between: Callable[[], float], steps: int, turns: int, warm_up: int, device: str) -> None:
        self.between, self.steps, self.turns, self.warm_up, self.device = between, steps, turns, warm_up, device
        self.own: list[float] = []
        self.other: list[float] = []
        self.peak: tuple[float, float] | None = None
        self._since = 0.0

    @property
    def length(self) -> int:
        """Steps of the whole run: warm-up, a block for the memory, those that are timed, and one to stop in."""
        return self.warm_up + (self.turns + 1) * self.steps + 1

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        reset_peak(self.device)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        done = engine.state.iteration - self.warm_up
        if done < self.steps or done % self.steps:
            return
        synchronize(self.device)
        if done == self.steps:
            self.peak = peak_gib(self.device)  # before anything else is in memory
            self.between()
        else:
            self.own.append((time.perf_counter() - self._since) / self.steps)
            self.other.append(self.between() / self.steps)
        if len(self.own) == self.turns:
            engine.terminate()
        self._since = time.perf_counter()

    def medians(self) -> tuple[float, float]:
        """Seconds of a step, and of the other's."""
        return statistics.median(self.own), statistics.median(self.other)


def configured_trainer(
    stage: int, overlays: list[str], loader: ReadyBatches, device: str, as_configured: bool = False, **settings: Any
):
    """The trainer of a stage, and the parser that made it.

    Args:
        as_configured: with handlers and augmentation; otherwise neither.
    """
    parser = run.configured(overlays, device, backbone_weights="$None", encoder_weights="$None", **settings)
    parser = ConfigParser(stage_config(parser.get(), STAGES[stage].name))
    parser["train#dataloader"] = loader
    parser["train#epochs"], parser["train#lr"] = 1, LR
    if not as_configured:
        parser["train#handlers"] = []
        parser["train#prepare_batch"] = {"_target_": "scripts.training.augmentation.PrepareBatch"}
    parser.get_parsed_content("initialize")  # cuDNN's settings, seeds
    return parser.get_parsed_content("train#trainer"), parser


def plain_steps(method: str, stage: int, overlays: list[str], batches, device: str) -> Callable[[int], None]:
    """Makes the plain code's training, and returns what does a number of its steps."""
    part, classes = STAGES[stage], CLASSES[method]
    network = run.build(method, part.network, classes, *overlays).train().to(device)
    loss = run.configured([f"configs/method_{method}.json", *overlays], num_classes=classes).get_parsed_content(
        part.loss
    )
    if stage == 1:
        network = baselines.with_plain_fusion(network)
        forward = network
    else:
        network = network.network
        compute, loss = baselines.PLAIN_STAGE_2[method]
        forward = lambda image: compute(network, image)  # noqa: E731
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=part.momentum, weight_decay=0.0005)
    ready = [(batch["image"] / 255, batch["label"] if stage == 1 else batch["label"][:, 0].long()) for batch in batches]

    def work(steps):
        for image, target in itertools.islice(itertools.cycle(ready), steps):
            optimizer.zero_grad()
            loss(forward(image), target).backward()
            optimizer.step()

    return work


def flops_per_image(method: str, stage: int, overlays: list[str], size: int, device: str) -> float:
    """Operations of a forward and a backward pass of our network, as PyTorch counts them, of two images, for one."""
    part, classes = STAGES[stage], CLASSES[method]
    network = run.build(method, part.network, classes, *overlays).train().to(device)
    loss = run.configured([f"configs/method_{method}.json", *overlays], num_classes=classes).get_parsed_content(
        part.loss
    )
    batch, _ = random_batches(stage, classes, 2, size, device)
    with FlopCounterMode(display=False) as counter:
        loss(network(batch["image"] / 255), batch["label"]).backward()
    return counter.get_total_flops() / 2


class Warnings(logging.Handler):
    """Keeps what the bundle warns of, for instance that a step goes on in a slower way."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.messages.append(record.getMessage()[:200])


def timed_blocks(trainer, blocks: Blocks) -> str:
    """Run a trainer that has ``blocks`` among its handlers from now on; what the bundle warned of meanwhile."""
    blocks.attach(trainer)
    kept, logger = Warnings(), logging.getLogger("scripts")
    logger.addHandler(kept)
    try:
        trainer.run()
    finally:
        logger.removeHandler(kept)
    if len(blocks.own) != blocks.turns:
        raise RuntimeError(f"{blocks.turns} blocks of steps must be timed, got {len(blocks.own)}.")
    return "".join(f"; warned: {message}" for message in dict.fromkeys(kept.messages))


def step_row(conditions: Conditions, method: str, stage: int, name: str, least: float | None, **settings: Any) -> Row:
    """A row of one way to make the steps of a stage, beside the plain code."""
    device, overlays = conditions.device, conditions.overlays
    batch, size = conditions.of(BATCHES[method, stage], 2), conditions.of(224, 64)
    batches = random_batches(stage, CLASSES[method], batch, size, device)
    plain: list[Callable[[int], None]] = []

    def turn():
        with plain_flags():
            if not plain:
                plain.append(plain_steps(method, stage, overlays, batches, device))
                plain[0](conditions.of(5, 1))  # cuDNN measures its algorithms
            return seconds(lambda: plain[0](blocks.steps), device)

    blocks = Blocks(turn, conditions.of(5, 1), conditions.of(5, 1), conditions.of(WARM_UP, 1), device)
    configs, loader = [f"configs/method_{method}.json", *overlays], ReadyBatches(batches, blocks.length)
    settings = {**settings, "num_classes": CLASSES[method]}
    trainer, parser = configured_trainer(stage, configs, loader, device, **settings)
    warned = timed_blocks(trainer, blocks)
    mine, theirs = blocks.medians()
    precision = precision_of(parser, device)
    del trainer, parser, plain[:]
    free(device)
    kind, peak = peak_tflops(precision, conditions)
    tflops = flops_per_image(method, stage, overlays, size, device) * batch / mine / 1e12
    free(device)
    figure = f"{mine * 1e3:.1f} ms, {batch / mine:.0f} images/s, {tflops / peak:.1%} of the {kind} peak"
    if blocks.peak is not None:
        figure += f", {blocks.peak[0]:.1f} GiB ({blocks.peak[1]:.1f} held)"
    return Row(
        f"{method}, stage-{stage} step, {batch} × {size} px, {name} ({precision})",
        figure,
        f"plain float32 {theirs * 1e3:.1f} ms: {theirs / mine:.2f} ×{warned}",
        numbers={
            "seconds": mine,
            "plain_seconds": theirs,
            "ratio": theirs / mine,
            "tflops": tflops,
            "peak_tflops": peak,
            "peak_gib": blocks.peak,
        },
        **judged(conditions, theirs / mine, least=least, unit=" ×"),
    )


def free(device: str) -> None:
    """Give memory back that nothing refers to."""
    gc.collect()
    reset_peak(device)


def both_stages(
    conditions: Conditions, method: str, name: str = "as configured", required: bool = False, **settings: Any
) -> Iterator[Row]:
    """Steps of both stages of a method, made in one way; ``settings`` are keys of the configs."""
    for stage in STAGES:
        least = LEAST_RATIOS[method, stage] if required else None
        yield step_row(conditions, method, stage, name, least, **settings)


esfan = partial(both_stages, method="esfan", required=True)
ibdr = partial(both_stages, method="ibdr", required=True)
float32_esfan = partial(both_stages, method="esfan", name="in float32", precision="float32")
float32_ibdr = partial(both_stages, method="ibdr", name="in float32", precision="float32")
compiled_esfan = partial(both_stages, method="esfan", name="compiled", compile=True)
compiled_ibdr = partial(both_stages, method="ibdr", name="compiled", compile=True)


def lite(conditions: Conditions) -> Iterator[Row]:
    """Steps of the small networks, bare and with handlers and augmentation."""
    device, classes = conditions.device, 3
    batch, size = conditions.of(16, 4), conditions.of(128, 64)
    overlays = ["configs/lite.json", "configs/dataset_demo.json"]
    counts = {"num_train": 4, "num_val": 1, "num_test": 1}
    data = make_demo_data(conditions.folder / "data" / "few", 0, size, **counts)
    for as_configured, (number, stage) in itertools.product((False, True), STAGES.items()):
        blocks = Blocks(lambda: 0.0, conditions.of(25, 1), conditions.of(5, 1), conditions.of(WARM_UP, 1), device)
        loader = ReadyBatches(random_batches(number, classes, batch, size, device), blocks.length)
        output_dir = str(conditions.folder / f"lite_steps_{number}")
        settings = {"dataset_dir": str(data), "output_dir": output_dir, "val_interval": 1000}
        trainer, parser = configured_trainer(number, overlays, loader, device, as_configured, **settings)
        warned = timed_blocks(trainer, blocks)
        mine, _ = blocks.medians()
        precision = precision_of(parser, device)
        ways = "with handlers and augmentation" if as_configured else "without handlers"
        memory = "" if blocks.peak is None else f", {blocks.peak[0]:.2f} GiB ({blocks.peak[1]:.2f} held)"
        yield Row(
            f"lite, stage-{number} step, {batch} × {size} px, {ways} ({precision})",
            f"{mine * 1e3:.1f} ms{memory}{warned}",
            numbers={"seconds": mine, "peak_gib": blocks.peak, "stage": stage.name},
            **judged(conditions, mine * 1e3, most=None if as_configured else MOST_LITE_MS, unit=" ms"),
        )
        del trainer, parser
        free(device)
