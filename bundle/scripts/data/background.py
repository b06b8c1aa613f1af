"""Detect where a slide shows glass instead of tissue."""

import numpy as np
import torch
from skimage.morphology import remove_small_objects

WHITE_GREY = 200  # in 0..255; glass is brighter (ESFAN)
SMALLEST_GAP_PX = 50  # white components with fewer pixels are tissue


def white_background(
    image: torch.Tensor, white_grey: int = WHITE_GREY, smallest_px: int = SMALLEST_GAP_PX
) -> torch.Tensor:
    """Where a slide shows glass instead of tissue: bright pixels in 4-connected components that are not small.

    Args:
        image: RGB (B, 3, H, W), float in [0, 1].
        white_grey: grey value, 0..255, above which a pixel is white. Grey is OpenCV's RGB2GRAY.
        smallest_px: components with fewer pixels are tissue.

    Returns:
        (B, H, W) bool, on the host.
    """
    pixels = (image * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return torch.from_numpy(np.stack([white_pixels(single, white_grey, smallest_px) for single in pixels]))


def white_pixels(pixels: np.ndarray, white_grey: int = WHITE_GREY, smallest_px: int = SMALLEST_GAP_PX) -> np.ndarray:
    """``white_background`` for a single image: (H, W) bool for ``pixels``, (H, W, 3) uint8."""
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    white = (9798 * red + 19235 * green + 3735 * blue + (1 << 14)) >> 15 > white_grey  # OpenCV's fixed-point weights
    return remove_small_objects(white, max_size=smallest_px - 1, connectivity=1) if white.any() else white
