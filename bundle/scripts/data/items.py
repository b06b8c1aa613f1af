"""List a data set's folder as the items of MONAI data sets.

The layout is that of the published data sets: ``train/img`` (labels in the file names), ``val/img`` and ``val/mask``,
``test/img`` and ``test/mask``; a mask has the file name of its image.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..files.foreign_files import open_image
from .labels import parse_label, read_label_file

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def find_images(folder: str | Path) -> list[Path]:
    """The image files of ``folder``, sorted by name.

    Raises:
        FileNotFoundError: if the folder is missing or has no images.
        BundleError: if two images differ only in their suffix, since their masks would have the same name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} must be a folder of images, but it does not exist; check `dataset_dir`.")
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise FileNotFoundError(
            f"{folder} must contain images ({', '.join(IMAGE_SUFFIXES)}), but has none; check `dataset_dir`."
        )
    require_different_stems([Path(path.name) for path in images], folder)
    return images


def require_different_stems(images: Sequence[Path], source: str | Path) -> None:
    """Raise a ``BundleError`` if images, by relative path, differ only in suffix: their masks would share a name."""
    twice = [str(stem) for stem, count in Counter(path.with_suffix("") for path in images).items() if count > 1]
    if twice:
        raise BundleError(
            f"{source} must have only one image per name, ignoring suffixes, but repeats {twice[:5]}; rename them."
        )


def labelled_images(
    dataset_dir: str | Path, class_names: Sequence[str], label_file: str | Path | None = None
) -> list[dict[str, Any]]:
    """Training items with image-level labels, from the names of ``train/img`` or from a label file.

    Args:
        dataset_dir: the data set's folder.
        class_names: the tissue classes in label order.
        label_file: datalist or CSV (see ``read_label_file``); its image paths are relative to ``train/img``.

    Returns:
        ``{"image": path, "label": [0 or 1, ...], "name": file name}`` per image.
    """
    folder = Path(dataset_dir) / "train" / "img"
    if label_file is None:
        return [
            {"image": str(path), "label": parse_label(path.name, len(class_names)), "name": path.name}
            for path in find_images(folder)
        ]
    items = []
    for name, label in read_label_file(label_file, class_names).items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise BundleError(f"{label_file}: {name!r} must be inside {folder}, but is not; use a path relative to it.")
        if not path.is_file():
            raise FileNotFoundError(f"{label_file} must name existing images, got {name!r}; {path} does not exist.")
        items.append({"image": str(path), "label": label, "name": path.name})
    if not items:
        raise BundleError(f"{label_file} must label at least one image, but is empty.")
    listed = [Path(item["image"]) for item in items]
    require_different_stems([Path(path.name) for path in listed], label_file)
    unlisted = sorted(
        path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path not in listed
    )
    if unlisted:
        raise BundleError(
            f"{label_file} must label every image in {folder}; {len(unlisted)} are missing, such as "
            f"{unlisted[:5]}: add them, or move the images elsewhere."
        )
    return items


def patch_size(dataset_dir: str | Path, default: Sequence[int]) -> list[int]:
    """Height and width in pixels of a data set's training patches, or ``default`` if it has none."""
    folder = Path(dataset_dir) / "train" / "img"
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            with open_image(path) as image:
                return [image.height, image.width]
    return list(default)


def images_with_masks(images: Sequence[str | Path], mask_dir: str | Path) -> list[dict[str, str]]:
    """Pair images with the masks in ``mask_dir`` of the same name, ignoring suffixes.

    Returns:
        ``{"image": path, "label": mask path, "name": file name}`` per image.

    Raises:
        FileNotFoundError: if an image has no mask.
    """
    masks = {path.stem: path for path in find_images(mask_dir)}
    items = []
    for image in map(Path, images):
        if image.stem not in masks:
            raise FileNotFoundError(f"{image} must have a mask of the same name in {mask_dir}, but has none; add it.")
        items.append({"image": str(image), "label": str(masks[image.stem]), "name": image.name})
    return items


def split_items(dataset_dir: str | Path, split: str) -> list[dict[str, str]]:
    """Images with masks of the split ``"val"`` or ``"test"``; empty if the data set has no such folder."""
    folder = Path(dataset_dir) / split
    return images_with_masks(find_images(folder / "img"), folder / "mask") if folder.exists() else []
