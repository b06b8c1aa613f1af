"""Transforms that MONAI lacks: bytes to floats, masks to channels, scores to masks."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..errors import BundleError
from .background import white_background
from .label_maps import largest_channel, require_channels
from .mask_values import load_mask, lookup_table


class ScaleBytesd(MapTransform):
    """Scale images from 0..255 to [0, 1] in one pass (``ScaleIntensityRanged`` takes several).

    Args:
        keys: uint8 tensors of any shape; they become float32.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            if item[key].dtype != torch.uint8:
                raise BundleError(f"{key!r} must be uint8, got {item[key].dtype}; it may already be scaled.")
            item[key] = item[key].contiguous() / 255
        return item


class LoadMaskd(MapTransform):
    """Read masks and map their values, for instance to the channel of each class.

    Args:
        keys: paths of masks; they become (1, H, W) uint8 tensors.
        mapping: the new value for each value, or inclusive range such as ``"1-255"``, that a mask may have.
        image_key: the image, (3, H, W), whose size the mask must match.
        ignore_value: the value of pixels that become ``IGNORED`` (see ``lookup_table``).

    Raises:
        BundleError: if a file is not a mask, differs in size from the image, or has an unmapped value; with its path.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mapping: Mapping[str, int],
        image_key: str = "image",
        ignore_value: int | None = None,
    ) -> None:
        super().__init__(keys)
        self.table = lookup_table(mapping, ignore_value)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = torch.from_numpy(load_mask(item[key], self.table, item[self.image_key].shape[1:]))[None]
        return item


class LargestChanneld(MapTransform):
    """Turn a network's scores into a mask: the mask value of the channel with the largest score; ties go to the first.

    This is where results leave the device: only the mask, not the scores, is copied to the host.

    Args:
        keys: scores, (K, H, W); they become masks, (1, H, W) uint8.
        values: the mask value of each channel.

    Raises:
        BundleError: if a score is NaN, which would silently become a class; infinite scores are allowed.
    """

    def __init__(self, keys: KeysCollection, values: Sequence[int]) -> None:
        super().__init__(keys)
        self.values = torch.tensor(values, dtype=torch.uint8)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            channel = largest_channel(torch.as_tensor(item[key])[None]).cpu()  # (1, H, W)
            require_channels(channel, f"{key!r} of {item.get('name', 'an image')}")
            item[key] = self.values[channel.long()]
        return item


class WhiteBackgroundd(MapTransform):
    """Set mask value 0, background, where the slide is white (see ``cam.white_background``).

    Args:
        keys: masks, (1, H, W) integer tensors on the host.
        image_key: the image, (3, H, W) in [0, 1].
        background: ``False`` leaves the masks unchanged, for data sets without background.
    """

    def __init__(self, keys: KeysCollection, image_key: str = "image", background: bool = True) -> None:
        super().__init__(keys)
        self.image_key = image_key
        self.background = background

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.background:
            white = white_background(torch.as_tensor(item[self.image_key])[None])  # (1, H, W)
            for key in self.key_iterator(item):
                item[key] = item[key].masked_fill(white, 0)
        return item
