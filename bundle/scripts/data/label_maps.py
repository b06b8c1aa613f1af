"""Turn class scores into label maps."""

import torch

from ..errors import BundleError
from .background import white_background

NO_CHANNEL = 255  # replaces the channel where scores are NaN
NO_CLASS = 254  # replaces the channel where all classes are excluded


def largest_channel(scores: torch.Tensor) -> torch.Tensor:
    """The channel with the largest of ``scores``, (B, K, H, W); ties go to the first.

    Returns:
        (B, H, W) uint8 on the device of the scores, ``NO_CHANNEL`` where one of them is NaN: callers check for it once
        the masks are on the host, so that nothing waits for the device here.
    """
    channel = scores.max(dim=1).indices.to(torch.uint8)  # many times faster than argmax on CPUs
    return channel.masked_fill(scores.isnan().any(dim=1), NO_CHANNEL)


def permitted_channel(scores: torch.Tensor) -> torch.Tensor:
    """``largest_channel``, but ``NO_CLASS`` where all of ``scores``, (B, K, H, W), are -inf, for excluded classes."""
    return largest_channel(scores).masked_fill(scores.isneginf().all(dim=1), NO_CLASS)


def require_channels(channel: torch.Tensor, name: str = "`scores`") -> None:
    """Raise a BundleError if a map from ``largest_channel``, on the host, was made from scores that are NaN."""
    if (channel == NO_CHANNEL).any():
        raise BundleError(
            f"{name} must not be NaN; the network's weights or its input image are not finite: lower the learning "
            "rate, or use --precision float32."
        )


def label_map(scores: torch.Tensor, image: torch.Tensor, background: bool) -> torch.Tensor:
    """The best channel of each pixel, or the background index K where the slide is white.

    Args:
        scores: (B, K, H, W); -inf for excluded classes. Ties go to the lowest channel.
        image: RGB (B, 3, H, W), float in [0, 1].
        background: whether white pixels are background; ``False`` for data sets without background.

    Returns:
        (B, H, W) int64 in 0..K-1, K for background, on the host.

    Raises:
        BundleError: if a score is NaN.
    """
    channel = largest_channel(scores).cpu()
    require_channels(channel)
    labels = channel.long()
    return labels.masked_fill(white_background(image), scores.shape[1]) if background else labels
