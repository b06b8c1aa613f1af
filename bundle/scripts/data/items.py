"""List a data set's folder as the items of MONAI data sets.

The layout is that of the published data sets: ``train/img`` (labels in the file names), ``val/img`` and ``val/mask``,
``test/img`` and ``test/mask``. These folders may have subfolders, for instance one per slide. An image's name includes
its subfolder, and a mask has the name of its image; suffixes and the Unicode form of accented letters may differ.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import BundleError
from ..files.foreign_files import open_image
from .labels import parse_label, read_label_file

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def find_images(folder: str | Path, nested: bool = False) -> list[Path]:
    """The image files of ``folder``, sorted by name; hidden files and folders are skipped.

    Args:
        folder: the folder.
        nested: also search its subfolders.

    Raises:
        FileNotFoundError: if the folder is missing or has no images.
        BundleError: if two images differ only in their suffix, since their masks would have the same name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} must be a folder of images, but it does not exist; check `dataset_dir`.")
    images = list_images(folder, nested)
    if not images:
        raise FileNotFoundError(
            f"{folder} must contain images ({', '.join(IMAGE_SUFFIXES)}), but has none; check `dataset_dir`."
        )
    require_different_names([name_in(folder, path) for path in images], folder)
    return images


def list_images(
    folder: str | Path, nested: bool = True, skip: Callable[[Path, Sequence[str]], bool] | None = None
) -> list[Path]:
    """Like ``find_images``, but without any rule: an empty list if the folder has no images or does not exist.

    Args:
        folder, nested: as for ``find_images``.
        skip: whether not to search a subfolder, given the names of all subfolders beside it.
    """
    found: list[Path] = []
    trails: dict[str, set[str]] = {}  # the real places of each folder and those above it
    for parent, folders, files in os.walk(folder, followlinks=True):
        place, above = os.path.realpath(parent), trails.get(os.path.dirname(parent), set())
        if place in above:  # a link to a folder above it; two links to one folder are two folders
            folders.clear()
            continue
        trails[parent] = above | {place}
        found += [Path(parent) / name for name in files + folders if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        folders[:] = [
            name
            for name in folders
            if nested and name[0] != "." and not (skip is not None and skip(Path(parent, name), tuple(folders)))
        ]
    return sorted(path for path in found if path.name[0] != ".")


def name_in(folder: str | Path, path: str | Path) -> str:
    """The name of an image: its path relative to its folder, with forward slashes."""
    return Path(path).relative_to(folder).as_posix()


def mask_name(name: str) -> str:
    """The name of the PNG mask that belongs to the image ``name``."""
    return str(PurePosixPath(name).with_suffix(".png"))


def match_key(name: str) -> str:
    """What the names of an image and its mask have in common: all but the suffix, in one Unicode form."""
    return unicodedata.normalize("NFC", str(PurePosixPath(name).with_suffix("")))


def require_different_names(names: Iterable[str], source: str | Path) -> None:
    """Raise a ``BundleError`` if image names differ only in their suffix, since their masks would share a name."""
    twice = [name for name, count in Counter(map(match_key, names)).items() if count > 1]
    if twice:
        raise BundleError(
            f"{source} must have only one image per name, ignoring suffixes, but repeats {twice[:5]}; rename them."
        )


def image_items(folder: str | Path, nested: bool = False) -> list[dict[str, str]]:
    """``{"image": path, "name": name}`` for each image in ``folder``; arguments as for ``find_images``."""
    return [{"image": str(path), "name": name_in(folder, path)} for path in find_images(folder, nested)]


def labelled_images(
    dataset_dir: str | Path, class_names: Sequence[str], label_file: str | Path | None = None
) -> list[dict[str, Any]]:
    """Training items with image-level labels, from the names of ``train/img`` or from a label file.

    Args:
        dataset_dir: the data set's folder.
        class_names: the tissue classes in label order.
        label_file: datalist or table (see ``read_label_file``); its image paths are relative to ``train/img``.

    Returns:
        ``{"image": path, "label": [0, 1 or NaN, ...], "name": name}`` per image.
    """
    folder = Path(dataset_dir) / "train" / "img"
    if label_file is None:
        items = image_items(folder, nested=True)
        return [item | {"label": parse_label(Path(item["name"]).name, len(class_names))} for item in items]
    items = listed_images(folder, read_label_file(label_file, class_names), label_file)
    listed = {item["name"] for item in items}
    unlisted = [name for path in list_images(folder) if (name := name_in(folder, path)) not in listed]
    if unlisted:
        raise BundleError(
            f"{label_file} must label every image in {folder}; {len(unlisted)} are missing, such as "
            f"{unlisted[:5]}: add them, or move the images elsewhere."
        )
    return items


def listed_images(folder: Path, labels: Mapping[str, Any], label_file: str | Path) -> list[dict[str, Any]]:
    """The images of ``folder`` that a label file names, in its order, with their labels; see ``labelled_images``.

    A path may be written in another Unicode form, or with backslashes, as on Windows.
    """
    on_disk = {unicodedata.normalize("NFC", name_in(folder, path)): path for path in list_images(folder)}
    items = []
    for written, label in labels.items():
        place = Path(os.path.normpath(folder / written))  # links are followed: whoever made them meant these images
        if not place.is_relative_to(os.path.normpath(folder)):
            raise BundleError(
                f"{label_file}: {written!r} must be inside {folder}, but is not; use a path relative to it."
            )
        name = unicodedata.normalize("NFC", name_in(os.path.normpath(folder), place))
        path = on_disk.get(name) or on_disk.get(name.replace("\\", "/"))
        if path is None or not path.is_file():
            raise FileNotFoundError(
                f"{label_file} must name existing images, got {written!r}; {folder / written} does not exist."
            )
        items.append({"image": str(path), "label": label, "name": name_in(folder, path)})
    if not items:
        raise BundleError(f"{label_file} must label at least one image, but is empty.")
    require_different_names([item["name"] for item in items], label_file)
    return items


def patch_size(dataset_dir: str | Path, default: Sequence[int]) -> list[int]:
    """Height and width in pixels of a data set's training patches, or ``default`` if it has none."""
    for path in list_images(Path(dataset_dir) / "train" / "img")[:1]:
        with open_image(path) as image:
            return [image.height, image.width]
    return list(default)


def images_with_masks(images: Sequence[str | Path | Mapping[str, Any]], mask_dir: str | Path) -> list[dict[str, str]]:
    """Pair images with the masks in ``mask_dir`` of the same name (see ``match_key``).

    Args:
        images: paths, or items with ``"image"`` and ``"name"``.
        mask_dir: the folder of masks.

    Returns:
        ``{"image": path, "label": mask path, "name": name}`` per image.

    Raises:
        FileNotFoundError: if an image has no mask.
    """
    masks = masks_in(mask_dir)
    items = []
    for image in images:
        item = image if isinstance(image, Mapping) else {"image": str(image), "name": Path(image).name}
        mask = masks.get(match_key(item["name"]))
        if mask is None:
            raise FileNotFoundError(
                f"{item['image']} must have a mask of the same name in {mask_dir}, but has none; add it."
            )
        items.append({"image": item["image"], "label": str(mask), "name": item["name"]})
    return items


def masks_in(mask_dir: str | Path) -> dict[str, Path]:
    """The masks of a folder by ``match_key``; raises as ``find_images`` does."""
    return {match_key(name_in(mask_dir, path)): path for path in find_images(mask_dir, nested=True)}


def is_scored(dataset_dir: str | Path, split: str) -> bool:
    """Whether the split ``"val"`` or ``"test"`` has a mask; without any, it takes no part."""
    return bool(list_images(Path(dataset_dir) / split / "mask"))


def split_items(dataset_dir: str | Path, split: str) -> list[dict[str, str]]:
    """Images with masks of the split ``"val"`` or ``"test"``; empty if the data set has no masks of it."""
    folder = Path(dataset_dir) / split
    if not is_scored(dataset_dir, split):
        return []
    return images_with_masks(image_items(folder / "img", nested=True), folder / "mask")
