"""How many labels are needed, and how much wrong ones cost: training items, some left out or mislabelled."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.items import labelled_images
from ..errors import BundleError


def fewer_or_wrong_labels(
    dataset_dir: str | Path,
    class_names: Sequence[str],
    label_file: str | Path | None = None,
    share: float = 1.0,
    wrong: float = 0.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """A random share of ``labelled_images``, in the same order, with a random share of the labels flipped.

    The images of a smaller share are among those of a larger one, and so are the flipped labels.

    Args:
        dataset_dir, class_names, label_file: see ``labelled_images``.
        share: share of the images to keep, in (0, 1]; at least one image is kept.
        wrong: share of the labels to flip, in [0, 1]: of all known labels of the kept images, class by class.
        seed: seed of both choices.
    """
    if not 0 < share <= 1:
        raise BundleError(f"`share` must be in (0, 1], got {share}; use a fraction, not a percentage.")
    if not 0 <= wrong <= 1:
        raise BundleError(f"`wrong` must be in [0, 1], got {wrong}; use a fraction, not a percentage.")
    items = labelled_images(dataset_dir, class_names, label_file)
    choice, flips = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    kept = np.sort(choice.permutation(len(items))[: max(1, round(share * len(items)))])
    labels = np.array([items[index]["label"] for index in kept])  # (images, classes); NaN where unknown
    known = np.flatnonzero(~np.isnan(labels))
    flipped = flips.permutation(known)[: round(wrong * len(known))]
    labels.flat[flipped] = 1 - labels.flat[flipped]
    return [items[index] | {"label": label} for index, label in zip(kept, labels.tolist(), strict=True)]
