"""Tissue masks from image-level labels, from Python: ``prepare`` data, ``train`` a run, ``load`` a finished one.

The code is the package ``scripts`` of a MONAI bundle, which this package makes importable and re-exports.
Heavy dependencies are imported lazily.
"""

from typing import Any

from .bundle_folder import bundle_version, make_importable

__all__ = ["BundleError", "__version__", "load", "prepare", "train"]

BUNDLE_ROOT = make_importable()
__version__ = bundle_version(BUNDLE_ROOT)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import door  # imports torch

    return getattr(door, name)


def __dir__() -> list[str]:
    return __all__
