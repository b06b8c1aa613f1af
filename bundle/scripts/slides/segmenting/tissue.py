"""Tissue detection at low resolution: Otsu's threshold on colour saturation."""

import numpy as np
from scipy.ndimage import binary_dilation, label
from skimage.filters import threshold_otsu

from ...errors import BundleError

SATURATION_RANGE = (0.05, 0.15)  # glass is below, stained tissue above; Otsu chooses in between


def saturation(image: np.ndarray) -> np.ndarray:
    """HSV saturation of ``image``, (H, W, 3) uint8, as (H, W) uint8 in 0..255; black has 0."""
    low, high = image.min(axis=2), image.max(axis=2)
    return ((high - low).astype(np.uint16) * 255 // np.maximum(high, 1)).astype(np.uint8)


def tissue_mask(image: np.ndarray, mpp: float, smallest_mm2: float = 0.005) -> np.ndarray:
    """Detect stained tissue in a thumbnail.

    Otsu's threshold is clipped to between 5 % and 15 % saturation, so that a slide with nothing but glass has no tissue
    and a slide with nothing but tissue has no glass. Objects and holes smaller than ``smallest_mm2`` are removed unless
    they touch the image border; the mask is then dilated by one pixel.

    Args:
        image: the thumbnail, (H, W, 3) uint8.
        mpp: micrometres per pixel of the thumbnail.
        smallest_mm2: area in mm².

    Returns:
        (H, W) bool.
    """
    if smallest_mm2 < 0:
        raise BundleError(f"`smallest_mm2` must not be negative, got {smallest_mm2}; 0 keeps every pixel.")
    values = saturation(image)
    low, high = (round(255 * share) for share in SATURATION_RANGE)
    otsu = threshold_otsu(values) if values.min() < values.max() else low
    mask = values > min(max(otsu, low), high)
    smallest_px = smallest_mm2 * 1e6 / mpp**2
    mask = without_small(mask, smallest_px)
    mask = ~without_small(~mask, smallest_px)
    return binary_dilation(mask, np.ones((3, 3), dtype=bool))


def without_small(mask: np.ndarray, smallest_px: float) -> np.ndarray:
    """Remove 4-connected objects of fewer pixels from ``mask``, (H, W) bool, unless they touch the border."""
    labels, _ = label(mask)
    keep = np.bincount(labels.ravel()) >= smallest_px
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        keep[border] = True
    keep[0] = False
    return keep[labels]
