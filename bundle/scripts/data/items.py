"""From a data set's folder to the items of MONAI data sets.

Layout, as the published data sets have it: ``train/img`` (labels in the file names), ``val/img`` and ``val/mask``,
``test/img`` and ``test/mask``; a mask has its image's file name.
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
        FileNotFoundError: if the folder is missing or holds no image.
        BundleError: if two images differ in their suffix alone, since their masks would have one name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} must be a folder of images; it does not exist. Check `dataset_dir`.")
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise FileNotFoundError(f"{folder} must hold images ({', '.join(IMAGE_SUFFIXES)}); it holds none.")
    _require_different_stems(images, folder)
    return images


def _require_different_stems(images: Sequence[Path], source: str | Path) -> None:
    """Raise a ``BundleError`` if two images differ in suffix or folder alone, since their masks would have one name."""
    twice = [stem for stem, count in Counter(path.stem for path in images).items() if count > 1]
    if twice:
        raise BundleError(f"{source} must have one image of a name, whatever its suffix; {twice[:5]} are there twice.")


def image_items(folder: str | Path) -> list[dict[str, str]]:
    """``{"image": path, "name": file name}`` for each image file of a folder, or for the one that is given."""
    images = [Path(folder)] if Path(folder).is_file() else find_images(folder)
    return [{"image": str(path), "name": path.name} for path in images]


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
            raise BundleError(f"{label_file}: {name!r} must lie inside {folder}; it does not.")
        if not path.is_file():
            raise FileNotFoundError(f"{label_file} names {name!r}; {path} does not exist.")
        items.append({"image": str(path), "label": label, "name": path.name})
    if not items:
        raise BundleError(f"{label_file} must label at least one image; it has none.")
    listed = [Path(item["image"]) for item in items]
    _require_different_stems(listed, label_file)
    unlisted = sorted(
        path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path not in listed
    )
    if unlisted:
        raise BundleError(
            f"{label_file} must label every image of {folder}; {len(unlisted)} are not there, such as "
            f"{unlisted[:5]}: add them, or move the images away."
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
    """Pair images with the masks of ``mask_dir`` that have the same file name up to the suffix.

    Returns:
        ``{"image": path, "label": mask path, "name": file name}`` per image.

    Raises:
        FileNotFoundError: if an image has no mask.
    """
    masks = {path.stem: path for path in find_images(mask_dir)}
    items = []
    for image in map(Path, images):
        if image.stem not in masks:
            raise FileNotFoundError(f"{image} must have a mask of the same name in {mask_dir}; there is none.")
        items.append({"image": str(image), "label": str(masks[image.stem]), "name": image.name})
    return items


def split_items(dataset_dir: str | Path, split: str) -> list[dict[str, str]]:
    """Items with masks of the split ``"val"`` or ``"test"``; empty if the data set has no such folder."""
    folder = Path(dataset_dir) / split
    return images_with_masks(find_images(folder / "img"), folder / "mask") if folder.exists() else []
