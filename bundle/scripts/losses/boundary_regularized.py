"""The stage-1 loss of IBDR: the loss of the heads plus penalties on the two side branches of the IBM block."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..errors import BundleError


class BoundaryRegularizedLoss(nn.Module):
    """``loss(heads) + boundary_weight * mean(boundary ** 2) + embedding_weight * mean(|embedding|)``.

    Args:
        loss: takes the logits of the heads, a tuple of (B, K), and the label.
        boundary_weight: weight of the mean square of the boundary map.
        embedding_weight: weight of the embedding's Euclidean norm, averaged over pixels.
    """

    def __init__(
        self,
        loss: Callable[[tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor],
        boundary_weight: float = 0.01,
        embedding_weight: float = 0.01,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.boundary_weight = boundary_weight
        self.embedding_weight = embedding_weight

    def forward(self, outputs: Sequence[torch.Tensor], label: torch.Tensor) -> torch.Tensor:
        """Compute the loss of a classifier's training outputs and the multi-hot ``label``, (B, K).

        Args:
            outputs: logits (B, K) of each head, then the boundary map (B, 1, h, w) and the embedding (B, E, h, w) of
                ``networks.ImplicitBoundaryMining``.
            label: 0 or 1, float.

        Returns:
            The loss, a scalar.

        Raises:
            BundleError: if the last two outputs are not feature maps.
        """
        *logits, boundary, embedding = outputs
        if boundary.ndim != 4 or embedding.ndim != 4:
            raise BundleError(
                "`outputs` must end with a boundary map and an embedding, got shapes "
                f"{[tuple(output.shape) for output in outputs]}; use a classifier with the fusion block "
                "ImplicitBoundaryMining, or another loss."
            )
        regularizer = self.boundary_weight * boundary.float().square().mean()
        regularizer = regularizer + self.embedding_weight * torch.linalg.vector_norm(embedding.float(), dim=1).mean()
        return self.loss(tuple(logits), label) + regularizer
