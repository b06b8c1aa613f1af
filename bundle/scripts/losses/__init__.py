"""Losses for both stages."""

from .adaptive_noise_aware import AdaptiveNoiseAwareLoss
from .boundary_regularized import BoundaryRegularizedLoss
from .deep_supervision import DeepSupervisionLoss
from .intra_inter_class import IntraInterClassLoss
from .known_labels import KnownLabelsLoss

__all__ = [
    "AdaptiveNoiseAwareLoss",
    "BoundaryRegularizedLoss",
    "DeepSupervisionLoss",
    "IntraInterClassLoss",
    "KnownLabelsLoss",
]
