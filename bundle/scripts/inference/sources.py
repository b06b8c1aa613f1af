"""Inputs of ``Segmenter.predict``: arrays, PIL images and files, one or several."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.image_folder import images_to_segment
from ..data.images import require_rgb
from ..errors import BundleError
from ..files.foreign_files import open_image
from ..slides.reading.files import find_slides, holds_slides

Source = np.ndarray | Image.Image | str | Path  # (H, W, 3) uint8, RGB; a PIL image; the path of an image or a slide


def sources_in(source: Any) -> list[Source] | None:
    """List the items of a list, a folder or a pattern of slides; ``None`` if ``source`` is none of them.

    For a folder, these are its slides, also in subfolders, if it has any, else its images.

    Raises:
        BundleError: if the list is empty.
        FileNotFoundError: if the file or folder does not exist, or the folder has no images or slides.
    """
    if isinstance(source, (list, tuple)):
        if not source:
            raise BundleError("`source` must have at least one image or slide, got an empty list.")
        return list(source)
    if isinstance(source, (str, Path)):
        slides = holds_slides(source)
        if Path(source).is_dir() and not slides:
            return [item["image"] for item in images_to_segment(source)]
        if slides and not Path(source).is_file():
            return list(find_slides(source))
    return None


def image_size(source: Any) -> tuple[int, int]:
    """Height and width of an image; for a file, from its header.

    Raises:
        BundleError: if it is not an image, or not 8-bit RGB.
    """
    if isinstance(source, (str, Path)):
        with open_image(source) as picture:
            return require_rgb(picture).size[::-1]
    if isinstance(source, Image.Image):
        return require_rgb(source).size[::-1]
    return require_pixels(source).shape[:2]


def require_pixels(pixels: Any) -> np.ndarray:
    """Return ``pixels`` if it is an 8-bit RGB image, (H, W, 3) uint8.

    Raises:
        BundleError: if it is anything else; the message says how to convert it.
    """
    if not isinstance(pixels, np.ndarray):
        raise BundleError(
            f"`source` must be an array (H, W, 3) uint8, a PIL image, a path, or a list of those, got "
            f"{type(pixels).__name__}; convert it to an array, `numpy.asarray(…)`."
        )
    shape, colour = pixels.shape, "`numpy.asarray(Image.open(…).convert('RGB'))`"
    if pixels.ndim == 2 or shape[2:] == (1,):
        remedy = f"it is greyscale: load it as RGB, {colour}."
    elif shape[2:] == (4,):
        remedy = "drop the alpha channel, `x[..., :3]`."
    elif pixels.ndim != 3 or shape[2] != 3 or 0 in shape:
        remedy = f"load it as {colour}; `x.transpose(1, 2, 0)` converts (3, H, W) to (H, W, 3)."
    elif pixels.dtype != np.uint8:
        remedy = "convert values in [0, 1] with `(255 * x).round().astype(numpy.uint8)`."
    else:
        return pixels
    raise BundleError(f"`source` must be an RGB image (H, W, 3) uint8, got {shape} {pixels.dtype}; {remedy}")
