"""The folder of a run (``output_dir``): a bundle of its own with the merged config, the code, the weights and a record.

``run.json`` is the record: which stages are complete, with their scores, the seed, versions and the code's revision.
"""

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .atomic import write_json

logger = logging.getLogger(__name__)

BUNDLE_ROOT = Path(__file__).resolve().parent.parent
# settings that may change between the sessions of a run: where it happens and what is asked for, not what comes out
FREE_SETTINGS = {
    "_meta_",
    "bundle_root",
    "dataset_dir",
    "device",
    "num_workers",
    "output_dir",
    "picture_names",
    "rank",
    "redo",
}
# settings that inference.json has under the name they have in train.json, but of its own
OWN_INFERENCE_SETTINGS = {
    "_desc_",
    "dataset_dir",
    "imports",
    "network",
    "output_dir",
    "run",
    "segmenter_path",
    "trained_segmenter",
}
PACKAGES = ("monai", "torch", "timm", "segmentation_models_pytorch", "pytorch-ignite", "numpy", "scikit-image")


def read_record(output_dir: str | Path) -> dict[str, Any]:
    """What ``run.json`` says; a record without stages if there is none yet."""
    path = Path(output_dir) / "run.json"
    return json.loads(path.read_text()) if path.exists() else {"stages": {}}


def open_run(output_dir: str | Path, config: Mapping[str, Any], dataset_dir: str | Path, new_settings: bool) -> None:
    """Make ``output_dir`` a bundle with ``config``, or see that it is the folder of a run with the same settings.

    Args:
        output_dir: the run folder.
        config: the merged config, references unresolved.
        dataset_dir: the data set's folder, as an expression in ``config`` may not resolve elsewhere.
        new_settings: accept other settings than those the run began with.

    Raises:
        ValueError: if the folder has a run with other settings.
    """
    output_dir = Path(output_dir).resolve()
    path = output_dir / "configs" / "train.json"
    config = json.loads(json.dumps({key: value for key, value in config.items() if key != "_meta_"}, default=str))
    config |= {"bundle_root": ".", "output_dir": "@bundle_root", "dataset_dir": str(Path(dataset_dir).resolve())}
    config["redo"] = None
    if path.exists():
        old = json.loads(path.read_text())
        changed = [key for key in sorted(config | old) if key not in FREE_SETTINGS and config.get(key) != old.get(key)]
        if changed and not new_settings:
            raise ValueError(
                f"`output_dir` {output_dir} must be new or hold a run with the same settings; {changed} differ from "
                "its configs/train.json. Choose another --output_dir, or do its stages again with --redo."
            )
    if output_dir != BUNDLE_ROOT:
        for folder in ("configs", "scripts"):
            ignored = shutil.ignore_patterns(
                "__pycache__", "train.json", "inference.json", "metadata.json", "dataset_*.json"
            )
            shutil.copytree(BUNDLE_ROOT / folder, output_dir / folder, ignore=ignored, dirs_exist_ok=True)
    write_json(path, config)


def set_aside(output_dir: str | Path, outputs: Sequence[str | Path]) -> None:
    """Move files and folders of ``output_dir`` into ``previous/N`` in it, since a person may have edited them."""
    output_dir = Path(output_dir)
    existing = [Path(path) for path in outputs if Path(path).exists()]
    if not existing:
        return
    number = 1 + sum(1 for _ in (output_dir / "previous").glob("*"))
    for path in existing:
        target = output_dir / "previous" / str(number) / path.relative_to(output_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    logger.info(f"Moved {[str(path) for path in existing]} to {output_dir / 'previous' / str(number)}.")


def record_stage(output_dir: str | Path, stage: str, facts: Mapping[str, Any]) -> None:
    """Write into ``run.json`` that a stage is complete, with ``facts``, versions and the code's revision."""
    record = read_record(output_dir)
    record["stages"][stage] = {
        "completed": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **facts,
        "revision": _git_revision(),
        "versions": {package: version(package) for package in PACKAGES},
    }
    write_json(Path(output_dir) / "run.json", record)


def forget_stage(output_dir: str | Path, stage: str) -> None:
    """Take a stage and those completed after it out of ``run.json``, so that they are done again."""
    record = read_record(output_dir)
    names = list(record["stages"])
    if stage in names:
        record["stages"] = {name: record["stages"][name] for name in names[: names.index(stage)]}
        write_json(Path(output_dir) / "run.json", record)


def _git_revision() -> str | None:
    """The revision of the code, with ``-dirty`` after it if files were changed; ``None`` outside a git checkout."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=BUNDLE_ROOT, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def write_inference_config(output_dir: str | Path, value_names: Sequence[str], num_classes: int) -> None:
    """Give a run folder the ``inference.json`` and ``metadata.json`` that fit its segmentation network.

    Args:
        output_dir: the run folder. Settings that ``inference.json`` shares with ``train.json`` are taken from its.
        value_names: the name of each mask value.
        num_classes: number of channels of the network's output.
    """
    configs, templates = Path(output_dir) / "configs", BUNDLE_ROOT / "configs"
    train = json.loads((configs / "train.json").read_text())
    inference = json.loads((templates / "inference.json").read_text())
    inference |= {key: train[key] for key in inference.keys() & train.keys() if key not in OWN_INFERENCE_SETTINGS}
    write_json(configs / "inference.json", inference)
    metadata = json.loads((templates / "metadata.json").read_text())
    channel_def = {str(value): name for value, name in enumerate(value_names)}
    metadata["pred_classes"] = ", ".join(f"{value} {name}" for value, name in channel_def.items())
    metadata["network_data_format"]["outputs"]["pred"] |= {"num_channels": num_classes, "channel_def": channel_def}
    write_json(configs / "metadata.json", metadata)
