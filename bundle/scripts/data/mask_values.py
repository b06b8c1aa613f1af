"""Map the values in a data set's mask files to ours: 0 is background (or "rest"), 1 and up are tissues.

A data set's ``mask_values`` gives our value for each value in its files, e.g. ``{"0": 1, "1": 2, "4": 0}``; a key may
be an inclusive range, ``{"0": 0, "1-255": 1}``. Pixels of its ``ignore_value`` become ``IGNORED``: they take no part.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import BundleError
from ..files.foreign_files import open_image, require_upright, unreadable
from ..files.pictures import IGNORED

MASK_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L")  # PIL's modes with one whole number per pixel


def lookup_table(mask_values: Mapping[str, int], ignore_value: int | None = None) -> np.ndarray:
    """Our value for each file value 0..255: (256,) int16, -1 where ``mask_values`` has no entry.

    Args:
        mask_values: our value for each file value or range of values.
        ignore_value: the file value that becomes ``IGNORED``; ``None`` for none. ``IGNORED`` itself, the usual one, is
            ignored only if it has no entry in ``mask_values``.

    Raises:
        BundleError: for a key that is not a value or range within 0..255, a value mapped twice, or a value of ours that
            is not a whole number within 0..255; or for another ``ignore_value`` that is mapped too.
    """
    if not isinstance(mask_values, Mapping) or not all(isinstance(key, str) for key in mask_values):
        raise BundleError(
            f"`mask_values` must map each value in the masks to ours, got {mask_values!r}; write it as "
            f'{{"0": 0, "1-255": 1}}.'
        )
    table = np.full(256, -1, dtype=np.int16)
    for key, ours in mask_values.items():
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", key)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not low <= high <= 255:
            raise BundleError(
                f'`mask_values` must have keys such as "3" or "1-255" within 0..255, got {key!r}; rewrite the key.'
            )
        if type(ours) is not int or not 0 <= ours <= 255:
            raise BundleError(
                f"`mask_values` must map to whole numbers in 0..255, got {ours!r} for {key!r}; use a class's value."
            )
        if (table[low : high + 1] >= 0).any():
            raise BundleError(
                f"`mask_values` must list each value once, but {key!r} overlaps another entry; remove one of them."
            )
        table[low : high + 1] = ours
    if ignore_value is None:
        return table
    if type(ignore_value) is not int or not 0 <= ignore_value <= 255:
        raise BundleError(f"`ignore_value` must be in 0..255, or null for none, got {ignore_value!r}; use 255.")
    if table[ignore_value] < 0:
        table[ignore_value] = IGNORED
    elif ignore_value != IGNORED:
        raise BundleError(
            f"`ignore_value` must not be among `mask_values`, but {ignore_value} is; remove its entry, or set "
            "`ignore_value` to null."
        )
    return table


def to_ours(mask: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Map the values of ``mask``, (H, W) integers, through ``table`` (see ``lookup_table``) to (H, W) uint8.

    Raises:
        BundleError: if the mask has values without an entry in the table.
    """
    ours = np.where((mask >= 0) & (mask <= 255), table[np.clip(mask, 0, 255)], -1)
    if (ours < 0).any():
        unknown = np.unique(mask[ours < 0])
        raise BundleError(
            f"masks must only have values that `mask_values` lists ({np.flatnonzero(table >= 0).tolist()}), also got "
            f"{unknown[:10].tolist()}{' …' if len(unknown) > 10 else ''}; add an entry for each, set `ignore_value` "
            "to one that means nothing, or fix the mask."
        )
    return ours.astype(np.uint8)


def inverse(mask_values: Mapping[str, int]) -> dict[int, int]:
    """The file value for each of our values; the lowest if several map to the same one."""
    table = lookup_table(mask_values)
    return {int(ours): int(np.flatnonzero(table == ours)[0]) for ours in np.unique(table[table >= 0])}


def read_mask(path: str | Path) -> np.ndarray:
    """The values of the mask file ``path``, (H, W) integers; for a palette image the indices, not the colours.

    A greyscale mask stored as RGB, with three equal channels, is read as greyscale.

    Raises:
        BundleError: if the file is not a readable image, or has more than one number per pixel.
    """
    with open_image(path) as picture:
        mode = require_upright(picture).mode
        if mode == "RGB" and ";16" in str(getattr(picture, "tile", [])):  # PIL cuts these to 8 bits
            mode = "RGB with 16 bits per colour"
        try:
            mask = np.asarray(picture)
        except Exception as error:  # damaged files make PIL raise errors of many kinds
            raise unreadable(path, error) from error
    if mode == "RGB":
        if (mask == mask[..., :1]).all():
            return mask[..., 0]
        mode = "RGB with different channels"
    if mode not in MASK_MODES:
        raise BundleError(
            f"{path} must be a mask with one whole number per pixel (mode {', '.join(MASK_MODES)}, or RGB with three "
            f"equal channels), got mode {mode}; save it as a greyscale or palette PNG whose pixels are the class "
            "values."
        )
    return mask.astype(np.uint8) if mode == "1" else mask


def load_mask(path: str | Path, table: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Read the mask of an image and map its values.

    Args:
        path: the mask file.
        table: the new value for each value in the file (see ``lookup_table``).
        size: height and width of the image in pixels.

    Returns:
        (H, W) uint8.

    Raises:
        BundleError: if the file is not a mask, has a different size, or an unmapped value; with its path.
    """
    mask = read_mask(path)
    if mask.shape != tuple(size):
        raise BundleError(
            f"{path} must have the size of its image, {size[1]}x{size[0]}, got {mask.shape[1]}x{mask.shape[0]}; "
            "export both at the same scale."
        )
    try:
        return to_ours(mask, table)
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from error


def channel_of_value(values: Sequence[int], mask_values: Mapping[str, int] | None = None) -> dict[str, int]:
    """The channel of each of our mask values; 0 maps to ``K``, background, unless it has a channel. ``IGNORED`` stays.

    Args:
        values: mask value of each of the ``K`` channels.
        mask_values: for masks in a data set's values: ours for each of them, whose channel is then given in its place.
    """
    channels = {"0": len(values), str(IGNORED): IGNORED} | {str(value): at for at, value in enumerate(values)}
    return channels if mask_values is None else {key: channels[str(ours)] for key, ours in mask_values.items()}
