"""Any timm model that supports ``output_stride``, as the backbone of a CAM classifier."""

import timm
import torch
from torch import nn

from ..errors import BundleError
from .input_normalization import InputNormalization


class TimmBackbone(nn.Module):
    """The last feature levels of a timm model, dilated to ``output_stride``.

    The model's input normalisation is the first layer. No weights are downloaded.

    Args:
        name: a timm model, for instance ``"tf_efficientnet_lite0"`` or ``"resnet50"``. It must accept timm's
            ``output_stride`` (ResNets and EfficientNets do; Swin, ViT, DenseNet and VGG do not).
        output_stride: stride of the deepest features in pixels: 8, 16 or 32.
        num_levels: number of levels, 3 or 4.

    Raises:
        BundleError: if timm does not know the model, or the model does not accept ``output_stride``.
    """

    def __init__(self, name: str, output_stride: int = 8, num_levels: int = 3) -> None:
        super().__init__()
        if name not in timm.list_models():
            raise BundleError(f"`name` must be a timm model such as 'resnet50', got {name!r}; see timm.list_models().")
        if output_stride not in (8, 16, 32):
            raise BundleError(f"`output_stride` must be 8, 16 or 32 pixels, got {output_stride}.")
        if num_levels not in (3, 4):
            raise BundleError(f"`num_levels` must be 3 or 4, got {num_levels}.")
        refusal = (
            f"`name` must be a timm model that accepts `output_stride` {output_stride}, got {name!r}; "
            "use a ResNet or EfficientNet, for instance 'resnet50' or 'tf_efficientnet_lite0'."
        )
        try:
            self.model = timm.create_model(
                name,
                pretrained=False,
                features_only=True,
                out_indices=tuple(range(-num_levels, 0)),
                output_stride=output_stride,
            )
        except Exception as error:  # each model family raises a different error
            raise BundleError(refusal) from error
        if max(self.model.feature_info.reduction()) > output_stride:
            raise BundleError(refusal)
        config = self.model.pretrained_cfg if hasattr(self.model, "pretrained_cfg") else self.model.default_cfg
        self.normalization = InputNormalization(config["mean"], config["std"])
        self.channels = tuple(self.model.feature_info.channels())
        self.fusion_channels = self.channels[-1]

    def levels(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map ``image``, (B, 3, H, W) in [0, 1], to feature maps (B, C_i, h_i, w_i), shallow to deep."""
        return tuple(self.model(self.normalization(image)))

    def deepest(self, x: torch.Tensor) -> torch.Tensor:
        """Return the deepest feature map unchanged: a timm model has no block after the fusion block."""
        return x
