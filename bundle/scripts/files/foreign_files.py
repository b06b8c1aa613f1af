"""Open files that others made, as data alone and within limits: images, JSON and tensors.

The environment variable ``LARGEST_IMAGE_MPX`` sets how many million pixels an image or a mask may have.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image

from ..errors import BundleError

LARGEST_IMAGE_MPX = 180.0


def limit_pixels() -> float:
    """Let PIL refuse images of more than ``LARGEST_IMAGE_MPX`` million pixels, before it decodes them.

    Returns:
        The limit, in millions of pixels.
    """
    limit = positive_setting("LARGEST_IMAGE_MPX", LARGEST_IMAGE_MPX)
    Image.MAX_IMAGE_PIXELS = int(limit * 1e6 / 2)  # PIL warns from here on and refuses from twice as many
    return limit


def positive_setting(name: str, default: float) -> float:
    """The number that an environment variable sets.

    Raises:
        BundleError: if it is no positive, finite number.
    """
    text = os.environ.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise BundleError(
            f"the environment variable {name} must be a positive number, got {text!r}; correct it, or unset it for "
            f"{default:g}."
        )
    return value


def open_image(path: str | Path) -> Image.Image:
    """Open an image file with PIL, which reads its header and, later, its pixels.

    Raises:
        BundleError: if it is no image, too large or several pictures; with its path.
    """
    limit = limit_pixels()
    try:
        image = Image.open(path)  # noqa: TID251
    except Image.DecompressionBombError as error:
        raise BundleError(
            f"{path} must have at most {limit:g} million pixels, got more: {error} If the file is meant to be so "
            "large, set the environment variable LARGEST_IMAGE_MPX."
        ) from error
    except Exception as error:  # damaged files make PIL raise errors of many kinds
        raise unreadable(path, error) from error
    return require_one_picture(image)


def unreadable(path: str | Path, error: Exception) -> BundleError:
    """The error that says what a file, which PIL could not read for ``error``, must be."""
    return BundleError(f"{path} must be a readable image, got {error!r}; replace the file.")


def require_one_picture(image: Image.Image) -> Image.Image:
    """``image`` itself if it is one picture; those that are smaller, of a pyramid or a preview, do not count.

    Raises:
        BundleError: if the file has a second picture of the same size, as animations and stacks have.
    """
    path = getattr(image, "filename", "the image")
    size, count = image.size, 1
    try:
        count = getattr(image, "n_frames", 1)
        if count > 1:
            image.seek(1)
            count = count if image.size == size else 1
            image.seek(0)
    except Exception as error:  # as above
        raise unreadable(path, error) from error
    if count > 1:
        raise BundleError(f"{path} must hold one picture, got {count}, an animation or a stack; save each as a file.")
    return image


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        BundleError: if it is no JSON in UTF-8, gives a key twice, or has NaN or infinity; with its path.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a JSON file; it does not exist.")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} must be JSON in UTF-8: {error}; correct it.") from error


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that stands in it twice would be lost."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise BundleError(f"the keys {sorted({key for key in keys if keys.count(key) > 1})} stand there twice")
    return content


def _refuse(constant: str) -> None:
    raise BundleError(f"{constant} is no number")


def read_tensors(path: str | Path) -> Any:
    """Read a file of ``torch.save`` or, by its suffix ``.safetensors``, of safetensors, on the CPU.

    Of ``torch.save``'s pickles tensors and plain Python values are read; anything else is refused, and never run.

    Raises:
        FileNotFoundError: if there is no such file.
        BundleError: if it is damaged, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must be a file of weights; it does not exist. Name another, or work in a finished run's folder."
        )
    if path.suffix.lower() == ".safetensors":
        try:
            return safetensors.torch.load_file(path)  # noqa: TID251
        except Exception as error:  # safetensors raises errors of its own, and torch others for types it has not
            raise BundleError(
                f"{path} must be a safetensors file; it cannot be read: {error}. Download or save it again."
            ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # torch raises errors of many types for foreign files, and advises to trust them
        raise BundleError(
            f"{path} must be a state dict written by torch.save; it cannot be read as one ({type(error).__name__}), "
            "and code and objects in it are not run: save `network.state_dict()`, or download the file again."
        ) from error
