"""Makes what is kept here, or compares with it, in the repository's folder:

    python tests/stored_runs/make.py make FOLDER
    python tests/stored_runs/make.py compare FOLDER

``small_run.zip`` is the folder of a finished run as the code of a certain day left it (``run.json`` in it says which):
later code must still open it. ``demo_numbers.json`` has the losses and scores of short trainings on the demo's data:
changes that are to keep the numbers are compared with them, on one kind of processor to the digit.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
BUNDLE = HERE.parents[1] / "bundle"
sys.path.insert(0, str(BUNDLE))

from scripts.data.preparing.demo import make_demo_data  # noqa: E402
from scripts.evaluation.report.curves import read_curves  # noqa: E402

SMALL = {  # networks of half a million parameters, so that the folder is small
    "preset": "small",
    "classifier_def#backbone": {
        "_target_": "scripts.networks.TimmBackbone",
        "name": "mobilenetv3_small_050",
        "output_stride": 16,
    },
    "classifier_def#frozen": ["backbone.model.conv_stem", "backbone.model.bn1"],
    "encoder_decoder": {
        "_target_": "segmentation_models_pytorch.DeepLabV3Plus",
        "encoder_name": "tu-mobilenetv3_small_050",
        "encoder_weights": None,
        "encoder_output_stride": 16,
        "decoder_channels": 32,
        "classes": "@num_classes",
    },
    "backbone_weights": None,
    "encoder_weights": None,
}


def train(output_dir: Path, overlays: list[str], **settings) -> None:
    """Train both stages for two epochs on the CPU, from the bundle's folder."""
    configs = str(["configs/train.json", *overlays])
    settings = {"device": "cpu", "output_dir": output_dir, "classifier_epochs": 2, "epochs": 2, **settings}
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", configs, *options]
    subprocess.run(command, cwd=BUNDLE, check=True)


def small_run(folder: Path) -> None:
    """Write ``small_run.zip``: weights in half precision, without pictures and curves, and what a resume would need."""
    run, overlay = folder / "small_run", folder / "small.json"
    overlay.write_text(json.dumps(SMALL), encoding="utf-8")
    make_demo_data(folder / "small_demo", 0, 64, num_train=32, num_val=4, num_test=2)
    batches = {"classifier_batch_size": 4, "batch_size": 4}
    overlays = ["configs/lite.json", "configs/dataset_demo.json", str(overlay)]
    train(run, overlays, dataset_dir=folder / "small_demo", **batches)
    for name in ("checkpoints", "pictures", "tensorboard"):
        shutil.rmtree(run / name)
    for path in run.glob("models/**/*.pt"):
        state = torch.load(path, weights_only=True)
        torch.save({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, path)
    shutil.make_archive(str(HERE / "small_run"), "zip", run)


def demo_numbers(folder: Path) -> dict:
    """Losses of each step, and mean IoU of each stage and split, of both methods with the networks of ``lite``."""
    numbers = {}
    for method in ("esfan", "ibdr"):
        run = folder / method
        train(run, [f"configs/method_{method}.json", "configs/lite.json", "configs/dataset_demo.json"])
        scores = {path.stem: json.loads(path.read_text()) for path in sorted((run / "scores").glob("*_*.json"))}
        numbers[method] = {
            "losses": {
                name: [value for _, value in points] for name, points in read_curves(run / "tensorboard").items()
            },
            "mean_iou": {name: score["protocols"]["published"]["mean_iou"] for name, score in scores.items()},
        }
    return numbers


def compare(folder: Path) -> None:
    """Train again, and print by how much each loss and score differs from ``demo_numbers.json``."""
    kept, numbers = json.loads((HERE / "demo_numbers.json").read_text(encoding="utf-8")), demo_numbers(folder)
    for method, groups in kept.items():
        for name, old in [*groups["losses"].items(), *groups["mean_iou"].items()]:
            new = (numbers[method]["losses"] | numbers[method]["mean_iou"]).get(name)
            pairs = [(old, new)] if isinstance(old, float) else list(zip(old, new, strict=True))
            print(method, name, len(pairs), "values, largest difference", max(abs(a - b) for a, b in pairs))


def make(folder: Path) -> None:
    """Write both files."""
    small_run(folder)
    (HERE / "demo_numbers.json").write_text(json.dumps(demo_numbers(folder), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    folder = Path(sys.argv[2]).resolve()
    folder.mkdir(parents=True)
    {"make": make, "compare": compare}[sys.argv[1]](folder)
