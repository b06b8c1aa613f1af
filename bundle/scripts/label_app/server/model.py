"""The bundle's segmentation network, kept in memory."""

from pathlib import Path

import torch

from ...files.foreign_files import open_image
from ...inference.segmenter import Segmenter
from ...runs.devices import require_device
from .options import Options
from .versions import NEWEST, Versions


class ModelStore:
    """Gives the network of a version, from memory if it is the one that was asked for last and its file is the same.

    Args:
        options: settings of the app.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.versions = Versions(options.bundle, options.versions_dir)
        self.device = str(require_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu")))
        self._kept: tuple[tuple, Segmenter] | None = None

    def get(self, version: str = NEWEST) -> Segmenter:
        """The network of a version.

        Raises:
            BundleError: if there is no such version, or its file is no network that fits.
        """
        path = self.versions.weights(version)
        state = path.stat()
        key = (path, state.st_mtime_ns, state.st_size)
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # two networks need not be in memory at a time
            self._kept = (key, Segmenter(self.options.bundle, path, self.device))
        return self._kept[1]

    def state(self) -> str:
        """A text that changes when the newest network does."""
        path = self.versions.weights()
        return f"{self.versions.name_of(path.parents[1])} {path.stat().st_mtime_ns}"


def picture_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image file in pixels, from its header.

    Raises:
        BundleError: if it is no image.
    """
    with open_image(path) as picture:
        return picture.height, picture.width
