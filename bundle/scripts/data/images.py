"""Read images as 8-bit RGB."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import PILReader
from monai.transforms import EnsureChannelFirstd, EnsureTyped, LoadImaged, Transform
from PIL import Image

from ..errors import BundleError
from ..files.foreign_files import limit_pixels, require_one_picture, require_upright, unreadable


def require_rgb(image: Image.Image) -> Image.Image:
    """Return ``image`` if it is a single 8-bit RGB image.

    Raises:
        BundleError: if it is greyscale, has a palette, transparency or 16 bits, is an animation or a stack, or is to be
            turned before it is looked at.
    """
    require_upright(require_one_picture(image))
    mode = image.mode
    if mode == "RGB" and ";16" in str([tile[3] for tile in getattr(image, "tile", [])]):  # PIL cuts these to 8 bits
        mode = "RGB with 16 bits per colour"
    if mode != "RGB":
        raise BundleError(
            f"{getattr(image, 'filename', 'the image')} must be an 8-bit RGB image, got {mode}; convert it with "
            "`Image.open(…).convert('RGB').save(…)`."
        )
    return image


class RGBReader(PILReader):
    """MONAI's reader for PNG, JPEG, TIFF and BMP, restricted to 8-bit RGB images (``require_rgb``).

    Args:
        reverse_indexing: return (W, H, 3), as MONAI does by default; ``False`` returns (H, W, 3).
    """

    def read(self, data: Sequence[str | Path] | str | Path, **kwargs: Any) -> Any:
        """Open a file, within the size limit of ``foreign_files``."""
        limit_pixels()
        return super().read(data, **kwargs)

    def get_data(self, img: Image.Image) -> tuple[np.ndarray, dict]:
        """The pixels, uint8, and the metadata. (Checks belong here: if ``read`` fails, MONAI tries other readers.)"""
        require_rgb(img)
        try:
            return super().get_data(img)
        except Exception as error:  # damaged files make PIL raise errors of many kinds, without the file's name
            raise unreadable(img.filename, error) from error


def image_loading() -> list[Transform]:
    """Transforms that load an item's ``image``, the path of an image file, as a uint8 tensor (3, H, W), 0..255."""
    return [
        LoadImaged(keys="image", reader=RGBReader(reverse_indexing=False), image_only=True),
        EnsureChannelFirstd(keys="image", channel_dim=-1),
        EnsureTyped(keys="image", dtype=torch.uint8, track_meta=False),
    ]
