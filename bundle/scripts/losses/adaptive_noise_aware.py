"""ANM, the adaptive noise-aware mechanism of ESFAN (MICCAI 2025): the stage-2 loss on noisy pseudo masks."""

import torch
from torch import nn

from .pixel_terms import EPSILON, counted, one_hot, roughness, uncertainty

BACKGROUND_LOGIT = 100.0


class AdaptiveNoiseAwareLoss(nn.Module):
    """``alpha * CE + beta * U + gamma * S``: cross-entropy of confident pixels, uncertainty and spatial smoothness.

    With background, the logits get one more channel before the softmax, 100 where the pseudo mask is background and 0
    elsewhere. All terms are means over the batch, without pixels that are ignored (``pixel_terms.counted``). The
    weights are plain attributes: ``LinearScheduleHandler`` moves them from their values in the first epoch (the
    defaults) to those after the last.

    Args:
        background: whether target values outside 0..K-1 are background. If not, such pixels have no target.
        alpha: weight of the cross-entropy.
        beta: weight of the uncertainty.
        gamma: weight of the smoothness.
        tau: confidence in [0, 1] above which a pixel's pseudo label is trusted.
    """

    def __init__(
        self, background: bool = True, alpha: float = 0.4, beta: float = 0.4, gamma: float = 0.2, tau: float = 0.2
    ) -> None:
        super().__init__()
        self.background = background
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.tau = tau

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compare ``logits``, (B, K, H, W), with channel indices ``target``, (B, H, W) or (B, 1, H, W) integers.

        Returns:
            The loss, a scalar.

        Raises:
            BundleError: if their batch or image sizes differ.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # sums over pixels overflow half precision
        onehot = one_hot(target, logits)  # (B, K, H, W), all zero for background
        valid = counted(target, logits)
        if self.background:
            is_background = valid - onehot.sum(dim=1, keepdim=True)  # (B, 1, H, W)
            onehot = torch.cat([onehot, is_background], dim=1)
            logits = torch.cat([logits, BACKGROUND_LOGIT * is_background], dim=1)
        prob = torch.softmax(logits, dim=1)
        confidence = prob.amax(dim=1, keepdim=True)  # (B, 1, H, W)
        keep = (confidence > self.tau).to(prob.dtype)
        cross_entropy = -(keep * onehot * torch.log(prob + EPSILON)).mean()
        cross_entropy = cross_entropy * (valid.numel() / valid.sum().clamp(min=1))  # exactly 1 if all pixels count
        doubt, rough = uncertainty(confidence, valid), roughness(prob, valid)
        return self.alpha * cross_entropy + self.beta * doubt + self.gamma * rough
