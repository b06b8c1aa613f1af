"""The folder of a run (``output_dir``): a bundle of its own with the merged config, the code, the weights and a record.

``run.json`` is the record: which stages are complete, with their scores, the seed, versions and the code's revision.
"""

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .atomic import remove_leftovers, write_json
from .classes import Classes
from .foreign_files import read_json

logger = logging.getLogger(__name__)

BUNDLE_ROOT = Path(__file__).resolve().parent.parent
# settings that may change between the sessions of a run: where it happens and what is asked for, not what comes out
FREE_SETTINGS = {
    "check",
    "check_cams",
    "cuda_graph",
    "cudnn_benchmark",
    "dataset_dir",
    "fused_optimizer",
    "imports",
    "initialize",
    "label_file",
    "num_workers",
    "picture_names",
}
# settings of one session that the saved config has as the bundle's train.json has them
SESSION_SETTINGS = {"device", "finalize", "initialize", "rank", "redo", "synchronize", "world_size"}
# settings that inference.json has under the name they have in train.json, but of its own
OWN_INFERENCE_SETTINGS = {
    "_desc_",
    "cam_segmenter",
    "classification",
    "classifier_def",
    "dataset_dir",
    "device",
    "imports",
    "initialize",
    "memory_format",
    "network",
    "output_dir",
    "run",
    "segmenter_path",
    "train",
    "trained_segmenter",
    "validate",
}
NOTHING = object()  # the value of a key that is not there
SHOWN_DIFFERENCES = 5
BEGUN = ("configs", "scripts", "run.log", "tensorboard")  # what a run folder has before anything is made
SERVER_FOLDERS = ("bin", "lib", "logs", "model")  # that MONAI Label's server makes in scripts/label_app
PACKAGES = ("monai", "torch", "timm", "segmentation_models_pytorch", "pytorch-ignite", "numpy", "scikit-image")


def read_record(output_dir: str | Path) -> dict[str, Any]:
    """What ``run.json`` says; a record without stages if there is none yet."""
    path = Path(output_dir) / "run.json"
    return read_json(path) if path.exists() else {"stages": {}}


def is_complete(output_dir: str | Path, stage: str) -> bool:
    """Whether ``run.json`` says that a stage is complete and its result, moved with the folder or not, is there."""
    stages = read_record(output_dir)["stages"]
    if stage not in stages:
        return False
    result = Path(stages[stage]["result"])
    return result.exists() if result.is_absolute() else (Path(output_dir) / result).exists()


def portable(config: Mapping[str, Any], dataset_dir: str | Path, label_file: str | Path | None) -> dict[str, Any]:
    """``config`` as a run folder keeps it: paths that hold anywhere on this machine, and one process on any device."""
    template = read_json(BUNDLE_ROOT / "configs" / "train.json")
    kept = json.loads(json.dumps({key: value for key, value in config.items() if key != "_meta_"}, default=str))
    for key in sorted(SESSION_SETTINGS):
        kept.pop(key, None)
        if key in template:
            kept[key] = template[key]
    for section in ("classification", "train"):
        kept[section]["parallel_network"] = template[section]["parallel_network"]
    kept |= {"bundle_root": ".", "output_dir": "@bundle_root", "dataset_dir": str(Path(dataset_dir).resolve())}
    kept["label_file"] = None if label_file is None else str(Path(label_file).resolve())
    if isinstance(kept.get("source_dir"), str):
        kept["source_dir"] = str(Path(kept["source_dir"]).resolve())
    return kept


def open_run(
    output_dir: str | Path,
    config: Mapping[str, Any],
    dataset_dir: str | Path,
    label_file: str | Path | None = None,
    new_settings: bool = False,
) -> None:
    """Make ``output_dir`` a bundle with ``config``, or see that it is the folder of a run with the same settings.

    Args:
        output_dir: the run folder.
        config: the merged config, references unresolved.
        dataset_dir: the data set's folder, as an expression in ``config`` may not resolve elsewhere.
        label_file: likewise the file of labels, if there is one.
        new_settings: accept other settings than those the run began with.

    Raises:
        ValueError: if the folder has a run with other settings.
    """
    output_dir = Path(output_dir).resolve()
    config = portable(config, dataset_dir, label_file)
    if not new_settings:
        require_same_settings(output_dir, config)
    remove_leftovers(output_dir)
    if output_dir != BUNDLE_ROOT:
        for folder in ("configs", "scripts"):
            ignored = shutil.ignore_patterns(
                "__pycache__", "train.json", "inference.json", "metadata.json", "dataset_*.json", *SERVER_FOLDERS
            )
            shutil.copytree(BUNDLE_ROOT / folder, output_dir / folder, ignore=ignored, dirs_exist_ok=True)
    write_json(output_dir / "configs" / "train.json", config)


def require_same_settings(output_dir: Path, config: Mapping[str, Any]) -> None:
    """Raise a ValueError if ``output_dir`` has a run with other settings than ``config``, as ``portable`` gives it.

    A run that stopped before it had made anything does not count.
    """
    path = output_dir / "configs" / "train.json"
    made = (file for file in output_dir.rglob("*") if file.relative_to(output_dir).parts[0] not in BEGUN)
    if not path.exists() or not any(file.is_file() for file in made):
        return
    old = read_json(path)
    compared = [{key: value for key, value in one.items() if key not in FREE_SETTINGS} for one in (old, config)]
    changed = list(differences(*compared))
    if changed:
        shown = "; ".join(f"{key}: {there} there, {here} here" for key, there, here in changed[:SHOWN_DIFFERENCES])
        more = f"; and {len(changed) - SHOWN_DIFFERENCES} more" if len(changed) > SHOWN_DIFFERENCES else ""
        raise ValueError(
            f"`output_dir` {output_dir} must be new or hold a run with the same settings, but these differ from its "
            f"configs/train.json: {shown}{more}. Choose another --output_dir, or do its stages again with --redo."
        )


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two configs differ: the key, and the values of both as JSON, ``"nothing"`` where there is none."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted(old | new):
            yield from differences(old.get(name, NOTHING), new.get(name, NOTHING), f"{key}#{name}" if key else name)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and any(map(_is_tree, old + new)):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{key}#{index}")
    elif old is NOTHING or new is NOTHING or old != new:
        yield key, *("nothing" if value is NOTHING else _short(json.dumps(value)) for value in (old, new))


def _is_tree(value: Any) -> bool:
    return isinstance(value, (Mapping, list))


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def set_aside(output_dir: str | Path, outputs: Sequence[str | Path]) -> None:
    """Move files and folders of ``output_dir`` into ``previous/N`` in it, since a person may have edited them.

    Raises:
        ValueError: if one lies outside ``output_dir``; then nothing is moved.
    """
    output_dir = Path(output_dir).resolve()
    existing = [Path(path).resolve() for path in outputs if Path(path).exists()]
    for path in existing:
        if not path.is_relative_to(output_dir):
            raise ValueError(f"{path} must lie in {output_dir} to be made again; move it away yourself first.")
    if not existing:
        return
    number = 1 + max((int(path.name) for path in (output_dir / "previous").glob("[0-9]*")), default=0)
    for path in existing:
        target = output_dir / "previous" / str(number) / path.relative_to(output_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    logger.info(f"Moved {[str(path) for path in existing]} to {output_dir / 'previous' / str(number)}.")


def record_stage(output_dir: str | Path, stage: str, facts: Mapping[str, Any]) -> None:
    """Write into ``run.json`` that a stage is complete, with ``facts``, versions and the code's revision."""
    record = read_record(output_dir)
    result = Path(facts["result"])
    if result.is_relative_to(Path(output_dir).resolve()):
        facts = {**facts, "result": str(result.relative_to(Path(output_dir).resolve()))}
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


def write_inference_config(output_dir: str | Path, classes: Classes, patch_size: Sequence[int]) -> None:
    """Give a run folder the ``inference.json`` and ``metadata.json`` that fit its segmentation network.

    Args:
        output_dir: the run folder. Settings that ``inference.json`` shares with ``train.json`` are taken from its.
        classes: names and values; they have as many channels as the network's output.
        patch_size: height and width of the training patches in pixels.
    """
    configs, templates = Path(output_dir) / "configs", BUNDLE_ROOT / "configs"
    train = read_json(configs / "train.json")
    inference = read_json(templates / "inference.json")
    inference |= {key: train[key] for key in inference.keys() & train.keys() if key not in OWN_INFERENCE_SETTINGS}
    inference["patch_size"] = list(patch_size)
    write_json(configs / "inference.json", inference)
    metadata = read_json(templates / "metadata.json")
    channel_def = {str(value): name for value, name in enumerate(classes.value_names)}
    metadata["pred_classes"] = ", ".join(f"{value} {name}" for value, name in channel_def.items())
    network_data = metadata["network_data_format"]
    network_data["outputs"]["pred"] |= {"num_channels": len(classes), "channel_def": channel_def}
    for tensor in (network_data["inputs"]["image"], network_data["outputs"]["pred"]):
        tensor["spatial_shape"] = list(patch_size)
    write_json(configs / "metadata.json", metadata)
