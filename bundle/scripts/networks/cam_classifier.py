"""The classifier of all methods: a backbone, a fusion block or rectified levels, and a head on each level."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import BundleError

HEADS = ("early_head", "shallow_head", "middle_head", "deep_head")


class CAMClassifier(nn.Module):
    """Multi-label tissue classifier whose head weights turn its features into class activation maps (CAMs).

    Args:
        backbone: has ``levels(image)``, ``deepest(x)``, ``channels`` and ``fusion_channels``, like ``ResNet38d``.
        num_classes: number of tissue classes ``K``, without background.
        fusion: builds the fusion block for a number of channels, e.g. ``EdgeSemanticFusion``; ``None`` for none.
            The block returns the fused features, in training followed by any side outputs.
        frozen: names of submodules that are never trained, for instance ``["backbone.conv1a", "backbone.b2"]``.
        freeze_batch_norm: keep every batch norm in evaluation mode with fixed weight and bias, as published.
        dropout: probability of dropping a channel of the deepest features before its head.
        rectification: builds, for the channels of a level before the deepest and of the deepest, the module that
            rectifies the former by the latter, e.g. ``HierarchicalFeatureRectification``; ``None`` for none.
        xavier_heads: draw the weights of every head from Xavier's uniform distribution, not of the deepest alone.
        cam_bias: whether the CAMs include the bias of their head.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        fusion: Callable[[int], nn.Module] | None = None,
        frozen: Sequence[str] = (),
        freeze_batch_norm: bool = True,
        dropout: float = 0.5,
        rectification: Callable[[int, int], nn.Module] | None = None,
        xavier_heads: bool = False,
        cam_bias: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise BundleError(f"`num_classes` must be at least 1, got {num_classes}; background does not count.")
        self.backbone = backbone
        self.fusion = nn.Identity() if fusion is None else fusion(backbone.fusion_channels)
        *before, deep = backbone.channels
        self.rectifications = nn.ModuleList([] if rectification is None else [rectification(c, deep) for c in before])
        self._head_names = HEADS[-len(backbone.channels) :]
        for name, channels in zip(self._head_names, backbone.channels, strict=True):
            setattr(self, name, nn.Conv2d(channels, num_classes, 1, bias=name != "deep_head"))
        for head in self._heads() if xavier_heads else (self.deep_head,):
            nn.init.xavier_uniform_(head.weight)
        self.cam_bias = cam_bias
        self.dropout = nn.Dropout2d(dropout)
        self._constant_batch_norms = self._freeze(frozen, freeze_batch_norm)

    def _freeze(self, frozen: Sequence[str], freeze_batch_norm: bool) -> list[nn.Module]:
        """Freeze the named submodules; return the batch norms that stay in evaluation mode."""
        parts = []
        for name in [frozen] if isinstance(frozen, str) else frozen:
            try:
                if not name:
                    raise AttributeError("the whole network cannot be frozen")
                parts.append(self.get_submodule(name))
            except AttributeError as error:
                raise BundleError(
                    f"`frozen` must name submodules of the network, got {name!r}; its backbone has "
                    f"{[f'backbone.{part}' for part, _ in self.backbone.named_children()]}."
                ) from error
            parts[-1].requires_grad_(False)
        roots = [self] if freeze_batch_norm else parts
        norms = [m for root in roots for m in root.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.requires_grad_(False)
        return norms

    def train(self, mode: bool = True) -> "CAMClassifier":
        """Set training or evaluation mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        for norm in self._constant_batch_norms:
            norm.eval()
        return self

    def _features(self, image: torch.Tensor) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]:
        """The feature maps (B, C_i, h_i, w_i) of ``image``, shallow to deep, and the fusion block's side outputs."""
        *before, x = self.backbone.levels(image)
        fused = self.fusion(x)
        fused, *side = fused if isinstance(fused, tuple) else (fused,)
        deepest = self.backbone.deepest(fused)
        if self.rectifications:
            before = [rectify(level, deepest) for rectify, level in zip(self.rectifications, before, strict=True)]
        return [*before, deepest], tuple(side)

    def _heads(self) -> list[nn.Conv2d]:
        return [getattr(self, name) for name in self._head_names]

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Classify ``image``, (B, 3, H, W) in [0, 1].

        Returns:
            The logits (B, K) of each head, shallow to deep; in training followed by the fusion block's side outputs, if
            any.
        """
        features, side = self._features(image)
        features[-1] = self.dropout(features[-1])
        # a 1x1 convolution commutes with the mean over pixels
        logits = [
            head(f.mean(dim=(2, 3), keepdim=True)).flatten(1) for head, f in zip(self._heads(), features, strict=True)
        ]
        return (*logits, *side)

    def cams(self, image: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
        """Class activation maps of ``image``, (B, 3, H, W) in [0, 1].

        Returns:
            The CAMs (B, K, h_i, w_i) of the three deepest levels, shallow to deep, non-negative, and the class
            probabilities (B, K) of the deepest head. A CAM is its head's weight applied at every position, without bias
            unless ``cam_bias``. A level before those three only supervises the training.
        """
        features, _ = self._features(image)
        shallow, middle, deep = (
            F.conv2d(level, head.weight, head.bias if self.cam_bias else None)
            for head, level in zip(self._heads()[-3:], features[-3:], strict=True)
        )
        prob = torch.sigmoid(deep.mean(dim=(2, 3)))
        return (F.relu(shallow), F.relu(middle), F.relu(deep)), prob
