"""Which part of an image a request asks for."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import BundleError

CUT_PX = 2048  # MONAI Label's clients ask for so much, whatever the image's size, if they are not told otherwise


def asked_region(request: Mapping[str, Any], level_sizes: Sequence[Sequence[int]]) -> tuple[int, int, int, int] | None:
    """The region that a request asks for, cut to the image.

    Args:
        request: ``location``, x and y in pixels of level 0, and ``size``, width and height in pixels of ``level``, as
            OpenSlide reads. Without them, or with a size of 0 by 0 at 0, 0, all of the image.
        level_sizes: height and width of each level in pixels.

    Returns:
        Top, left, height and width in pixels of level 0; ``None`` for all of the image.

    Raises:
        BundleError: if the region is not one, begins outside the image, or is larger than it.
    """
    left, top = pixel_pair(request.get("location"), "location")
    width, height = pixel_pair(request.get("size"), "size")
    level = _level(request.get("level"), len(level_sizes))
    if (left, top, width, height) == (0, 0, 0, 0):
        return None
    full = level_sizes[0]
    if not (0 <= left < full[1] and 0 <= top < full[0]):
        raise BundleError(f"`location` must lie within the image, {full[1]} x {full[0]} pixels, got {[left, top]}.")
    if width <= 0 or height <= 0:
        raise BundleError(f"`size` must be a positive width and height in pixels, got {[width, height]}.")
    there = level_sizes[level]
    if width > max(there[1], CUT_PX) or height > max(there[0], CUT_PX):
        raise BundleError(
            f"`size` must not be larger than the image, {there[1]} x {there[0]} pixels, got {[width, height]}; a size "
            "of [0, 0] at location [0, 0] asks for all of it."
        )
    width, height = (round(side * full[i] / there[i]) for side, i in ((width, 1), (height, 0)))
    return top, left, min(height, full[0] - top), min(width, full[1] - left)


def require_area(shape_px: Sequence[float], largest_mpx: float, where: str = "at the network's resolution") -> None:
    """Refuse a region whose height and width, in pixels, are too much for one request.

    Raises:
        BundleError: if there are more than ``largest_mpx`` million pixels.
    """
    area = shape_px[0] * shape_px[1] / 1e6
    if area > largest_mpx:
        raise BundleError(
            f"the region must have at most {largest_mpx:g} million pixels {where}, got {area:.0f}; "
            "ask for a smaller one, raise `--conf largest_mpx`, or segment the slide by the bundle's "
            "configs/inference_slides.json, which can be stopped and goes on."
        )


def pixel_pair(value: Any, name: str) -> tuple[int, int]:
    """Two whole numbers; ``None`` is 0 and 0."""
    if value is None:
        return 0, 0
    whole = isinstance(value, (list, tuple)) and all(type(part) is int for part in value)
    if not whole or len(value) != 2:
        raise BundleError(f"`{name}` must be two whole numbers of pixels, x first, got {value!r}.")
    return value[0], value[1]


def _level(value: Any, count: int) -> int:
    """The number of a level; ``None`` is 0."""
    level = 0 if value is None else value
    if type(level) is not int or not 0 <= level < count:
        raise BundleError(f"`level` must be one of the image's levels 0..{count - 1}, got {value!r}.")
    return level
