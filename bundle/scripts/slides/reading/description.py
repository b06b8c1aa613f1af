"""What a slide is, in the same terms for every backend and format."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import BundleError
from ...files.foreign_files import limit_pixels, positive_setting

BACKENDS = ("openslide", "cucim", "tifffile")
PLAUSIBLE_MPP = (0.02, 20.0)  # a TIFF without a real resolution often states 72 or 96 dpi, about 300 um per pixel
LARGEST_SLIDE_GPX = 100.0
LARGEST_SHIFT = 0.02  # relative difference of a level's two downsampling ratios
WHITE = (255, 255, 255)
Size = tuple[int, int]  # height and width in pixels
ReadRegion = Callable[[int, int, int, int, int], np.ndarray]  # level, top, left, height, width: (h, w, 3) uint8


@dataclass(frozen=True)
class SlideImage:
    """A slide's image as a viewer shows it: cropped to its bounds, in RGB, without labels and photographs.

    Args:
        backend: the reader, one of ``BACKENDS``.
        format: the file's format as its reader names it, for instance ``"aperio"`` or ``"ome"``.
        level_sizes: height and width of each level in pixels, finest first.
        level_scales: pixels of level 0 per pixel of each level, (y, x).
        unit_sizes: height and width of what is decoded at a time, if the reader says.
        mpp: micrometres per pixel of level 0, (y, x); ``None`` if unknown.
        mpp_source: where that is from, for instance ``"OME-XML"``.
        bounds: top, left, height and width of the scanned part in pixels of the file's level 0, where the coordinates
            start; ``None`` if that is the whole image.
        colour_model: how the file stores colours, for instance ``"RGB"`` or ``"CMYK"``; they are read as RGB.
        planes: number of planes or pages that hold one colour each; 1 if colours are interleaved.
        background: RGB of what was not scanned, 0..255.
        held_bytes: memory that reading takes besides the pixels asked for.
        assumption: what had to be assumed to read it; empty if nothing.
    """

    backend: str
    format: str
    level_sizes: Sequence[Size]
    level_scales: Sequence[tuple[float, float]]
    unit_sizes: Sequence[Size] = ()
    mpp: tuple[float, float] | None = None
    mpp_source: str | None = None
    bounds: tuple[int, int, int, int] | None = None
    colour_model: str = "RGB"
    planes: int = 1
    background: tuple[int, int, int] = WHITE
    held_bytes: int = 0
    assumption: str = ""

    def require_size(self) -> None:
        """Reject an implausible size, before memory is allocated for it.

        The environment variable ``LARGEST_SLIDE_GPX`` sets how many gigapixels a level may have; a tile or strip, which
        is decoded as a whole, may have as many pixels as an image (see ``foreign_files``).

        Raises:
            BundleError: if a level or tile has more pixels, or none.
        """
        largest_level = positive_setting("LARGEST_SLIDE_GPX", LARGEST_SLIDE_GPX) * 1e9
        largest_unit = limit_pixels() * 1e6
        for kind, sizes, largest, setting in (
            ("levels", self.level_sizes, largest_level, "LARGEST_SLIDE_GPX"),
            ("tiles", self.unit_sizes, largest_unit, "LARGEST_IMAGE_MPX"),
        ):
            odd = [
                f"{width}x{height}"
                for height, width in sizes
                if not 1 <= min(height, width) <= height * width <= largest
            ]
            if odd:
                raise BundleError(
                    f"its {kind} must have 1 to {largest:g} pixels, got {', '.join(odd[:3])}; if it is meant to be "
                    f"that large, raise the environment variable {setting}."
                )


def is_level(size: Size, full: Size) -> bool:
    """Whether a picture can be a downsampled copy: the same ratio for height and width, within 1 px."""
    if min(size) < 1:
        return False
    ratio = max(full[0] / size[0], full[1] / size[1])
    return all(abs(large / ratio - small) <= 1 + LARGEST_SHIFT * small for large, small in zip(full, size, strict=True))


def level_scale(full: Size, size: Size) -> tuple[float, float]:
    """Pixels of level 0 per pixel of a level, (y, x): a whole number if the sizes match it up to rounding."""
    ratios = tuple(large / small for large, small in zip(full, size, strict=True))
    whole = round(sum(ratios) / 2)
    if whole and all(small in (large // whole, -(-large // whole)) for large, small in zip(full, size, strict=True)):
        return (float(whole), float(whole))
    return ratios


def require_backends(backends: str | Sequence[str]) -> tuple[str, ...]:
    """Names of backends, given as a sequence or separated by commas, in the order to try them.

    Raises:
        BundleError: if there are none, or one is unknown.
    """
    parts = backends.split(",") if isinstance(backends, str) else backends
    names = tuple(str(name).strip() for name in parts or ())
    if not names or any(name not in BACKENDS for name in names):
        raise BundleError(
            f"`backends` must be some of {list(BACKENDS)}, got {list(names)}; pass for instance openslide,tifffile."
        )
    return names
