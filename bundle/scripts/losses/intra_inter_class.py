"""IICB, the stage-2 loss of IBDR on noisy pseudo masks: cross-entropy and Dice with intra- and inter-class terms."""

import torch
from torch import nn

from .pixel_terms import EPSILON, one_hot, roughness, uncertainty


class IntraInterClassLoss(nn.Module):
    """IICB: ``alpha * CE + beta * U + gamma * S + delta * (intra + inter) + eta * Dice`` on probabilities ``p``.

    * CE: cross-entropy of the pixels whose confidence ``max p`` is above ``tau``, divided by their number times ``K``.
    * U: uncertainty, the mean of ``-(1 - max p) log(1 - max p)``.
    * S: smoothness, the mean absolute difference of ``p`` between neighbours.
    * intra: mean over the classes of the variance of ``p`` within the class, over pixels and channels.
    * inter: mean cosine similarity ``c`` of the classes' mean probabilities, over all pairs of classes in the batch.
    * Dice: mean over the classes ``k >= 1`` in the batch of one minus the soft Dice of ``p_k``.

    The pseudo mask defines the classes; the pixels of a class are pooled over the batch. Background pixels, which have
    no class, are excluded from all terms; a term without pixels, and ``c`` without a pair, is 0.

    Differs from the published code, which ``published`` selects: there inter is ``1 - c``, which pulls the classes
    together, and Dice is computed from class indices, ``2 sum(a t) / (sum a + sum t)`` with ``a = argmax p``, which has
    no gradient.

    Args:
        published: use the published inter-class and Dice terms.
        alpha, beta, gamma, delta, eta: weights of the terms.
        tau: confidence in [0, 1] above which a pixel's pseudo label is trusted.
    """

    def __init__(
        self,
        published: bool = False,
        alpha: float = 1.0,
        beta: float = 0.2,
        gamma: float = 0.1,
        delta: float = 0.1,
        eta: float = 0.1,
        tau: float = 0.4,
    ) -> None:
        super().__init__()
        self.published = published
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.delta = delta
        self.eta = eta
        self.tau = tau

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compare ``logits``, (B, K, H, W), with channel indices ``target``, (B, H, W) or (B, 1, H, W) integers.

        Values of ``target`` outside 0..K-1 are background.

        Returns:
            The loss, a float32 scalar.

        Raises:
            BundleError: if their batch or image sizes differ.
        """
        with torch.autocast(logits.device.type, enabled=False):  # sums over a batch's pixels overflow half precision
            prob = torch.softmax(logits.float(), dim=1)
            onehot = one_hot(target, prob)  # (B, K, H, W), all zero for background
            valid = onehot.sum(dim=1, keepdim=True)  # (B, 1, H, W), 1 for pixels with a class
            confidence = prob.max(dim=1, keepdim=True).values
            keep = (confidence > self.tau).float() * valid
            index = target.reshape(valid.shape).long().clamp(0, prob.shape[1] - 1)
            own = prob.gather(1, index)  # (B, 1, H, W), the probability of the pseudo label
            cross_entropy = -(keep * torch.log(own + EPSILON)).sum() / (prob.shape[1] * keep.sum() + EPSILON)
            pixels = onehot.sum(dim=(0, 2, 3))  # (K,)
            members = onehot.flatten(2)  # (B, K, H * W); unlike an einsum, the products below make no copies
            sums = (members @ prob.flatten(2).mT).sum(dim=0)  # (K, K), class by channel
            squares = (members @ prob.square().sum(dim=1).flatten(1)[..., None]).sum(dim=(0, 2))  # (K,)
            intra, similarity = _class_terms(pixels, sums, squares)
            inter = 1 - similarity if self.published else similarity
            dice = _index_dice(prob, index, valid) if self.published else _soft_dice(pixels, sums)
            return (
                self.alpha * cross_entropy
                + self.beta * uncertainty(confidence, valid)
                + self.gamma * roughness(prob, valid)
                + self.delta * (intra + inter)
                + self.eta * dice
            )


def _class_terms(pixels: torch.Tensor, sums: torch.Tensor, squares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The intra-class variance, and the mean cosine similarity of the class means.

    Args:
        pixels: number of pixels of each class, (K,).
        sums: sum of the probabilities in each channel over each class's pixels, (K, K).
        squares: sum of their squares over all channels, (K,).
    """
    counts = pixels.clamp(min=1)
    means = sums / counts[:, None]  # (K, K)
    variance = (squares / counts - means.square().sum(dim=1)) / len(pixels)
    directions = means / torch.linalg.vector_norm(means, dim=1, keepdim=True).clamp(min=EPSILON)
    present = (pixels > 0).float()
    pairs = torch.triu(present[:, None] * present, diagonal=1)  # (K, K), 1 for each pair of classes in the batch
    similarity = (directions @ directions.T * pairs).sum() / pairs.sum().clamp(min=1)
    return variance.mean(), similarity


def _soft_dice(pixels: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """One minus the soft Dice, averaged over the classes ``k >= 1`` in the batch; 0 if there are none (see above)."""
    overlap, predicted = sums.diagonal()[1:], sums.sum(dim=0)[1:]
    dice = (2 * overlap + EPSILON) / (predicted + pixels[1:] + EPSILON)
    present = (pixels[1:] > 0).float()
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


def _index_dice(prob: torch.Tensor, index: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The published Dice term, computed from class indices; it has no gradient."""
    pred, index = prob.argmax(dim=1, keepdim=True) * valid, index * valid
    return 1 - (2 * (pred * index).sum() + EPSILON) / (pred.sum() + index.sum() + EPSILON)
