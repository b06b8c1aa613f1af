"""Tissue detection at low resolution: a threshold on colour saturation, without what was not scanned."""

import numpy as np
from scipy.ndimage import binary_dilation, label, maximum_filter, minimum_filter
from skimage.filters import threshold_otsu

from ...errors import BundleError

SATURATION_RANGE = (0.05, 0.15)  # glass is below, stained tissue above; Otsu chooses in between
DARKEST = 96  # of 255: below, a pixel's saturation says little, since any noise is a large part of it
BLACK = 30  # of 255: brightest channel of a black canvas; tissue, as dark as it may be, is brighter
EVEN = 6  # of 255: range of a channel within 3 x 3 pixels of a canvas, at most
CANVAS_TINT = 30  # of 255: largest difference between the channels of a dark canvas
FULL = np.ones((3, 3), dtype=bool)


def saturation(image: np.ndarray, darkest: int = 1) -> np.ndarray:
    """HSV saturation of ``image``, (H, W, 3) uint8, as (H, W) uint8 in 0..255; black has 0.

    Pixels whose brightest channel is below ``darkest`` count as being that bright.
    """
    low, high = image.min(axis=2), image.max(axis=2)
    return ((high - low).astype(np.uint16) * 255 // np.maximum(high, darkest)).astype(np.uint8)


def dark_canvas(image: np.ndarray, smallest_px: float = 0) -> np.ndarray:
    """Find the dark areas that were not scanned: black, or dark and even, (H, W) bool.

    Args:
        image: the thumbnail, (H, W, 3) uint8.
        smallest_px: smaller areas, such as pigment, are left out, unless they touch the image border.
    """
    low, high = image.min(axis=2), image.max(axis=2)
    dark = (high < DARKEST) & (high - low <= CANVAS_TINT)
    even = dark & _even(image, EVEN)
    return without_small((high < BLACK) | even | (binary_dilation(even, FULL) & dark), smallest_px)


def grey_padding(image: np.ndarray) -> np.ndarray:
    """Find areas of a single, nearly grey colour, which no scanner yields of stained tissue, (H, W) bool."""
    grey = saturation(image) <= 255 * SATURATION_RANGE[1]
    return binary_dilation(grey & _even(image, 0), FULL) & grey


def _even(image: np.ndarray, spread: int) -> np.ndarray:
    """Pixels around which no channel differs by more than ``spread``."""
    return (maximum_filter(image, (3, 3, 1)) - minimum_filter(image, (3, 3, 1)) <= spread).all(axis=2)


def tissue_mask(
    image: np.ndarray, mpp: float, smallest_mm2: float = 0.005, least_saturation: float | None = None
) -> np.ndarray:
    """Detect stained tissue in a thumbnail.

    Otsu's threshold is clipped to between 5 % and 15 % saturation, so that a slide with nothing but glass has no tissue
    and a slide with nothing but tissue has no glass. Objects and holes smaller than ``smallest_mm2`` are removed unless
    they touch the image border; the mask is then dilated by one pixel. What was not scanned is no tissue.

    Args:
        image: the thumbnail, (H, W, 3) uint8.
        mpp: micrometres per pixel of the thumbnail.
        smallest_mm2: area in mm².
        least_saturation: saturation of tissue, in [0, 1], in the place of the threshold; with 0 all that was scanned is
            tissue.

    Returns:
        (H, W) bool.
    """
    if smallest_mm2 < 0:
        raise BundleError(f"`smallest_mm2` must not be negative, got {smallest_mm2}; 0 keeps every pixel.")
    smallest_px = smallest_mm2 * 1e6 / mpp**2
    canvas, values = dark_canvas(image, smallest_px), saturation(image, DARKEST)
    if least_saturation is None:
        scanned = ~(canvas | grey_padding(image))
        mask = scanned & (values > _threshold(values[scanned]))
    else:
        mask = ~canvas & (values >= require_saturation(least_saturation) * 255)
    mask = without_small(mask, smallest_px)
    mask = ~without_small(~mask, smallest_px)
    return binary_dilation(mask, FULL) & ~canvas


def _threshold(values: np.ndarray) -> int:
    """The saturation, 0..255, above which pixels are tissue."""
    low, high = (round(255 * share) for share in SATURATION_RANGE)
    otsu = threshold_otsu(values) if values.size and values.min() < values.max() else low
    return min(max(otsu, low), high)


def require_saturation(share: float) -> float:
    """Return ``share`` if it is in [0, 1].

    Raises:
        BundleError: if it is not.
    """
    if not 0 <= share <= 1:
        raise BundleError(f"`tissue_saturation` must be in [0, 1], got {share}; tissue has about 0.05 and more.")
    return share


def without_small(mask: np.ndarray, smallest_px: float) -> np.ndarray:
    """Remove 4-connected objects of fewer pixels from ``mask``, (H, W) bool, unless they touch the border."""
    labels, _ = label(mask)
    keep = np.bincount(labels.ravel()) >= smallest_px
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        keep[border] = True
    keep[0] = False
    return keep[labels]
