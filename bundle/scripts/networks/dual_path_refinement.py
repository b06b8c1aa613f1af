"""DPR, the dual path refinement network of IBDR's stage 2."""

import torch
from torch import nn
from torch.nn import functional as F

from .attention import ChannelAttention, SpatialAttention


class HierarchicalDualFeatureModule(nn.Module):
    """HDFM: channel attention, then spatial attention, on the class logits.

    Args:
        num_classes: number of channels ``K`` of the logits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.channel_attention = ChannelAttention(num_classes, max(1, num_classes // 16), bias=True)
        self.spatial_attention = SpatialAttention()

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Refine ``logits``, (B, K, H, W), into (B, K, H, W)."""
        logits = logits * self.channel_attention(logits)
        return logits * self.spatial_attention(logits)


class DualPathRefinement(nn.Module):
    """DPR: a PSPNet whose logits are refined by HDFM, with an auxiliary head on its encoder for training.

    Differs from the published code: the encoder runs once for both paths (there it runs twice, and so updates its batch
    norm statistics twice per step).

    Args:
        pspnet: a ``segmentation_models_pytorch.PSPNet`` or another network of that library, with ``encoder``,
            ``decoder`` and ``segmentation_head``, whose output is ``num_classes`` logits at image size.
        num_classes: number of classes ``K``.
        hidden_channels: width of the auxiliary head.
        dropout: probability of dropping a channel of the auxiliary head's features.
    """

    def __init__(self, pspnet: nn.Module, num_classes: int, hidden_channels: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.pspnet = pspnet
        self.hdfm = HierarchicalDualFeatureModule(num_classes)
        self.auxiliary_head = nn.Sequential(
            nn.Conv2d(pspnet.encoder.out_channels[-1], hidden_channels, 3, padding=1),
            nn.BatchNorm2d(hidden_channels),
            nn.ReLU(),
            nn.Dropout2d(dropout),
            nn.Conv2d(hidden_channels, num_classes, 1),
        )

    def forward(self, image: torch.Tensor):  # TorchScript has no type for "one or two"
        """Segment ``image``, (B, 3, H, W) with sides divisible by the encoder's stride.

        Returns:
            The main path's logits (B, K, H, W); in training followed by the auxiliary path's, (B, K, H, W).
        """
        features = self.pspnet.encoder(image)
        main = self.hdfm(self.pspnet.segmentation_head(self.pspnet.decoder(features)))
        if torch.jit.is_scripting():  # exported networks return the main path only
            return main
        else:
            return (main, self._auxiliary(features[-1], main.shape[2:])) if self.training else main

    def _auxiliary(self, features: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """The auxiliary path's logits (B, K, H, W) at ``size``, from the encoder's deepest features."""
        return F.interpolate(self.auxiliary_head(features), size=size, mode="bilinear", align_corners=True)
