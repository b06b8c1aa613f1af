"""Kill commands at random moments, repeat them, and compare what they leave with what they leave undisturbed.

    python tests/reliability/kill_anywhere.py FOLDER [--kills 50] [--seed 0]

The commands, on tiny data that are made in FOLDER, are: the preparation of a data set, a training of all stages, the
segmentation of a slide, and the export of a run. They take turns. Each is killed (SIGKILL, with all its processes) at a
moment between its first trace on the disk and its end, and then repeated until its end. A table says where the kills
hit; the exit status is 1 if any result is not the same, byte for byte. Not compared are logs, TensorBoard's files and
the slides' records, which tell of sessions; dates and minutes are taken out of a run's record and report.
"""

import hashlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bundle"), str(ROOT / "tests")]

import fire  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from synthetic_slide import write_slide  # noqa: E402
from tqdm import tqdm  # noqa: E402

from scripts.data.preparing.demo import make_demo_data  # noqa: E402
from scripts.runs.run_folder import read_record  # noqa: E402

BUNDLE = ROOT / "bundle"
NOT_COMPARED = {"run.log", "tensorboard", "record.json"}
TIMES = re.compile(
    r"\d{4}-\d\d-\d\d[T ][\d:]+(\+00:00)?(</td>\s*<td>[\d.]+)?"  # a date, in the report with minutes after it
    r'|"minutes": [\d.]+|<strong>[\d.]+</strong><span>minutes'
)
CONFIG = "['configs/train.json','configs/lite.json','configs/dataset_demo.json']"


@dataclass
class Command:
    """A command that is killed.

    Args:
        name: what it does.
        arguments: after ``python -m``, with ``OUTPUT`` for the folder that it makes.
        cwd: where it runs.
        stage: tells from the folder where a killed process was.
        result: what appears in the folder when the command has done its work and refuses to do it again, if it does.
    """

    name: str
    arguments: list[str]
    cwd: Path
    stage: Callable[[Path], str]
    result: str | None = None

    def start(self, output: Path) -> subprocess.Popen:
        """Start it as the leader of a group of processes."""
        arguments = [str(output) if part == "OUTPUT" else part for part in self.arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        log = open(output.parent / f"{output.name}.log", "w")
        command = [sys.executable, "-W", "ignore", "-m", *arguments]
        return subprocess.Popen(command, cwd=self.cwd, env=environment, stdout=log, stderr=log, start_new_session=True)

    def finish(self, output: Path) -> None:
        """Run it to its end."""
        process = self.start(output)
        if process.wait():
            log = (output.parent / f"{output.name}.log").read_text()
            raise RuntimeError(f"{self.name} must end without an error, but:\n{log[-2000:]}")


def stage_of_preparation(output: Path) -> str:
    """Preparation appears whole."""
    return "done" if output.exists() else "cutting"


def stage_of_training(output: Path) -> str:
    """The first stage that is not complete, and whether it had saved an epoch."""
    stages = read_record(output)["stages"]
    for stage, checkpoint in (
        ("train_classifier", "classifier.pt"),
        ("generate_pseudo_masks", None),
        ("train_segmenter", "segmenter.pt"),
    ):
        if stage not in stages:
            saved = checkpoint is not None and (output / "checkpoints" / checkpoint).exists()
            return f"{stage}, {'after' if saved else 'before'} the first epoch" if checkpoint else stage
    return "after the last stage"


def stage_of_slides(output: Path) -> str:
    """Whether strips were there, and results were being written."""
    if any(output.glob(".*.partial-*")):
        return "results"
    return "strips" if any(output.glob(".*.work/strips/*")) else "before the first strip"


def stage_of_export(output: Path) -> str:
    """The folder comes last."""
    return "after the archive" if any(output.glob("*.zip")) else "before the archive"


def contents(output: Path) -> dict[str, str]:
    """A hash of each file, times left out."""
    found = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output)
        if not path.is_file() or NOT_COMPARED & set(name.parts):
            continue
        content = path.read_bytes()
        if path.suffix == ".zip":  # has its files' times in it
            content = repr([(item.filename, item.CRC) for item in zipfile.ZipFile(path).infolist()]).encode()
        if path.suffix in (".json", ".html"):
            content = TIMES.sub("", content.decode()).encode()
        found[str(name)] = hashlib.sha256(content).hexdigest()
    return found


def seconds_to_first_trace(command: Command, output: Path) -> tuple[float, float]:
    """Run a command undisturbed; seconds until something of its output is on the disk, and until its end."""
    started, first = time.monotonic(), None
    process = command.start(output)
    while process.poll() is None:
        if first is None and any(path.suffix != ".log" for path in output.parent.glob(f"*{output.name}*")):
            first = time.monotonic() - started
        time.sleep(0.005)
    if process.returncode:
        raise RuntimeError(f"{command.name} must end without an error; see {output.parent}.")
    return first or 0.0, time.monotonic() - started


def commands(folder: Path) -> list[Command]:
    """The commands, and what they read."""
    data = make_demo_data(folder / "demo", 1, 64, num_train=8, num_val=3, num_test=2)
    source = make_demo_data(folder / "source", 2, 512, num_train=3, num_val=2, num_test=1, train_masks=True)
    for path in sorted((source / "train").glob("*/*.png")):  # what is cut has no labels
        path.rename(path.with_name(re.sub(r"-\[.*\]", "", path.name)))
    prepare = [
        "scripts",
        "prepare",
        "--source",
        str(source),
        "--output",
        "OUTPUT",
        "--patch-size",
        "64",
        "--stride",
        "16",
    ]
    tiny = ["--classifier_epochs", "2", "--epochs", "2"]
    tiny += ["--classifier_batch_size", "4", "--batch_size", "4", "--eval_batch_size", "3"]
    device = ["--device", "$torch.device('cpu')"]
    bundle = ["monai.bundle", "run"]
    training = [*bundle, "training", "--config_file", CONFIG, "--dataset_dir", str(data), "--output_dir", "OUTPUT"]
    train = Command("training", training + tiny + device, BUNDLE, stage_of_training)
    train.finish(folder / "trained")
    tiles = [np.asarray(Image.open(path)) for path in sorted((source / "train" / "img").glob("*.png"))]
    write_slide(folder / "slide.tif", np.concatenate(tiles[:2], axis=1), 1.0)
    slides = [*bundle, "--config_file", "configs/inference_slides.json", "--slides", str(folder / "slide.tif")]
    export = ["scripts", "export", str(folder / "trained")]
    return [
        Command("preparation", [*prepare, "--dataset", "configs/dataset_demo.json"], BUNDLE, stage_of_preparation, "."),
        train,
        Command("slides", [*slides, "--output_dir", "OUTPUT", *device], folder / "trained", stage_of_slides),
        Command(
            "export", [*export, "--output", "OUTPUT"], BUNDLE, stage_of_export, "esfan_histopathology_segmentation"
        ),
    ]


def kill_anywhere(folder: str, kills: int = 50, seed: int = 0) -> None:
    """See the module's docstring.

    Args:
        folder: to be made, for all data and results.
        kills: how many there are.
        seed: of the moments.
    """
    folder, chance = Path(str(folder)).resolve(), random.Random(seed)
    folder.mkdir(parents=True)
    made = commands(folder)
    times, whole = {}, {}
    for command in made:
        for attempt in ("whole", "again"):
            output = folder / f"{command.name}_{attempt}"
            times[command.name] = seconds_to_first_trace(command, output)
        whole[command.name] = contents(folder / f"{command.name}_whole")
        if whole[command.name] != contents(folder / f"{command.name}_again"):
            raise RuntimeError(f"{command.name} must leave the same twice when it is not killed.")
    hits, different, turns = Counter(), [], itertools.count()
    with tqdm(total=kills, desc="kills") as bar:
        while bar.n < kills:
            number = next(turns)
            command = made[number % len(made)]
            output = folder / f"{command.name}_{number}"
            process = command.start(output)
            try:
                process.wait(chance.uniform(*times[command.name]))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                hits[command.name, command.stage(output)] += 1
                bar.update()
            if command.result is None or not (output / command.result).exists():
                command.finish(output)
            left = [str(path) for path in [*folder.glob(f".{output.name}*"), *output.rglob("*.partial-*")]]
            found = contents(output)
            left += [name for name in whole[command.name] | found if whole[command.name].get(name) != found.get(name)]
            if left:
                different.append(f"{output}: {left}")
            else:
                shutil.rmtree(output)
    print("\n| command | killed | kills |\n|---|---|---|")
    for (name, stage), count in sorted(hits.items()):
        print(f"| {name} | {stage} | {count} |")
    print(f"\n{kills} kills, {len(different)} of which did not come to the same result.", *different, sep="\n")
    sys.exit(bool(different))


if __name__ == "__main__":
    fire.Fire(kill_anywhere)
