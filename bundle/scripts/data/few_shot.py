"""Few-shot adaptation to a few labelled images of another data set."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite import distributed

from ..errors import BundleError, command_here
from ..files.foreign_files import open_image, read_json
from ..files.pictures import write_mask
from ..runs.run_folder import NETWORK, RunFolder
from .classes import Classes
from .items import image_items, images_with_masks, is_scored, labelled_images, list_images, masks_in, match_key
from .mask_folder import mask_paths, write_manifest
from .mask_values import load_mask

logger = logging.getLogger(__name__)


def source_file(source_dir: str | Path | None, name: str) -> Path:
    """The file ``name`` of the run to adapt, or to start a second round from.

    Raises:
        BundleError: if no run is given, or its network is needed and no second stage trained it.
        FileNotFoundError: if the run has no such file.
    """
    if source_dir is None:
        raise BundleError(
            "`source_dir` must be the folder of the run to continue from, got null; pass `--source_dir RUN`."
        )
    if name == NETWORK and not RunFolder(source_dir).has_second_stage:
        raise BundleError(
            f"`source_dir` must be a run with a second stage, got {source_dir}, whose network is its CAMs; repeat its "
            "training with --second_stage True first."
        )
    path = Path(source_dir) / name
    if not path.is_file():
        raise FileNotFoundError(f"`source_dir` must be a finished run's folder, got {source_dir}; {path} is missing.")
    return path


def require_scored_split(dataset_dir: str | Path) -> None:
    """Raise an error unless a data set has ``val`` or ``test``, without which the adaptation cannot be measured."""
    if not any(is_scored(dataset_dir, split) for split in ("val", "test")):
        raise BundleError(
            f"{dataset_dir} must have val or test, images with masks to score on; it has neither: add one."
        )


def require_same_classes(source_dir: str | Path | None, classes: Classes) -> None:
    """Compare the classes of the run to adapt with those of the new data set, channel by channel.

    Raises:
        BundleError: if their numbers differ, or they are the same classes in a different order; different names are
            assumed to mean the same tissues, and logged.
    """
    path = Path(source_dir or "") / "configs" / "train.json"
    if source_dir is None or not path.is_file():  # weights without a run
        return
    source_names, channel_names = Classes.of(read_json(path)).channel_names, classes.channel_names
    if len(source_names) != len(channel_names):
        raise BundleError(
            f"the data set must have the {len(source_names)} classes of {source_dir}, {source_names}, got "
            f"{len(channel_names)}, {channel_names}; pass --new-head to train a new head for these and keep the rest."
        )
    if source_names != channel_names and sorted(source_names) == sorted(channel_names):
        raise BundleError(
            f"the data set's classes must be in the order of {path}, {source_names}, got {channel_names}; "
            "reorder its overlay's `class_names`, values and labels."
        )
    logger.info(
        "Channels: " + ", ".join(f"{old} → {new}" for old, new in zip(source_names, channel_names, strict=True))
    )


def adaptation_stages(pixel_masks: bool, new_head: bool) -> list[str]:
    """The stages of an adaptation in order.

    Args:
        pixel_masks: learn from pixel masks; otherwise from image-level labels.
        new_head: train new heads, so that there is nothing to score before, and the classifier must learn its own.
    """
    if pixel_masks:
        masks = ["copy_pixel_masks"]
    else:
        masks = ["train_classifier", "generate_pseudo_masks"] if new_head else ["generate_pseudo_masks"]
    return [*([] if new_head else ["score_source"]), *masks, "train_segmenter"]


def has_pixel_masks(dataset_dir: str | Path) -> bool:
    """Whether a data set has masks of training images, in ``train/mask``."""
    return bool(list_images(Path(dataset_dir) / "train" / "mask"))


def draw_images(
    dataset_dir: str | Path,
    num_images: int,
    seed: int,
    pixel_masks: bool,
    class_names: Sequence[str],
    label_file: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Draw training images at random; for the same seed, a smaller draw is the start of a larger one.

    Args:
        dataset_dir: the data set's folder.
        num_images: how many to draw.
        seed: seed of the draw, not negative.
        pixel_masks: draw from the images with a mask in ``train/mask``; otherwise from all, which must have labels.
        class_names, label_file: as for ``data.labelled_images``.

    Returns:
        ``{"image": path, "label": mask path or multi-hot label, "name": file name}`` per image.

    Raises:
        BundleError: if there are not enough images, or those drawn differ in size.
    """
    if pixel_masks:
        folder = Path(dataset_dir) / "train"
        with_mask = masks_in(folder / "mask")
        images = [item for item in image_items(folder / "img", nested=True) if match_key(item["name"]) in with_mask]
        items = images_with_masks(images, folder / "mask")
    else:
        items = labelled_images(dataset_dir, class_names, label_file)
    if type(num_images) is not int or not 2 <= num_images <= len(items):  # batch norm needs two
        kind = "a mask in train/mask" if pixel_masks else "an image-level label"
        raise BundleError(
            f"`num_images` must be in 2..{len(items)}, the number of images in {dataset_dir} with {kind}, got "
            f"{num_images!r}."
        )
    drawn = [items[index] for index in np.random.default_rng(seed).permutation(len(items))[:num_images]]
    sizes = {item["name"]: open_image(item["image"]).size for item in drawn}
    if len(set(sizes.values())) > 1:
        raise BundleError(
            f"training images must have the same size, got {sizes}; cut patches with `{command_here('prepare')}`."
        )
    return drawn


@distributed.one_rank_only()
def write_pixel_masks(items: Sequence[Mapping[str, str]], mask_dir: str | Path, classes: Classes) -> None:
    """Write masks in our values where stage 2 looks for them; existing masks are kept.

    Args:
        items: with the paths of an image and its mask, ``"image"`` and ``"label"``.
        mask_dir: where to write the masks and, at the end, ``manifest.json``.
        classes: the classes of the data set that the masks belong to.
    """
    table = classes.lookup_table()
    for item, path in zip(items, mask_paths(items, mask_dir), strict=True):
        if not path.exists():
            with open_image(item["image"]) as image:
                size = (image.height, image.width)
            write_mask(path, load_mask(item["label"], table, size), classes.palette)
    write_manifest(items, mask_dir)
