"""Networks: CAM classifiers, their backbones and fusion blocks, and what a segmentation network needs around it."""

from .cam_classifier import CAMClassifier
from .edge_semantic_fusion import EdgeSemanticFusion
from .input_normalization import InputNormalization
from .pad_and_crop import PadAndCrop
from .resnet38d import ResNet38d
from .timm_backbone import TimmBackbone

__all__ = ["CAMClassifier", "EdgeSemanticFusion", "InputNormalization", "PadAndCrop", "ResNet38d", "TimmBackbone"]
