"""Losses of both stages; ``monai.losses.DeepSupervisionLoss`` adds up those of several outputs, wired in configs."""

from .adaptive_noise_aware import AdaptiveNoiseAwareLoss
from .boundary_regularized import BoundaryRegularizedLoss
from .intra_inter_class import IntraInterClassLoss

__all__ = ["AdaptiveNoiseAwareLoss", "BoundaryRegularizedLoss", "IntraInterClassLoss"]
