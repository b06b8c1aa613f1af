"""The bundle's segmentation network, cached in memory."""

from pathlib import Path

import torch

from ...files.foreign_files import open_image
from ...inference.segmenter import Segmenter
from ...runs.devices import require_device
from .options import Options
from .versions import NEWEST, Versions


class ModelStore:
    """Loads the network of a version; the last one is cached until its file changes.

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
            BundleError: if the version does not exist, or its weights do not fit the network.
        """
        path = self.versions.weights(version)
        state = path.stat()
        key = (path, state.st_mtime_ns, state.st_size)
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # never hold two networks in memory
            self._kept = (key, Segmenter(self.options.bundle, path, self.device))
        return self._kept[1]

    def state(self) -> str:
        """A string that changes when the newest network does."""
        path = self.versions.weights()
        return f"{self.versions.name_of(path.parents[1])} {path.stat().st_mtime_ns}"


def picture_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image file in pixels, from its header.

    Raises:
        BundleError: if it is not an image.
    """
    with open_image(path) as picture:
        return picture.height, picture.width
