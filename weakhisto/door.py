"""What ``weakhisto`` re-exports."""

from scripts.data.preparing.prepare import prepare
from scripts.errors import BundleError
from scripts.inference.segmenter import load
from scripts.runs.train import train

__all__ = ["BundleError", "load", "prepare", "train"]
