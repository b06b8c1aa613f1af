"""Segment many slides with one or more processes; an interrupted run can be resumed."""

import json
import logging
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime, timezone
from glob import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ...errors import BundleError
from ...files.atomic import LEFTOVER, write_json
from ...files.foreign_files import read_json
from ...files.job_lock import only_job
from ...runs.progress import Progress
from ..reading.description import BACKENDS, require_backends
from ..reading.files import list_slides
from ..reading.slide import Slide
from ..reading.slide_file import SlideFile
from .engine import SlideEngine, SlidePlan
from .strip_files import StripFiles

logger = logging.getLogger(__name__)

PACKAGES = ("monai", "torch", "numpy", "scikit-image", "tifffile", "openslide-python", "openslide-bin")


def segment_slides(
    engine: SlideEngine,
    slides: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    mpp: float | None = None,
    backends: str | Sequence[str] = BACKENDS,
    rank: int = 0,
    world_size: int = 1,
    config: Mapping[str, Any] | None = None,
    overrule_mpp: bool = False,
) -> None:
    """Segment slides, each into a folder of its name in ``output_dir``.

    Finished slides, and finished strips of unfinished slides, are kept. Several processes divide the strips of each
    slide among them; they need a shared folder.

    Args:
        engine: the network and its settings.
        slides: slides, folders, patterns or lists of slides (see ``list_slides``).
        output_dir: output folder.
        mpp: micrometres per pixel of level 0 of slides whose files do not state it.
        backends: readers in the order to prefer them, as a sequence or separated by commas.
        rank, world_size: index of this process and number of processes.
        config: the merged config, for each slide's record.
        overrule_mpp: whether ``mpp`` is used even if a file states another; a table's always is.

    Raises:
        BundleError: at once, if a setting is invalid; at the end, if slides failed; the message names them.
    """
    backends = require_backends(backends)
    if overrule_mpp and mpp is None:
        raise BundleError("`overrule_mpp` must come with the right size, got no `mpp`; add --mpp.")
    files, failures = list_slides(slides), {}
    for number, file in enumerate(files):
        task = SlideTask(engine, file, Path(output_dir), mpp, backends, config, overrule_mpp)
        label = f"slide {number + 1}/{len(files)} {file.name}"
        keeper = number % world_size  # the process that writes the results, and until then keeps the lock
        with ExitStack() as lock:
            error = None
            if rank == keeper:
                error = _attempt(lambda: lock.enter_context(only_job(task.folder, beside=True)))
            if _gather(error, world_size)[keeper] is None:
                error = _attempt(lambda: task.compute(rank, world_size, label))
            error = next((found for found in _gather(error, world_size) if found), None)
            if error is None and rank == keeper:
                error = _attempt(lambda: task.save(world_size))
                if error is None:
                    logger.info(f"{label}: {'already complete' if task.complete else 'done'}, in {task.folder}.")
        if error is not None:
            failures[file.name] = error
            logger.error(f"{label} failed: {error}")
    for others in _gather(failures, world_size):
        failures |= others
    if failures:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in sorted(failures.items()))
        rest = ", the others are complete" if len(failures) < len(files) else ""
        raise BundleError(f"{len(failures)} of {len(files)} slides failed{rest}:\n{reasons}")


def _attempt(step: Callable[[], None]) -> str | None:
    """Run a step and return its error message, if any: one bad slide must not stop the others."""
    try:
        step()
    except Exception as error:
        logger.debug("Full traceback:", exc_info=True)
        return str(error) or repr(error)
    return None


def _gather(value: Any, world_size: int) -> list[Any]:
    """Gather the values of all processes, waiting for them."""
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(values, value)
    return values


class SlideTask:
    """Processing of one slide, from the file to its results folder.

    Args:
        engine: the network and its settings.
        file: the slide.
        output_dir: folder for the results of all slides.
        mpp, backends, config, overrule_mpp: as for ``segment_slides``.
    """

    def __init__(
        self,
        engine: SlideEngine,
        file: SlideFile,
        output_dir: Path,
        mpp: float | None,
        backends: Sequence[str],
        config: Mapping[str, Any] | None = None,
        overrule_mpp: bool = False,
    ) -> None:
        self.engine, self.path, self.backends, self.config = engine, file.path, backends, config
        if file.mpp is not None:
            self.pixel_size = {"mpp": file.mpp, "overrule_mpp": True, "mpp_from": "table"}
        else:
            self.pixel_size = {"mpp": mpp, "overrule_mpp": overrule_mpp}
        self.folder = (output_dir / file.name).resolve()
        self.work = self.folder.with_name(f".{self.folder.name}.work")
        self.strips = StripFiles(self.work / "strips")
        self.begun, self.since = datetime.now(timezone.utc), time.monotonic()
        self.complete = False

    def compute(self, rank: int, world_size: int, label: str) -> None:
        """Plan the slide and compute this process's strips."""
        self.plan = self.engine.plan(Slide(self.path, backends=self.backends, **self.pixel_size))
        self.complete = require_same(self.plan, self.folder, self.work)
        if not self.complete:
            total = self.engine.tiles_left(self.plan, self.strips, rank, world_size)
            with Progress(total, label, "tile", show=rank == 0) as bar:
                self.engine.compute(self.plan, self.strips, rank, world_size, bar.update)

    def save(self, world_size: int) -> None:
        """Write the results, unless they exist."""
        if self.complete:
            return
        for leftover in self.folder.parent.glob(f".{escape(self.folder.name)}{LEFTOVER}*"):  # from a killed process
            shutil.rmtree(leftover, ignore_errors=True)
        record = describe_run(self.plan, self.begun, time.monotonic() - self.since, world_size, self.config)
        self.engine.save(self.plan, self.strips, self.folder, record)
        shutil.rmtree(self.work)


def require_same(plan: SlidePlan, folder: Path, work: Path) -> bool:
    """Whether a slide is complete; existing files must come from the same slide and settings.

    Raises:
        BundleError: if they do not.
    """
    complete = (folder / "record.json").exists()
    if folder.exists() and not complete:
        raise BundleError(
            f"{folder} must be new or hold a slide's results; move it away, or choose another output_dir."
        )
    path = folder / "record.json" if complete else work / "settings.json"
    if path.exists():
        stored = read_json(path)
        stored = stored["settings"] if complete else stored
        changed = [key for key in sorted(stored | plan.settings) if stored.get(key) != plan.settings.get(key)]
        if changed:
            raise BundleError(
                f"{folder if complete else work} must be new or come from the same slide and settings; {changed} "
                "differ. Remove it, or choose another output_dir."
            )
    elif not complete:
        write_json(path, plan.settings)
    return complete


def describe_run(
    plan: SlidePlan, begun: datetime, seconds: float, world_size: int, config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Describe when and how a slide was segmented, and with which software."""
    return {
        "slide": str(plan.slide.path.resolve()),
        "image": asdict(plan.slide.image),
        "tissue_share": round(float(plan.tissue.mean()), 6),
        "begun": begun.isoformat(timespec="seconds"),
        "seconds_in_this_session": round(seconds, 1),
        "tiles": int(plan.blender.cells.sum()),
        "processes": world_size,
        "threads_of_torch": torch.get_num_threads(),
        "device": str(plan.blender.segmenter.device),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "config": json.loads(json.dumps(config, default=str)),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
