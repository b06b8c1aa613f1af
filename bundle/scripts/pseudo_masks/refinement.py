"""Refine the scores behind pseudo masks: by superpixels, or by a first round's segmentation network.

Each class wraps a network with ``forward(image, label)``, such as ``cam.CAMSegmenter`` or another of these classes, and
has the same signature.
"""

import numpy as np
import torch
from skimage.segmentation import slic
from torch import nn

from ..errors import BundleError
from ..runs.devices import to_device


class SuperpixelAveraging(nn.Module):
    """Average scores within each superpixel (scikit-image's SLIC), so that masks follow edges.

    Args:
        network: returns scores (B, K, H, W), -inf for excluded classes.
        area_px: mean area of a superpixel in pixels.
        compactness: SLIC's weight of distance relative to colour; higher values give squarer superpixels.
    """

    def __init__(self, network: nn.Module, area_px: int = 100, compactness: float = 10.0) -> None:
        super().__init__()
        if not area_px >= 1:
            raise BundleError(f"`area_px` must be at least 1 pixel, got {area_px}.")
        self.network = network
        self.area_px = area_px
        self.compactness = compactness

    def forward(self, image: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Scores (B, K, H, W) of ``image``, (B, 3, H, W) in [0, 1], constant within each superpixel."""
        scores = self.network(image, label)
        pictures = image.permute(0, 2, 3, 1).cpu().numpy()
        means = [self._mean(single, picture) for single, picture in zip(scores, pictures, strict=True)]
        return torch.stack(means)

    def _mean(self, scores: torch.Tensor, picture: np.ndarray) -> torch.Tensor:
        """Means of ``scores``, (K, H, W), over the superpixels of ``picture``, (H, W, 3)."""
        count = max(1, round(picture.shape[0] * picture.shape[1] / self.area_px))
        regions = slic(picture, n_segments=count, compactness=self.compactness, start_label=0)
        regions = torch.from_numpy(regions).flatten()  # (H * W,)
        sizes, regions = to_device(torch.bincount(regions), scores.device), to_device(regions, scores.device)
        sums = scores.new_zeros(len(scores), len(sizes)).index_add_(1, regions, scores.flatten(1))
        return (sums / sizes)[:, regions].view_as(scores)


class ConfidentReplacement(nn.Module):
    """Replace scores by a segmentation network's probabilities at pixels where it is confident: a second round.

    Args:
        network: returns scores (B, K, H, W) in [0, 1], -inf for excluded classes, like a ``CAMSegmenter``.
        segmenter: trained network in evaluation mode; returns logits (B, K, H, W) for the same channels.
        confidence: probability in [0, 1], normalised over the classes not excluded, above which a pixel is replaced.
    """

    def __init__(self, network: nn.Module, segmenter: nn.Module, confidence: float = 0.8) -> None:
        super().__init__()
        if not 0 <= confidence <= 1:
            raise BundleError(f"`confidence` must be in [0, 1], got {confidence}; use a probability such as 0.8.")
        self.network = network
        self.segmenter = segmenter
        self.confidence = confidence

    def forward(self, image: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Scores (B, K, H, W) of ``image``, (B, 3, H, W) in [0, 1]; -inf for classes that ``network`` excludes."""
        scores = self.network(image, label)
        left_out = torch.isneginf(scores)
        prob = self.segmenter(image).float().masked_fill(left_out, -torch.inf).softmax(dim=1)
        sure = prob.amax(dim=1, keepdim=True) > self.confidence
        return torch.where(sure, prob.masked_fill(left_out, -torch.inf), scores)
