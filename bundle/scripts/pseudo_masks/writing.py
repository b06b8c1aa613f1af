"""Write the masks derived from a classifier's CAMs: the pseudo masks on which stage 2 is trained."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite import distributed
from monai.data import Dataset

from ..data.background import white_pixels
from ..data.batches import ReadAheadDataLoader, SameSizeBatches
from ..data.classes import Classes
from ..data.image_folder import images_to_segment, require_none_failed
from ..data.label_maps import NO_CLASS, permitted_channel, require_channels
from ..data.mask_folder import mask_paths, write_manifest
from ..errors import BundleError
from ..files.pictures import IGNORED, overlay, write_mask, write_png
from ..runs.background_work import BackgroundWork
from ..runs.devices import HostCopy
from ..runs.progress import Progress
from ..training.augmentation import PrepareBatch
from .cam import CAMSegmenter

logger = logging.getLogger(__name__)


def mask_items(
    labelled_images: Callable[[], list[dict[str, Any]]],
    image_dir: str | Path | None = None,
    mask_dir: str | Path | None = None,
) -> list[dict[str, Any]]:
    """The images to create masks for: the training patches with their labels, or any folder's, without labels.

    Args:
        labelled_images: returns the training patches.
        image_dir: a folder of images, with subfolders; ``None`` for the training patches.
        mask_dir: where their masks go, and are not looked for.

    Raises:
        BundleError: if both are the same folder: an image would be taken for its own mask, made before.
    """
    if image_dir is None:
        return labelled_images()
    if mask_dir is not None and Path(mask_dir).resolve() == Path(image_dir).resolve():
        raise BundleError(f"`mask_dir` must be another folder than `image_dir`, {image_dir}; choose a new one.")
    return images_to_segment(image_dir, mask_dir)


@torch.inference_mode()
def write_pseudo_masks(
    network: CAMSegmenter,
    dataset: Dataset,
    mask_dir: str | Path,
    classes: Classes,
    batch_size: int = 16,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
    overlay_dir: str | Path | None = None,
) -> None:
    """Write the mask of each image as a palette PNG of the same name, and ``manifest.json``, the list of masks.

    Existing masks are kept, whoever made them: an edited mask is used unchanged. Batches depend only on the images, so
    an interrupted run resumes to the same masks, and several processes, which divide whole batches among them, produce
    the same masks as one.

    Args:
        network: the CAMs as a segmentation network; its channels are those of the segmentation network.
        dataset: items with ``image``, (3, H, W) uint8, ``name``, and, if known, the multi-hot ``label``, (K,), which
            then gates the classes: where it excludes all of them, pixels are background or, without background,
            ignored; an ``error`` that is not empty says why there are no pixels. Its ``data`` has the images' paths
            and names.
        mask_dir: folder for the masks.
        classes: names, values and colours; if there is background, white pixels become value 0.
        batch_size: number of same-size images per forward pass.
        num_workers: number of processes that read images.
        device: where the network runs.
        overlay_dir: folder for overlay images of the new masks; ``None`` for none.
    """
    mask_dir = Path(mask_dir)
    paths = mask_paths(dataset.data, mask_dir)
    own_batches = list(SameSizeBatches(dataset.data, batch_size))[
        distributed.get_rank() :: distributed.get_world_size()
    ]
    unfinished = [batch for batch in own_batches if not all(paths[index].exists() for index in batch)]
    if unfinished:
        (mask_dir / "manifest.json").unlink(missing_ok=True)
    loader = ReadAheadDataLoader(
        dataset, batch_sampler=unfinished, num_workers=num_workers, pin_memory=torch.device(device).type == "cuda"
    )
    kept = sum(path.exists() for path in paths)
    logger.info(f"Pseudo masks: {len(paths)} images, {kept} of which already have masks in {mask_dir}, which are kept.")
    value_of_channel = np.zeros(256, dtype=np.uint8)
    value_of_channel[: len(classes)] = classes.segmenter_values
    value_of_channel[NO_CLASS] = 0 if classes.background else IGNORED
    network.to(device).eval()
    prepare_batch = PrepareBatch()

    def write(index: int, channel: torch.Tensor, rgb: torch.Tensor) -> None:
        require_channels(channel, f"the scores of {paths[index].name}")
        mask, pixels = value_of_channel[channel.numpy()], rgb.permute(1, 2, 0).numpy()
        if classes.background:
            mask[white_pixels(pixels)] = 0
        if not paths[index].exists():
            if overlay_dir is not None:
                picture = overlay(pixels, mask, classes.palette)
                write_png(Path(overlay_dir) / paths[index].relative_to(mask_dir), picture)
            write_mask(paths[index], mask, classes.palette)

    def write_batch(indices: list[int], channels: HostCopy, images: torch.Tensor, errors: Sequence[str]) -> None:
        for index, channel, rgb, error in zip(indices, channels.get(), images, errors, strict=True):
            if error:
                failures[paths[index].relative_to(mask_dir).as_posix()] = error
            else:
                write(index, channel, rgb)

    failures: dict[str, str] = {}

    with BackgroundWork() as work:
        batches = Progress(len(unfinished), "pseudo masks", "batch", distributed.get_rank() == 0).through(loader)
        for indices, batch in zip(unfinished, batches, strict=False):
            image, label = prepare_batch(batch, torch.device(device), non_blocking=True)
            channels = HostCopy(permitted_channel(network(image, label)))
            work.submit(write_batch, indices, channels, batch["image"], batch.get("error", [""] * len(indices)))
    distributed.barrier()
    require_none_failed(failures, mask_dir)
    write_manifest(dataset.data, mask_dir)
