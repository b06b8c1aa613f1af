"""Networks: CAM classifiers, their backbones and fusion blocks, and wrappers for segmentation networks."""

from .attention import ChannelAttention, SpatialAttention
from .autocast import Autocast, has_bfloat16
from .cam_classifier import CAMClassifier
from .dual_path_refinement import DualPathRefinement, HierarchicalDualFeatureModule
from .edge_semantic_fusion import EdgeSemanticFusion
from .fast.fused_batch_norm import fuse_batch_norms
from .fast.winograd import WinogradConv2d, with_winograd
from .hierarchical_rectification import HierarchicalFeatureRectification
from .implicit_boundary_mining import ImplicitBoundaryMining
from .input_normalization import InputNormalization
from .mirror_averaging import MirrorAveraging
from .pad_and_crop import PadAndCrop
from .resnet38d import ResNet38d
from .timm_backbone import TimmBackbone

__all__ = [
    "Autocast",
    "CAMClassifier",
    "ChannelAttention",
    "DualPathRefinement",
    "EdgeSemanticFusion",
    "HierarchicalDualFeatureModule",
    "HierarchicalFeatureRectification",
    "ImplicitBoundaryMining",
    "InputNormalization",
    "MirrorAveraging",
    "PadAndCrop",
    "ResNet38d",
    "SpatialAttention",
    "TimmBackbone",
    "WinogradConv2d",
    "fuse_batch_norms",
    "has_bfloat16",
    "with_winograd",
]
