"""Tissue masks from image-level labels, from Python: ``load`` a finished run, ``train`` one, ``prepare`` data for it.

The code is that of a MONAI bundle, its package ``scripts``, which this one makes importable and re-exports from.
Nothing heavy is imported before it is used.
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
