"""From class activation maps (CAMs) to label scores: fusion of levels, gate, normalisation and white background."""

from collections.abc import Sequence

import numpy as np
import torch
from skimage.morphology import remove_small_objects
from torch import nn
from torch.nn import functional as F

WHITE_GREY = 200  # of 0..255; glass is brighter (ESFAN)
SMALLEST_GAP_PX = 50  # white components with fewer pixels are tissue


def combine_cams(cams: Sequence[torch.Tensor], size: Sequence[int], level_weights: Sequence[float]) -> torch.Tensor:
    """Upsample CAMs bilinearly to the image's ``size`` (height, width) and add them up with ``level_weights``.

    Args:
        cams: one CAM (B, K, h_i, w_i) per level, not negative.
        size: height and width of the image in pixels.
        level_weights: one weight per level.

    Returns:
        The combined CAM, (B, K, H, W).
    """
    if len(cams) != len(level_weights):
        raise ValueError(f"`level_weights` must have one weight per CAM ({len(cams)}), got {list(level_weights)}.")
    upsampled = (F.interpolate(cam, size=tuple(size), mode="bilinear", align_corners=False) for cam in cams)
    return sum(weight * cam for weight, cam in zip(level_weights, upsampled))


def present_classes(prob: torch.Tensor, threshold: float, label: torch.Tensor | None = None) -> torch.Tensor:
    """Which classes an image shows: those of its label, or without one those whose probability passes a threshold.

    Args:
        prob: class probabilities, (B, K) in [0, 1].
        threshold: in [0, 1]; a class is present where ``prob > threshold``.
        label: true image-level labels, (B, K) of 0 and 1, which then decide alone.

    Returns:
        (B, K) bool. An image without any class gets its most probable one. (The published code fails there.)
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` must lie in [0, 1], got {threshold}; give a probability, not a percentage.")
    present = prob > threshold if label is None else label.to(prob.device, torch.bool)
    most_probable = F.one_hot(prob.argmax(dim=1), prob.shape[1]).bool()
    return torch.where(present.any(dim=1, keepdim=True), present, most_probable)


def gate_and_normalize(cam: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Scores of the classes an image shows, scaled to [0, 1] over all classes and pixels of the image together.

    Args:
        cam: combined CAM, (B, K, H, W), not negative.
        present: the gate, (B, K) bool or 0/1; classes that are not present become 0 before the scaling.

    Returns:
        Scores (B, K, H, W) in [0, 1], and -inf for classes that are not present, so that no argmax takes them.
        A constant CAM gives zeros (the published code gives NaN).
    """
    gate = present.to(torch.bool)[:, :, None, None]
    gated = cam * gate
    low, high = gated.amin(dim=(1, 2, 3), keepdim=True), gated.amax(dim=(1, 2, 3), keepdim=True)
    scores = (gated - low) / (high - low).clamp(min=torch.finfo(cam.dtype).tiny)
    return scores.masked_fill(~gate, -torch.inf)


def white_background(
    image: torch.Tensor, white_grey: int = WHITE_GREY, smallest_px: int = SMALLEST_GAP_PX
) -> torch.Tensor:
    """Where a slide shows glass instead of tissue: bright pixels in 4-connected components that are not small.

    Args:
        image: RGB (B, 3, H, W), float in [0, 1].
        white_grey: grey value, 0..255, above which a pixel is white. Grey is OpenCV's RGB2GRAY.
        smallest_px: components with fewer pixels are tissue.

    Returns:
        (B, H, W) bool, on the image's device.
    """
    pixels = (image * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    white = np.stack([white_pixels(single, white_grey, smallest_px) for single in pixels])
    return torch.from_numpy(white).to(image.device)


def white_pixels(pixels: np.ndarray, white_grey: int = WHITE_GREY, smallest_px: int = SMALLEST_GAP_PX) -> np.ndarray:
    """The same of one image: (H, W) bool for ``pixels``, (H, W, 3) uint8."""
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    white = (9798 * red + 19235 * green + 3735 * blue + (1 << 14)) >> 15 > white_grey  # OpenCV's fixed-point weights
    return remove_small_objects(white, max_size=smallest_px - 1, connectivity=1) if white.any() else white


def label_map(scores: torch.Tensor, image: torch.Tensor, background: bool) -> torch.Tensor:
    """The best channel of each pixel, or the background index K where the slide is white.

    Args:
        scores: (B, K, H, W); -inf for classes that are left out. Ties go to the lowest channel.
        image: RGB (B, 3, H, W), float in [0, 1].
        background: whether white pixels are background; data sets without background have none.

    Returns:
        (B, H, W) int64 in 0..K-1, K for background.

    Raises:
        ValueError: if a score is NaN.
    """
    if torch.isnan(scores).any():
        raise ValueError("`scores` must not be NaN; the network's weights or its input image are not finite.")
    labels = scores.max(dim=1).indices  # many times as fast as argmax, on CPUs
    return labels.masked_fill(white_background(image), scores.shape[1]) if background else labels


class CAMSegmenter(nn.Module):
    """A trained CAM classifier as a segmentation network: its gated, normalised CAMs are the scores.

    Args:
        classifier: has ``cams(image)`` as ``CAMClassifier`` has.
        level_weights: weight of the shallow, the middle and the deepest CAM.
        threshold: class probability above which a class is taken to be present where no label is given.
        channel_order: for each output channel the classifier's channel it comes from; ``None`` keeps their order.
        flips: average the CAMs over the image and its mirror images (horizontal, vertical, both). Published: off.
        scales: average the CAMs over these scales of the image. Published: 1 alone.
        dtype: type in which the classifier works: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    """

    def __init__(
        self,
        classifier: nn.Module,
        level_weights: Sequence[float],
        threshold: float,
        channel_order: Sequence[int] | None = None,
        flips: bool = False,
        scales: Sequence[float] = (1.0,),
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        if not scales or min(scales) <= 0:
            raise ValueError(f"`scales` must be positive numbers such as [0.75, 1.0, 1.25], got {list(scales)}.")
        self.classifier = classifier
        self.level_weights = tuple(level_weights)
        self.threshold = threshold
        self.channel_order = None if channel_order is None else list(channel_order)
        self.mirrored_axes = [(), (3,), (2,), (2, 3)] if flips else [()]
        self.scales = tuple(scales)
        self.dtype = getattr(torch, dtype)

    def _averaged(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Combined CAM (B, K, H, W) and class probabilities (B, K), averaged over scales and mirror images."""
        size = image.shape[2:]
        cam_sum, prob_sum, count = 0.0, 0.0, len(self.scales) * len(self.mirrored_axes)
        for scale in self.scales:
            scaled = image
            if scale != 1:
                scaled = F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False, antialias=True)
            for axes in self.mirrored_axes:
                with torch.autocast(image.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                    cams, prob = self.classifier.cams(scaled.flip(axes) if axes else scaled)
                cam = combine_cams([cam.float() for cam in cams], size, self.level_weights)
                cam_sum = cam_sum + (cam.flip(axes) if axes else cam)
                prob_sum = prob_sum + prob
        return cam_sum / count, prob_sum / count

    def forward(self, image: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Score the tissues of ``image``, (B, 3, H, W) in [0, 1].

        Args:
            image: the patches.
            label: true image-level labels, (B, K) of 0 and 1, which gate the classes; ``None`` gates by the predicted
                ones. An image whose label is all 0 falls back to its most probable class.

        Returns:
            Scores (B, K, H, W) in [0, 1], -inf for classes that the gate leaves out. So that in another channel order
            too the classifier's first channel wins a tie, those that tie with it are lower by the least step there is.
        """
        cam, prob = self._averaged(image)
        present = present_classes(prob, self.threshold, label)
        scores = gate_and_normalize(cam, present)
        if self.channel_order is None:
            return scores
        winner = scores.max(dim=1, keepdim=True).indices
        tied = (scores == scores.gather(1, winner)).scatter(1, winner, False)
        lower = scores.nextafter(torch.full_like(scores, -torch.inf))
        return torch.where(tied, lower, scores)[:, self.channel_order]
