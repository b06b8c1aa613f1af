"""Parse and validate the image region of a request."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import BundleError

CUT_PX = 2048  # default size in requests of MONAI Label's clients, whatever the image's size


def asked_region(request: Mapping[str, Any], level_sizes: Sequence[Sequence[int]]) -> tuple[int, int, int, int] | None:
    """The requested region, clipped to the image.

    Args:
        request: ``location``, x and y in pixels of level 0, and ``size``, width and height in pixels of ``level``, as
            in OpenSlide's ``read_region``. Without them, or with size 0 by 0 at 0, 0, the whole image.
        level_sizes: height and width of each level in pixels.

    Returns:
        Top, left, height and width in pixels of level 0; ``None`` for the whole image.

    Raises:
        BundleError: if the region is invalid, starts outside the image, or is larger than the image.
    """
    left, top = pixel_pair(request.get("location"), "location")
    width, height = pixel_pair(request.get("size"), "size")
    level = _level(request.get("level"), len(level_sizes))
    if (left, top, width, height) == (0, 0, 0, 0):
        return None
    full = level_sizes[0]
    if not (0 <= left < full[1] and 0 <= top < full[0]):
        raise BundleError(f"`location` must be within the image, {full[1]} x {full[0]} pixels, got {[left, top]}.")
    if width <= 0 or height <= 0:
        raise BundleError(f"`size` must be a positive width and height in pixels, got {[width, height]}.")
    there = level_sizes[level]
    if width > max(there[1], CUT_PX) or height > max(there[0], CUT_PX):
        raise BundleError(
            f"`size` must not be larger than the image, {there[1]} x {there[0]} pixels, got {[width, height]}; size "
            "[0, 0] at location [0, 0] requests the whole image."
        )
    width, height = (round(side * full[i] / there[i]) for side, i in ((width, 1), (height, 0)))
    return top, left, min(height, full[0] - top), min(width, full[1] - left)


def require_area(shape_px: Sequence[float], largest_mpx: float, where: str = "at the network's resolution") -> None:
    """Reject a region, given as height and width in pixels, that is too large for one request.

    Raises:
        BundleError: if it has more than ``largest_mpx`` megapixels.
    """
    area = shape_px[0] * shape_px[1] / 1e6
    if area > largest_mpx:
        raise BundleError(
            f"the region must have at most {largest_mpx:g} million pixels {where}, got {area:.0f}; "
            "request a smaller one, raise `--conf largest_mpx`, or segment the slide with the bundle's "
            "configs/inference_slides.json, which can be stopped and resumed."
        )


def pixel_pair(value: Any, name: str) -> tuple[int, int]:
    """Parse two whole numbers; ``None`` means 0 and 0."""
    if value is None:
        return 0, 0
    whole = isinstance(value, (list, tuple)) and all(type(part) is int for part in value)
    if not whole or len(value) != 2:
        raise BundleError(f"`{name}` must be two whole numbers of pixels, x first, got {value!r}.")
    return value[0], value[1]


def _level(value: Any, count: int) -> int:
    """Parse a level index; ``None`` means 0."""
    level = 0 if value is None else value
    if type(level) is not int or not 0 <= level < count:
        raise BundleError(f"`level` must be one of the image's levels 0..{count - 1}, got {value!r}.")
    return level
