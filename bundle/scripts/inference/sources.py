"""What ``Segmenter.predict`` takes: arrays, pictures, files, and several of them."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import require_rgb
from ..data.items import find_images
from ..errors import BundleError
from ..files.foreign_files import open_image
from ..slides.reading.files import find_slides, holds_slides

Source = np.ndarray | Image.Image | str | Path  # (H, W, 3) uint8, RGB; a picture; the path of an image or a slide


def sources_in(source: Any) -> list[Source] | None:
    """The members of a list or the files of a folder: its slides if it has any, or else its images; ``None`` if
    ``source`` is neither.

    Raises:
        BundleError: if the list is empty.
        FileNotFoundError: if there is no such file or folder, or nothing in the folder.
    """
    if isinstance(source, (list, tuple)):
        if not source:
            raise BundleError("`source` must have at least one image or slide, got an empty list.")
        return list(source)
    if isinstance(source, (str, Path)):
        slides = holds_slides(source)
        if Path(source).is_dir():
            return list(find_slides(source) if slides else find_images(source))
    return None


def image_size(source: Any) -> tuple[int, int]:
    """Height and width of an image; of a file from its header.

    Raises:
        BundleError: if it is no image, or not 8-bit RGB.
    """
    if isinstance(source, (str, Path)):
        with open_image(source) as picture:
            return require_rgb(picture).size[::-1]
    if isinstance(source, Image.Image):
        return require_rgb(source).size[::-1]
    return require_pixels(source).shape[:2]


def require_pixels(pixels: Any) -> np.ndarray:
    """``pixels`` itself if it is an array of an 8-bit RGB image, (H, W, 3) uint8.

    Raises:
        BundleError: if it is anything else; it says how to make one of it.
    """
    if not isinstance(pixels, np.ndarray):
        raise BundleError(
            f"`source` must be an array (H, W, 3) uint8, a PIL image, a path, or a list of those, got "
            f"{type(pixels).__name__}; make an array of it, `numpy.asarray(…)`."
        )
    shape, colour = pixels.shape, "`numpy.asarray(Image.open(…).convert('RGB'))`"
    if pixels.ndim == 2 or shape[2:] == (1,):
        remedy = f"it is grey: load it in colour, {colour}."
    elif shape[2:] == (4,):
        remedy = "leave its transparency out, `x[..., :3]`."
    elif pixels.ndim != 3 or shape[2] != 3 or 0 in shape:
        remedy = f"load it as {colour}; of (3, H, W) `x.transpose(1, 2, 0)` makes (H, W, 3)."
    elif pixels.dtype != np.uint8:
        remedy = "numbers in [0, 1] become bytes by `(255 * x).round().astype(numpy.uint8)`."
    else:
        return pixels
    raise BundleError(f"`source` must be an RGB image (H, W, 3) uint8, got {shape} {pixels.dtype}; {remedy}")
