"""Segment, and train on, as many patches as ``lite`` does in two hours; memory must not grow.

    python tests/reliability/load.py segment
    python tests/reliability/load.py train

``lite`` is timed on this machine first. Then the same engine goes round the demo's patches until the number is reached,
with a single 1x1 convolution in the network's place: its memory does not depend on how long it runs, and two hours pass
in minutes. Resident memory is printed as the work goes on; the exit status is 1 if at the end it is more than 2 % above
the least of what it was after each tenth of the work.
"""

import contextlib
import gc
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bundle"), str(ROOT / "tests")]

import fire  # noqa: E402
import torch  # noqa: E402
from ignite.engine import Events  # noqa: E402
from monai.bundle import ConfigParser  # noqa: E402

from scripts.data.preparing.demo import make_demo_data  # noqa: E402

HOURS = 2
NUM_PATCHES = 512
LARGEST_GROWTH = 0.02


def resident_mb():
    """Resident memory of this process in 10^6 bytes."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def parsed(configs, **settings):
    """A parser of the configs in the bundle's folder, for the CPU."""
    parser = ConfigParser()
    parser.read_config(configs)
    for name, value in {"device": "cpu", **settings}.items():
        parser[name] = value
    return parser


def patches_in_two_hours(engine):
    """How many patches an engine works through in two hours, by its second pass over 64 of them."""
    engine.run()
    started = time.perf_counter()
    engine.run()
    return int(HOURS * 3600 * 64 / (time.perf_counter() - started))


class MemoryLog:
    """Print the memory of an engine's process after each tenth of the epochs."""

    def __init__(self, epochs):
        self.tenth, self.epochs, self.found = max(1, epochs // 10), epochs, []

    def __call__(self, epoch):
        if epoch % self.tenth == 0:
            self.found.append(resident_mb())
            print(f"{epoch * NUM_PATCHES:9,d} patches  {self.found[-1]:7.1f} MB", flush=True)

    def verdict(self):
        """End with a status."""
        growth = self.found[-1] / min(self.found) - 1
        print(f"growth from the least to the end: {growth:.2%}, at most {LARGEST_GROWTH:.0%}")
        sys.exit(growth > LARGEST_GROWTH)


def demo(folder, num_train=1, num_val=1):
    """Patches of 128 px with masks."""
    return make_demo_data(folder / "demo", 0, 128, num_train=num_train, num_val=num_val, num_test=1, train_masks=True)


def segmenting(folder, images, **settings):
    """The engine of inference.json."""
    configs = ["configs/inference.json", "configs/lite.json", "configs/dataset_demo.json"]
    settings = {"dataset_dir": str(images), "output_dir": str(folder / "out"), **settings}
    settings = {"trained_segmenter": "@network_def", "patch_size": [128, 128], **settings}
    return parsed(configs, **settings).get_parsed_content("evaluator")


def segment():
    """Write masks and overlays of a folder of patches, again and again."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(ROOT / "bundle"):
        folder = Path(folder)
        few = demo(folder / "few", num_val=64)
        total = patches_in_two_hours(segmenting(folder, few / "val" / "img"))
        epochs = -(-total // NUM_PATCHES)
        print(f"lite segments {total:,d} patches in {HOURS} hours: {epochs} rounds of {NUM_PATCHES}", flush=True)
        many = demo(folder / "many", num_val=NUM_PATCHES)
        engine = segmenting(folder, many / "val" / "img", trained_segmenter=torch.nn.Conv2d(3, 3, 1))
        log = MemoryLog(epochs)
        for epoch in range(1, epochs + 1):
            engine.run()
            log(epoch)
    log.verdict()


def training(folder, data, epochs, **settings):
    """The trainer of stage 2."""
    configs = ["configs/train.json", "configs/lite.json", "configs/dataset_demo.json"]
    settings = {"output_dir": str(folder / "out"), "mask_dir": str(data / "train" / "mask"), **settings}
    settings = {"dataset_dir": str(data), "epochs": epochs, "encoder_weights": None, **settings}
    return parsed(configs, **settings).get_parsed_content("train#trainer")


def train():
    """Train stage 2, with its validation, checkpoints and curves."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(ROOT / "bundle"):
        folder = Path(folder)
        trainer, started = training(folder, demo(folder / "few", num_train=64), 2), []
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda: started.append(time.perf_counter()))
        trainer.run()
        total = int(HOURS * 3600 * 64 / (time.perf_counter() - started[-1]))
        epochs = -(-total // NUM_PATCHES)
        print(f"lite trains on {total:,d} patches in {HOURS} hours: {epochs} epochs of {NUM_PATCHES}", flush=True)
        many = demo(folder / "many", num_train=NUM_PATCHES, num_val=16)
        trainer = training(folder / "long", many, epochs, network=torch.nn.Conv2d(3, 3, 1))
        log = MemoryLog(epochs)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: log(engine.state.epoch))
        trainer.run()
    log.verdict()


if __name__ == "__main__":
    fire.Fire({"segment": segment, "train": train})
