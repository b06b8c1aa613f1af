"""Measure how strongly a classifier's activation maps respond to each class, from image-level labels alone."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite import distributed
from monai.data import DataLoader
from torch import nn
from tqdm import tqdm

from ..data.batches import SameSizeBatches, ThreadedDataset
from ..errors import BundleError
from ..files.atomic import write_json
from ..files.foreign_files import read_json
from ..training.augmentation import PrepareBatch

logger = logging.getLogger(__name__)

PATCHES_PER_CLASS = 256  # enough to estimate the mean strength of a class to about 1 %


def purest_patches(labels: Sequence[Sequence[float]], class_index: int, limit: int = PATCHES_PER_CLASS) -> list[int]:
    """Indices of at most ``limit`` patches that show a class with the fewest other or unknown ones, spread evenly."""
    possible = {index: sum(v != 0 for v in label) for index, label in enumerate(labels) if label[class_index] == 1}
    if not possible:
        return []
    fewest = min(possible.values())
    purest = [index for index, count in possible.items() if count == fewest]
    return purest[:: math.ceil(len(purest) / limit)]


@torch.inference_mode()
def measure_strengths(
    classifier: nn.Module,
    items: Sequence[Mapping[str, Any]],
    transform: Callable[[Any], Any],
    batch_size: int,
    device: str | torch.device,
) -> list[list[float]]:
    """Mean activation of each level's CAM, (levels, K), over patches that show only that class, or as few as possible.

    Args:
        classifier: trained; has ``cams(image)`` like ``CAMClassifier``.
        items: patches with the multi-hot ``label``, (K,).
        transform: loads an item's ``image``, (3, H, W) uint8.
        batch_size: patches per forward pass.
        device: where the classifier runs.

    Raises:
        BundleError: if no patch shows a class, or a strength is not a positive number.
    """
    labels = [item["label"] for item in items]
    classifier.to(device).eval()
    strengths = []  # (K, levels)
    for class_index in range(len(labels[0])):
        chosen = [items[index] for index in purest_patches(labels, class_index)]
        if not chosen:
            raise BundleError(f"class {class_index} must appear in at least one training patch, but is in none.")
        dataset = ThreadedDataset(chosen, transform)
        loader = DataLoader(dataset, batch_sampler=SameSizeBatches(chosen, batch_size), num_workers=0)
        sums = 0.0
        for batch in tqdm(loader, desc=f"strength of class {class_index}", unit="batch", disable=None):
            image, _ = PrepareBatch()(batch, torch.device(device))
            cams, _ = classifier.cams(image)
            means = torch.stack([cam[:, class_index].float().mean(dim=(1, 2)).sum() for cam in cams])
            sums = sums + means.cpu().double()
        strengths.append((sums / len(chosen)).tolist())
        if not all(math.isfinite(strength) and strength >= 0 for strength in strengths[-1]):
            raise BundleError(
                f"the CAMs of class {class_index} must be finite, got means {strengths[-1]}; retrain the classifier."
            )
    return [list(level) for level in zip(*strengths, strict=True)]


def class_strengths(
    path: str | Path,
    classifier: nn.Module,
    items: Callable[[], Sequence[Mapping[str, Any]]],
    transform: Callable[[Any], Any],
    batch_size: int,
    device: str | torch.device,
) -> list[list[float]]:
    """The classifier's class strengths, (levels, K), from the file beside it; measured and written if it is missing.

    Args:
        path: JSON file; if it is moved along with the classifier, no training patches are needed.
        classifier, transform, batch_size, device: as for ``measure_strengths``.
        items: returns the training patches; called only if they are needed.

    Raises:
        BundleError: if the file does not contain valid strengths.
    """
    path = Path(path)
    if path.exists():
        return read_strengths(path)
    strengths = measure_strengths(classifier, items(), transform, batch_size, device)
    if distributed.get_rank() == 0:
        write_json(path, {"class_strengths": strengths})
    logger.info(f"CAM strengths by level and class: {strengths}; saved to {path}.")
    return strengths


def read_strengths(path: str | Path) -> list[list[float]]:
    """Read the strengths written by ``class_strengths``."""
    try:
        strengths = read_json(path)["class_strengths"]
        valid = all(math.isfinite(value) and value >= 0 for level in strengths for value in level)
    except (ValueError, TypeError, KeyError):
        valid = False
    if not valid:
        raise BundleError(
            f"{path} must have numbers, 0 or more, by level and class under `class_strengths`, but does not; remove "
            "it to have them measured again."
        )
    return strengths
