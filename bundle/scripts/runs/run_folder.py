"""The run folder (``output_dir``): a self-contained bundle with the merged config, code, weights and a record.

``run.json`` is the record: the complete stages, with their scores, seed, package versions and code revision.
"""

import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ignite import distributed

from ..errors import BundleError
from ..files.atomic import NAMES, remove_leftovers, write_json
from ..files.foreign_files import read_json
from ..files.job_lock import LOCK
from .data_record import Fingerprint, data_differences
from .old_names import current_names
from .progress import duration

logger = logging.getLogger(__name__)

BUNDLE_ROOT = Path(__file__).resolve().parents[2]
OLD_STAGES = {"run": "train_segmenter"}  # their names in records of earlier versions
NOTHING = object()  # the value of a missing key
SHOWN_DIFFERENCES = 5
BEGUN = ("configs", "scripts", "run.json", "run.log", "tensorboard", LOCK)  # what a run folder has before any results
NETWORK = "models/model.pt"
CAM_STAGE = "make_cam_network"  # the stage that makes the CAMs the network
LOG = "run.log"  # name of the handler that writes it
DESCRIBING = ("train.json", "inference.json", "metadata.json")  # configs that a trained bundle has of its own
SERVER_FOLDERS = ("bin", "lib", "logs", "model")  # created by MONAI Label's server in scripts/label_app
PACKAGES = ("monai", "torch", "timm", "segmentation_models_pytorch", "pytorch-ignite", "numpy", "scikit-image")


def read_record(output_dir: str | Path) -> dict[str, Any]:
    """The content of ``run.json``; a record without stages if there is no file yet."""
    path = Path(output_dir) / "run.json"
    record = read_json(path) if path.exists() else {"stages": {}}
    record["stages"] = {OLD_STAGES.get(name, name): facts for name, facts in record["stages"].items()}
    return record


class RunFolder:
    """The folder of a run (``output_dir``); only one process at a time may write to it.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()

    @property
    def stages(self) -> dict[str, Any]:
        """The record of each complete stage, in the order they were completed."""
        return read_record(self.path)["stages"]

    def is_complete(self, stage: str) -> bool:
        """Whether a stage is recorded as complete and its result exists, even if the folder was moved."""
        record = self.stages.get(stage)
        return record is not None and (self.path / record["result"]).exists()

    @property
    def network_stage(self) -> str | None:
        """The complete stage whose result is the run's network; ``None`` if the run is not finished."""
        made = [stage for stage, facts in self.stages.items() if facts["result"] == NETWORK]
        return next((stage for stage in reversed(made) if self.is_complete(stage)), None)

    @property
    def has_second_stage(self) -> bool:
        """Whether the network is trained on masks; ``False`` if the classifier's CAMs are the network, or will be."""
        made = self.network_stage
        return made != CAM_STAGE if made else bool(self.saved_config().get("second_stage", True))

    def open(
        self,
        config: Mapping[str, Any],
        dataset_dir: str | Path,
        label_file: str | Path | None = None,
        new_settings: bool = False,
        data: Fingerprint | None = None,
    ) -> None:
        """Turn the folder into a bundle with ``config``, or check that its existing run has the same settings.

        Args:
            config: the merged config, references unresolved.
            dataset_dir: the data set's folder, since an expression in ``config`` may not resolve elsewhere.
            label_file: likewise the label file, if there is one.
            new_settings: accept settings and data that differ from those the run started with.
            data: the data set's fingerprint, to be recorded.

        Raises:
            BundleError: if the folder has a run with different settings.
        """
        if not new_settings:
            self.require_same_settings(config, data)
        remove_leftovers(self.path)
        if self.path != BUNDLE_ROOT:
            copy_code(self.path)
        write_json(self.path / "configs" / "train.json", portable(config, dataset_dir, label_file))
        if data:
            write_json(self.path / "run.json", read_record(self.path) | {"data": data})

    def saved_config(self) -> dict[str, Any]:
        """The merged config saved in the folder; empty if there is none yet."""
        path = self.path / "configs" / "train.json"
        return current_names(read_json(path)) if path.exists() else {}

    def data_differences(self, data: Fingerprint | None) -> list[str]:
        """How the data, given by their fingerprint, differ from those that the run recorded, if it did, in words.

        No data at all are no difference: a finished run may be looked at where they are missing.
        """
        recorded = read_record(self.path).get("data")
        return data_differences(recorded, data) if recorded and data else []

    def require_same_settings(self, config: Mapping[str, Any], data: Fingerprint | None = None) -> None:
        """Raise a ``BundleError`` if the folder has a run whose settings or data differ from ``config`` and ``data``.

        A run that stopped before it produced any results does not count.
        """
        made = (file for file in self.path.rglob("*") if file.relative_to(self.path).parts[0] not in BEGUN)
        old = self.saved_config()
        if not old or not any(file.is_file() for file in made):
            return
        free = config["run_settings"]["free"]
        new = portable(config, "", None)
        changed = list(differences(*({k: v for k, v in one.items() if k not in free} for one in (old, new))))
        if changed:
            shown = "; ".join(f"{key}: was {there}, now {here}" for key, there, here in changed[:SHOWN_DIFFERENCES])
            more = f"; and {len(changed) - SHOWN_DIFFERENCES} more" if len(changed) > SHOWN_DIFFERENCES else ""
            raise BundleError(
                f"`output_dir` {self.path} must be new or hold a run with the same settings, but these differ from its "
                f"configs/train.json: {shown}{more}. Restore the old values, choose another --output_dir, or pass "
                "--redo with the first stage that they affect."
            )
        changed_data = self.data_differences(data)
        if changed_data:
            raise BundleError(
                f"`output_dir` {self.path} must be new or hold a run on the same data, but they have changed since: "
                f"{'; '.join(changed_data)}. Restore the old data, choose another --output_dir, or pass --redo "
                f"{next(iter(self.stages), 'with the first stage')}."
            )

    @contextmanager
    def stage(self, stage: str) -> Iterator[dict[str, Any]]:
        """Run a stage within this context: time it, log it to ``run.log``, and record it as complete unless it fails.

        Args:
            stage: the stage's name.

        Yields:
            The stage's entry in the record, to be filled in: ``result``, the file without which it is not complete, and
            any other facts to record.
        """
        record: dict[str, Any] = {}
        if distributed.get_rank() > 0:
            yield record
            return
        log_to_file(self.path / "run.log")
        logger.info(f"{stage}: results go to {self.path}.")
        since = time.monotonic()
        yield record
        minutes = round((time.monotonic() - since) / 60, 2)
        self.complete(stage, record | {"minutes": minutes})
        logger.info(f"{stage}: complete after {duration(60 * minutes)}.")

    def complete(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Record that a stage is complete, with ``facts``, versions and the code's revision."""
        record, result = read_record(self.path), Path(facts["result"]).resolve()
        if result.is_relative_to(self.path):
            result = result.relative_to(self.path)
        record["stages"][stage] = {
            "completed": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **facts,
            "result": str(result),
            "revision": _git_revision(),
            "versions": {package: version(package) for package in PACKAGES},
        }
        write_json(self.path / "run.json", record)

    def undo(self, stage: str, outputs: Sequence[str | Path]) -> None:
        """Move a stage's outputs aside and remove it from the record.

        Args:
            stage: the stage's name.
            outputs: its outputs, followed by those derived from them.
        """
        log_to_file(self.path / "run.log")
        self.set_aside(
            list(reversed(outputs))
        )  # derived ones first: if interrupted, no output remains without its source
        self.forget(stage)

    def supersede(self, stage: str, outputs: Sequence[str | Path]) -> None:
        """Like ``undo``, but later stages stay complete: another stage is about to write these outputs."""
        self.set_aside(outputs)
        record = read_record(self.path)
        record["stages"].pop(stage, None)
        write_json(self.path / "run.json", record)

    def forget(self, stage: str) -> None:
        """Remove a stage and those completed after it from the record, so that they run again."""
        record = read_record(self.path)
        names = list(record["stages"])
        if stage in names:
            record["stages"] = {name: record["stages"][name] for name in names[: names.index(stage)]}
            write_json(self.path / "run.json", record)

    def set_aside(self, outputs: Sequence[str | Path]) -> None:
        """Move files and folders of the run into its ``previous/N``, since someone may have edited them.

        Raises:
            BundleError: if one is outside the run folder; then nothing is moved.
        """
        self._to_previous(outputs, os.replace)

    def keep_copies(self, outputs: Sequence[str | Path]) -> None:
        """Like ``set_aside``, but the last of ``outputs``, a file, is copied and also stays in place."""
        self._to_previous(outputs[-1:], shutil.copy2)
        self._to_previous(outputs[:-1], os.replace)

    def _to_previous(self, outputs: Sequence[str | Path], move: Callable[[Path, Path], Any]) -> None:
        existing = [Path(path).resolve() for path in outputs if Path(path).exists()]
        for path in existing:
            if not path.is_relative_to(self.path):
                raise BundleError(f"{path} must be inside {self.path} to be regenerated; move it away by hand first.")
        if not existing:
            return
        number = 1 + max((int(path.name) for path in (self.path / "previous").glob("[0-9]*")), default=0)
        for path in existing:
            target = self.path / "previous" / str(number) / path.relative_to(self.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            move(path, target)
        logger.info(f"Moved {[str(path) for path in existing]} to {self.path / 'previous' / str(number)}.")


def untrained(name: str) -> Path:
    """The config ``name`` as it is before a training; a trained bundle keeps it in ``untrained`` beside its own."""
    kept = BUNDLE_ROOT / "configs" / "untrained" / name
    return kept if kept.is_file() else BUNDLE_ROOT / "configs" / name


def copy_code(folder: Path) -> None:
    """Copy the bundle's scripts and configs, without the overlays of data sets, into a trained bundle's ``folder``."""
    for part in ("configs", "scripts"):
        ignored = shutil.ignore_patterns(".*", "__pycache__", *DESCRIBING, "dataset_*.json", *SERVER_FOLDERS)
        shutil.copytree(BUNDLE_ROOT / part, folder / part, ignore=ignored, dirs_exist_ok=True)
    (folder / "configs" / "untrained").mkdir(exist_ok=True)
    for name in DESCRIBING:
        shutil.copy(untrained(name), folder / "configs" / "untrained" / name)


def log_to_file(path: str | Path) -> None:
    """Also write the log, with full tracebacks, to a file, in the place of an earlier call's file."""
    path = Path(path).resolve()
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if handler.name == LOG]:
        if handler.baseFilename == str(path):
            return
        root.removeHandler(handler)
        handler.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", errors=NAMES)
    handler.set_name(LOG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(handler)
    logging.getLogger(__package__.partition(".")[0]).setLevel(logging.DEBUG)


def portable(config: Mapping[str, Any], dataset_dir: str | Path, label_file: str | Path | None) -> dict[str, Any]:
    """``config`` as saved in a run folder: paths valid anywhere on this machine, for a single process on any device."""
    template = read_json(untrained("train.json"))
    kept = json.loads(json.dumps({key: value for key, value in config.items() if key != "_meta_"}, default=str))
    for key in config["run_settings"]["of_a_session"]:
        *sections, name = key.split("#")
        there, here = template, kept
        for section in sections:
            there, here = there[section], here[section]
        here.pop(name, None)
        if name in there:
            here[name] = there[name]
    for section in ("train", "validate"):  # MONAI's --tracking adds handlers to them
        handlers = kept.get(section, {}).get("handlers")
        if isinstance(handlers, list):
            kept[section]["handlers"] = [handler for handler in handlers if not _tracks(handler)]
    kept |= {"bundle_root": ".", "output_dir": "@bundle_root", "dataset_dir": str(Path(dataset_dir).resolve())}
    kept["label_file"] = None if label_file is None else str(Path(label_file).resolve())
    if isinstance(kept.get("source_dir"), str):
        kept["source_dir"] = str(Path(kept["source_dir"]).resolve())
    return kept


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two configs differ: the key and both values as JSON, ``"nothing"`` where the key is missing."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted((old | new).keys() - {"_desc_"}):
            yield from differences(old.get(name, NOTHING), new.get(name, NOTHING), f"{key}#{name}" if key else name)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and any(map(_is_tree, old + new)):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{key}#{index}")
    elif old is NOTHING or new is NOTHING or old != new:
        yield key, *("nothing" if value is NOTHING else _short(json.dumps(value)) for value in (old, new))


def _is_tree(value: Any) -> bool:
    return isinstance(value, (Mapping, list))


def _tracks(handler: Any) -> bool:
    return isinstance(handler, Mapping) and handler.get("tracking_uri") == "@tracking_uri"


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _git_revision() -> str | None:
    """The code's revision, followed by ``-dirty`` if files were changed; ``None`` outside a git checkout."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=BUNDLE_ROOT,
            capture_output=True,
            encoding="utf-8",
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
