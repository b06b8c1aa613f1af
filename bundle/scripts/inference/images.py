"""Write a segmentation network's predictions for images: palette masks and mask overlays."""

import logging
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar

from ..data.classes import Classes
from ..data.items import mask_name
from ..errors import BundleError
from ..files.pictures import overlay, uint8_image, write_mask, write_png
from ..runs.background_work import BackgroundWork

logger = logging.getLogger(__name__)


class SaveMasksHandler:
    """Write ``masks/NAME.png`` and ``overlays/NAME.png`` for each image of an evaluator.

    Items of the evaluator's output have ``pred``, a mask (1, H, W) in the bundle's values, and ``image``, (3, H, W) in
    [0, 1].

    Args:
        output_dir: parent of the two folders.
        classes: names, values and colours.
        published_values: write the values of the data set's published masks instead of the bundle's.
        opacity: opacity of the colours in the mask overlays, in [0, 1].
    """

    def __init__(
        self, output_dir: str | Path, classes: Classes, published_values: bool = False, opacity: float = 0.5
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
        self._count = 0
        self._work = BackgroundWork()

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        ProgressBar(desc="images", disable=None).attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Reset the image count."""
        self._count = 0

    def __call__(self, engine: Engine) -> None:
        """Write the masks and mask overlays of a batch."""
        names = [mask_name(item["name"]) for item in engine.state.batch]
        for name, output in zip(names, engine.state.output, strict=True):
            self._work.submit(self._write, name, output["pred"][0].numpy(), output["image"].cpu())
        self._count += len(names)

    def _write(self, name: str, mask: np.ndarray, image: torch.Tensor) -> None:
        """Write an image's two files."""
        write_mask(self.output_dir / "masks" / name, self.written_value[mask], self.written_palette)
        write_png(self.output_dir / "overlays" / name, overlay(uint8_image(image), mask, self.palette, self.opacity))

    def finish(self, engine: Engine) -> None:
        """Wait until all files are written, and log their folder."""
        self._work.finish()
        logger.info(f"Wrote masks and mask overlays of {self._count} images to {self.output_dir.resolve()}.")
