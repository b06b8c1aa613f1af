"""Read untrusted files, as data only and within size limits: images, JSON and tensors.

The environment variable ``LARGEST_IMAGE_MPX`` sets how many megapixels an image or a mask may have.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import ExifTags, Image

from ..errors import BundleError

LARGEST_IMAGE_MPX = 180.0


def limit_pixels() -> float:
    """Make PIL reject images of more than ``LARGEST_IMAGE_MPX`` megapixels before decoding them.

    Returns:
        The limit in megapixels.
    """
    limit = positive_setting("LARGEST_IMAGE_MPX", LARGEST_IMAGE_MPX)
    Image.MAX_IMAGE_PIXELS = int(limit * 1e6 / 2)  # PIL warns above this and raises above twice this
    return limit


def positive_setting(name: str, default: float) -> float:
    """Read a number from an environment variable.

    Raises:
        BundleError: if it is not a positive, finite number.
    """
    text = os.environ.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise BundleError(
            f"the environment variable {name} must be a positive number, got {text!r}; set it to one, or unset it "
            f"to use {default:g}."
        )
    return value


def open_image(path: str | Path) -> Image.Image:
    """Open an image file with PIL, which reads the header now and the pixels later.

    Raises:
        BundleError: if it is not an image, is too large or holds several images; the message has the path.
    """
    limit = limit_pixels()
    try:
        image = Image.open(path)  # noqa: TID251
    except Image.DecompressionBombError as error:
        raise BundleError(
            f"{path} must have at most {limit:g} million pixels, got more: {error} If the file is meant to be that "
            "large, raise the environment variable LARGEST_IMAGE_MPX."
        ) from error
    except Exception as error:  # damaged files make PIL raise many types of error
        raise unreadable(path, error) from error
    return require_one_picture(image)


def require_upright(image: Image.Image) -> Image.Image:
    """Return ``image`` unless its EXIF data tell viewers to turn it: a mask may be drawn on either view.

    TIFFs are turned by PIL itself as it opens them.

    Raises:
        BundleError: if it is to be turned or mirrored.
    """
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):  # a PNG would be decoded
        return image
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation not in (0, 1):
        raise BundleError(
            f"{getattr(image, 'filename', 'the image')} must be stored upright, but its EXIF orientation is "
            f"{orientation}; convert it with `ImageOps.exif_transpose(Image.open(…)).save(…)`, and its mask with it."
        )
    return image


def unreadable(path: str | Path, error: Exception) -> BundleError:
    """The error for a file that PIL could not read because of ``error``."""
    return BundleError(f"{path} must be a readable image, got {error!r}; replace the file.")


def require_one_picture(image: Image.Image) -> Image.Image:
    """Return ``image`` if its file holds one image, not counting smaller ones such as pyramid levels or previews.

    Raises:
        BundleError: if the file has a second image of the same size, as animations and stacks do.
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
        raise BundleError(f"{path} must hold one image, got {count}, an animation or a stack; save each as a file.")
    return image


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: if the file does not exist.
        BundleError: if it is not JSON in UTF-8, repeats a key, or has NaN or infinity; the message has the path.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a JSON file; it does not exist.")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} must be JSON in UTF-8: {error}; fix the file.") from error


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, rejecting repeated keys, of which ``dict`` would keep only the last."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise BundleError(f"the keys {sorted({key for key in keys if keys.count(key) > 1})} are repeated")
    return content


def _refuse(constant: str) -> None:
    raise BundleError(f"{constant} is not a JSON number")


def read_tensors(path: str | Path) -> Any:
    """Read a ``torch.save`` file or, if its suffix is ``.safetensors``, a safetensors file, onto the CPU.

    From ``torch.save``'s pickles only tensors and plain Python values are read; anything else is rejected, never run.

    Raises:
        FileNotFoundError: if the file does not exist.
        BundleError: if it is damaged or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must be a weights file; it does not exist. Check the path, or run from a finished run's folder."
        )
    if path.suffix.lower() == ".safetensors":
        try:
            return safetensors.torch.load_file(path)  # noqa: TID251
        except Exception as error:  # safetensors has its own error types, and torch raises others for dtypes it lacks
            raise BundleError(
                f"{path} must be a safetensors file; it cannot be read: {error}. Download or save it again."
            ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # torch raises many types of error for such files, and its messages advise trusting them
        raise BundleError(
            f"{path} must be a state dict written by torch.save; it cannot be read as one ({type(error).__name__}), "
            "and objects and code in it are not loaded: save `network.state_dict()`, or download the file again."
        ) from error
