"""Losses for noisy pseudo masks. Stage 1's is ``monai.losses.DeepSupervisionLoss``, wired in configs."""

from .adaptive_noise_aware import AdaptiveNoiseAwareLoss

__all__ = ["AdaptiveNoiseAwareLoss"]
