"""Write a segmentation network's predictions for images: palette masks and mask overlays.

A mask's PNG has a text chunk, ``made_from``: a digest of the image, the network and the settings that made it. So an
interrupted job resumes, and a mask is made again if any of these has changed.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator

from ..data.classes import Classes
from ..data.image_folder import require_none_failed
from ..data.items import mask_name
from ..errors import BundleError
from ..files.foreign_files import open_image
from ..files.job_lock import only_job
from ..files.pictures import overlay, uint8_image, write_mask, write_png
from ..runs.background_work import BackgroundWork
from ..runs.progress import show_progress
from ..runs.settings import settings_used

logger = logging.getLogger(__name__)

MADE_FROM = "made_from"  # text chunk of a mask
NOT_IN_MASKS = (  # settings that do not change masks, and those whose files count by content
    "bundle_root",
    "config",
    "dataset_dir",
    "device",
    "eval_batch_size",
    "images",
    "made_from",
    "num_workers",
    "on_cuda",
    "output_dir",
    "segmenter_path",
)


class MadeFrom:
    """Digests of what masks are made from.

    Args:
        config: the merged config.
        weights: the network's weight file.
    """

    def __init__(self, config: Mapping[str, Any], weights: str | Path) -> None:
        self.config, self.weights = config, Path(weights)

    @cached_property
    def _shared(self) -> bytes:
        settings = settings_used(self.config, {"evaluator"}, NOT_IN_MASKS)
        return json.dumps(settings, sort_keys=True, default=str).encode() + _digest(self.weights.read_bytes())

    def __call__(self, image: str | Path) -> str:
        """The digest of an image file, the network and its settings."""
        return _digest(self._shared + _digest(Path(image).read_bytes())).hex()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def unfinished(
    images: Sequence[dict[str, Any]], output_dir: str | Path, made_from: Callable[[str], str]
) -> list[dict[str, Any]]:
    """The items ``images`` without a mask in ``output_dir`` that was made from the same image and settings."""
    left = [item for item in images if item["error"] or not _is_made(_mask_file(output_dir, item), item, made_from)]
    logger.info(f"{len(images)} images, {len(images) - len(left)} of which already have masks in {output_dir}.")
    return left


def _mask_file(output_dir: str | Path, item: Mapping[str, Any], folder: str = "masks") -> Path:
    return Path(output_dir) / folder / mask_name(item["name"])


def _is_made(mask: Path, item: Mapping[str, Any], made_from: Callable[[str], str]) -> bool:
    try:
        with open_image(mask) as picture:
            return picture.info.get(MADE_FROM) == made_from(item["image"])
    except BundleError:  # there is none, or it is damaged
        return False


def segment_images(evaluator: SupervisedEvaluator, saved: "SaveMasksHandler") -> None:
    """Run an evaluator on its images; only one job at a time may write to the output folder.

    Args:
        evaluator: has the handler ``saved``.
        saved: the handler that writes the masks.

    Raises:
        BundleError: at the end, if images could not be segmented; the message names them.
    """
    with only_job(saved.output_dir):
        if len(evaluator.data_loader):  # else all have masks
            evaluator.run()
    require_none_failed(saved.failures, saved.output_dir)


class SaveMasksHandler:
    """Write ``masks/NAME.png`` and ``overlays/NAME.png`` for each image of an evaluator.

    Items of the evaluator's output have ``pred``, a mask (1, H, W) in the bundle's values, and ``image``, (3, H, W) in
    [0, 1].

    Args:
        output_dir: parent of the two folders.
        classes: names, values and colours.
        published_values: write the values of the data set's published masks instead of the bundle's.
        opacity: opacity of the colours in the mask overlays, in [0, 1].
        made_from: gives the digest to note in the mask of an image file; ``None`` notes none.

    Attributes:
        failures: why images, by name, have no mask: the ``error`` of their items.
    """

    def __init__(
        self,
        output_dir: str | Path,
        classes: Classes,
        published_values: bool = False,
        opacity: float = 0.5,
        made_from: Callable[[str], str] | None = None,
    ) -> None:
        if not 0 <= opacity <= 1:
            raise BundleError(f"`opacity` must be in [0, 1], got {opacity}; 0.5 shows mask and image equally.")
        self.output_dir = Path(output_dir)
        self.palette = classes.palette
        self.opacity = opacity
        ours = np.arange(len(classes.palette), dtype=np.uint8)
        self.written_value = classes.published_values() if published_values else ours
        self.written_palette = np.zeros((256, 3), dtype=np.uint8)
        self.written_palette[self.written_value] = classes.palette
        self.made_from = made_from
        self.failures: dict[str, str] = {}
        self._count = 0
        self._work = BackgroundWork()

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        show_progress(engine, "images")
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Forget the images of an earlier run."""
        self._count = 0
        self.failures.clear()

    def __call__(self, engine: Engine) -> None:
        """Write the masks and mask overlays of a batch."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            if item.get("error"):
                self.failures[item["name"]] = item["error"]
                logger.error(f"{item['name']} failed: {item['error']}")
            else:
                self._work.submit(self._write, item, output["pred"][0].numpy(), output["image"].cpu())
                self._count += 1

    def _write(self, item: Mapping[str, Any], mask: np.ndarray, image: torch.Tensor) -> None:
        """Write an image's two files, the mask last: it says that both are there."""
        texts = None if self.made_from is None else {MADE_FROM: self.made_from(item["path"])}
        blended = overlay(uint8_image(image), mask, self.palette, self.opacity)
        write_png(_mask_file(self.output_dir, item, "overlays"), blended)
        write_mask(_mask_file(self.output_dir, item), self.written_value[mask], self.written_palette, texts)

    def finish(self, engine: Engine) -> None:
        """Wait until all files are written, and log their folder."""
        self._work.finish()
        logger.info(f"Wrote masks and mask overlays of {self._count} images to {self.output_dir.resolve()}.")
