"""From a data set's folder to the items of MONAI data sets, and batches of images of one size.

Layout, as the published data sets have it: ``train/img`` (labels in the file names), ``val/img`` and ``val/mask``,
``test/img`` and ``test/mask``; a mask has its image's file name.
"""

import csv
import queue
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader, Dataset, PILReader
from monai.transforms import EnsureChannelFirstd, EnsureTyped, LoadImaged, Transform
from PIL import Image
from torch.utils.data import Sampler

from ..errors import BundleError
from ..files.foreign_files import limit_pixels, open_image, read_json, require_one_picture, unreadable

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def require_rgb(image: Image.Image) -> Image.Image:
    """``image`` itself if it is one picture of 8-bit RGB.

    Raises:
        BundleError: if it is greyscale, has a palette, transparency or 16 bits, or is an animation or a stack.
    """
    require_one_picture(image)
    mode = image.mode
    if mode == "RGB" and ";16" in str([tile[3] for tile in getattr(image, "tile", [])]):  # PIL cuts these to 8 bits
        mode = "RGB with 16 bits per colour"
    if mode != "RGB":
        raise BundleError(
            f"{getattr(image, 'filename', 'the image')} must be an 8-bit RGB image, got {mode}; save it as one, "
            "`Image.open(…).convert('RGB').save(…)`."
        )
    return image


class RGBReader(PILReader):
    """MONAI's reader of PNG, JPEG, TIFF and BMP for 8-bit RGB images alone; others are an error (``require_rgb``).

    Args:
        reverse_indexing: give (W, H, 3) as MONAI does by default; ``False`` gives (H, W, 3).
    """

    def read(self, data: Sequence[str | Path] | str | Path, **kwargs: Any) -> Any:
        """Open a file, within the limit of ``foreign_files``."""
        limit_pixels()
        return super().read(data, **kwargs)

    def get_data(self, img: Image.Image) -> tuple[np.ndarray, dict]:
        """The pixels, uint8, and the metadata. (``read`` is no place to refuse: MONAI then tries its other readers.)"""
        require_rgb(img)
        try:
            return super().get_data(img)
        except Exception as error:  # damaged files make PIL raise errors of many kinds, without their names
            raise unreadable(img.filename, error) from error


def image_loading() -> list[Transform]:
    """What makes an item's ``image``, the path of an image file, a uint8 tensor (3, H, W) of bytes 0..255."""
    return [
        LoadImaged(keys="image", reader=RGBReader(reverse_indexing=False), image_only=True),
        EnsureChannelFirstd(keys="image", channel_dim=-1),
        EnsureTyped(keys="image", dtype=torch.uint8, track_meta=False),
    ]


def parse_label(name: str, num_classes: int) -> list[int]:
    """Read the multi-hot label in a patch's name: ``"s1-[1 0 1 0].png"`` or ``"s1[1010].png"`` is ``[1, 0, 1, 0]``.

    Raises:
        BundleError: if the name carries no label, or one of another length.
    """
    match = re.findall(r"\[([01 ,]+)\]", name)
    label = [int(digit) for digit in re.findall("[01]", match[-1])] if match else []
    if len(label) != num_classes:
        example = " ".join(["1", *"0" * (num_classes - 1)])
        raise BundleError(
            f"{name!r} must carry {num_classes} labels such as '[{example}]' in its name, got {label}; rename it, or "
            "give the labels in a CSV or a datalist."
        )
    return label


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
    """``{"image": path, "name": file name}`` for each image file of a folder."""
    return [{"image": str(path), "name": path.name} for path in find_images(folder)]


def read_label_file(path: str | Path, class_names: Sequence[str]) -> dict[str, list[int]]:
    """Read image-level labels from a MONAI datalist (``.json``) or a table (``.csv``).

    A datalist has a list ``training`` of ``{"image": ..., "label": [1, 0, 1]}``. A table has a column ``image`` and a
    column of 0 and 1 for each class name.

    Returns:
        The multi-hot label of each image, by the image's path as it is written in the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a file of labels; it does not exist. Check `label_file`.")
    labels = _datalist_labels(path) if path.suffix.lower() == ".json" else _table_labels(path, class_names)
    for image, label in labels:
        if not isinstance(label, list) or [str(value) in ("0", "1") for value in label] != [True] * len(class_names):
            raise BundleError(
                f"{path}: the label of {image!r} must be {len(class_names)} numbers, 0 or 1, one per class "
                f"{list(class_names)}; got {label}."
            )
    twice = [image for image, count in Counter(image for image, _ in labels).items() if count > 1]
    if twice:
        raise BundleError(f"{path} must label each image once; {twice[:5]} stand there more than once.")
    return {image: [int(value) for value in label] for image, label in labels}


def _datalist_labels(path: Path) -> list[tuple[str, Any]]:
    """The ``label`` of each ``image`` in the list ``training`` of a MONAI datalist, unchecked."""
    try:
        rows = read_json(path)["training"]
        return [(str(row["image"]), row["label"]) for row in rows]
    except (KeyError, TypeError) as error:
        raise BundleError(
            f'{path} must be JSON with a list "training" of {{"image": name, "label": [1, 0, …]}}; {error!r}.'
        ) from error


def _table_labels(path: Path, class_names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The cells of the class columns for each ``image`` of a CSV table, unchecked."""
    columns = ["image", *class_names]
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BundleError(f"{path} must be a CSV table in UTF-8: {error}; save it as one.") from error
    missing = sorted(set(columns) - set(header))
    if missing:
        raise BundleError(f"{path} must have the columns {columns}; {missing} are missing.")
    twice = [name for name in columns if header.count(name) > 1]
    if twice:
        raise BundleError(f"{path} must have each column once; {twice} stand there more than once: remove one.")
    labels = []
    for number, row in enumerate(rows, start=2):
        if len(row) > len(header):
            raise BundleError(f"{path}: row {number} must have {len(header)} cells, as the header has, got {row}.")
        if row:
            cells = dict(zip_longest(header, row, fillvalue=""))
            labels.append((cells["image"], [cells[name].strip() for name in class_names]))
    return labels


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


class ThreadedDataset(Dataset):
    """A MONAI data set whose batches are read by several threads: decoding holds no lock. Errors are raised as ever.

    (MONAI's ThreadDataLoader reads ahead, but an image that cannot be read ends its data without an error.)

    Args:
        data, transform: as for ``Dataset``; the transform must not be random.
        threads: number of threads.
    """

    def __init__(self, data: Sequence[Any], transform: Callable[[Any], Any], threads: int = 4) -> None:
        super().__init__(data, transform)
        self.threads = threads

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The items of a batch; PyTorch's DataLoader asks for them so."""
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(self.__getitem__, indices))


class ReadAheadDataLoader(DataLoader):
    """MONAI's DataLoader; with ``pin_memory``, as for GPUs, a thread makes its batches before they are asked for.

    Batches and their order are the same, and so are errors. The sampler draws in the thread that asks.

    Args:
        dataset, num_workers, kwargs: as for ``DataLoader``.
        ahead: how many batches are made before they are asked for.
    """

    def __init__(self, dataset: Any, num_workers: int = 0, ahead: int = 2, **kwargs: Any) -> None:
        super().__init__(dataset, num_workers, **kwargs)
        self.ahead = ahead

    def __iter__(self) -> Iterator[Any]:
        batches = super().__iter__()
        return _made_ahead(batches, self.ahead) if self.pin_memory else batches


def _made_ahead(batches: Iterator[Any], ahead: int) -> Iterator[Any]:
    """``batches``, up to ``ahead`` of them made by a thread before they are asked for."""
    made: queue.Queue[tuple[str, Any]] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(kind: str, value: Any = None) -> None:
        while not stopped.is_set():
            try:
                return made.put((kind, value), timeout=0.1)
            except queue.Full:
                pass

    def make() -> None:
        try:
            for batch in batches:
                put("batch", batch)
                if stopped.is_set():
                    return
            put("end")
        except Exception as error:  # it belongs where the batch was wanted
            put("error", error)

    try:
        first = next(batches)  # here the sampler draws, from this thread's random numbers
    except StopIteration:
        return
    threading.Thread(target=make, name="read ahead", daemon=True).start()
    try:
        yield first
        while True:
            kind, value = made.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stopped.set()


class SameSizeBatches(Sampler[list[int]]):
    """Batches of indices of images of one size each, so that images of any size can be stacked.

    The batches depend on the items alone, never on what is done already: the same images always share a batch.

    Args:
        items: have the path of an image under ``"image"``.
        batch_size: largest number of images in a batch.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], batch_size: int) -> None:
        if batch_size < 1:
            raise BundleError(f"`batch_size` must be at least 1, got {batch_size}.")
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, item in enumerate(items):
            with open_image(item["image"]) as image:
                by_size.setdefault(image.size, []).append(index)
        self.batches = [
            indices[start : start + batch_size]
            for indices in by_size.values()
            for start in range(0, len(indices), batch_size)
        ]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def same_size_loader(dataset: Dataset, batch_size: int, **settings: Any) -> ReadAheadDataLoader:
    """A loader of images of any size: each batch has images of one.

    Args:
        dataset: of items with an ``image``.
        batch_size: most images in a batch.
        settings: of the loader.
    """
    return ReadAheadDataLoader(dataset, batch_sampler=SameSizeBatches(dataset.data, batch_size), **settings)
