"""Read patches that are sorted into a folder for each class: ``SOURCE/tumor/*.png``, or ``SOURCE/train/tumor/*.png``.

Such a patch has one label, that of its folder. It is linked, not copied, where the file system allows.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import BundleError
from ..check import count_labels, rgb_size
from ..items import find_images
from .releases import SPLITS

NOTE = (
    "Each patch has one label, its folder's: it counts as showing no other class. If many patches show several, list "
    "their labels in a table instead."
)


def find_class_folders(source: Path, class_names: Sequence[str], splits: Sequence[str]) -> dict[str, dict[str, Path]]:
    """The folder of each class by split; empty if ``source`` is not sorted in this way.

    Folders match class names whatever their case. ``source`` has them itself, which is train, or in its splits.

    Raises:
        BundleError: if there are folders beside them that are no class.
    """
    if not source.is_dir():
        return {}
    found = {split: _classes_in(source / split, class_names) for split in splits if (source / split).is_dir()}
    found = {split: folders for split, folders in found.items() if folders}
    if not found and "train" in splits and not any((source / split).is_dir() for split in SPLITS):
        folders = _classes_in(source, class_names)
        found = {"train": folders} if folders else {}
    return found


def _classes_in(folder: Path, class_names: Sequence[str]) -> dict[str, Path]:
    named = {name.casefold(): name for name in class_names}
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    other = [path.name for path in inside if path.name.casefold() not in named]
    if len(other) == len(inside):
        return {}
    if other:
        raise BundleError(
            f"the folders in {folder} must be classes of the data set, {list(class_names)}, but {other} are not; add "
            "them to `class_names`, or move them elsewhere."
        )
    found = {named[path.name.casefold()]: path for path in inside}
    if len(found) < len(inside):
        raise BundleError(
            f"{folder} must have one folder for each class, ignoring case, got {[path.name for path in inside]}; merge "
            "those of one class."
        )
    return found


def link_patches(folders: Mapping[str, Path], folder: Path, class_names: Sequence[str]) -> dict[str, Any]:
    """Link the patches of each class, with their subfolders, as ``CLASS_NAME[0 1 0].png`` into ``folder / "img"``.

    Args:
        folders: the folder of each class.
        folder: where to write.
        class_names: the classes in label order.

    Returns:
        The number of patches, and the counts of ``count_labels``.

    Raises:
        FileNotFoundError: if a class has no patches.
        BundleError: if a patch is damaged or not RGB.
    """
    labels = []
    (folder / "img").mkdir(parents=True)
    for name, images in folders.items():
        label = [int(name == other) for other in class_names]
        for path in find_images(images, nested=True):
            rgb_size(path)
            place = folder / "img" / path.parent.relative_to(images)  # a subfolder, such as a slide's, stays one
            place.mkdir(parents=True, exist_ok=True)
            _link(path, place / f"{images.name}_{path.stem}[{' '.join(map(str, label))}]{path.suffix}")
            labels.append(label)
    return {"images": len(labels), **count_labels(labels, class_names)}


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
