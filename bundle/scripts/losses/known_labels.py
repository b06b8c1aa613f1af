"""The multi-label loss of image-level labels, some of which may be unknown."""

import torch
from torch import nn
from torch.nn import functional as F


class KnownLabelsLoss(nn.Module):
    """Multi-label soft-margin loss, averaged over the labels that are known.

    If all are, it is ``torch.nn.MultiLabelSoftMarginLoss``, to the bit.
    """

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Compare ``logits`` with ``label`` of 0, 1 and NaN, unknown, each (B, K).

        Returns:
            A scalar; 0 if no label is known.
        """
        known = (~label.isnan()).to(logits.dtype)
        loss = F.multilabel_soft_margin_loss(logits, label.nan_to_num(), weight=known)
        return loss * (known.numel() / known.sum().clamp(min=1))
