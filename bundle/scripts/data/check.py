"""Check a data set for problems before a training starts, and summarise it.

python -m scripts check FOLDER --dataset NAME [--label-file FILE]
"""

import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ignite import distributed

from ..errors import BundleError, command_here
from ..files.foreign_files import open_image, unreadable
from ..files.pictures import IGNORED
from .classes import Classes, read_overlay, single_class_warning
from .findings import duplicates, label_findings, score_findings, shared_groups
from .images import require_rgb
from .items import find_images, image_items, is_scored, labelled_images, list_images, masks_in, match_key
from .labels import Label, label_text, parse_label, read_groups
from .mask_values import load_mask
from .preparing.releases import read_release

logger = logging.getLogger(__name__)

SHOWN_PROBLEMS = 10


def rgb_size(path: str | Path) -> tuple[int, int]:
    """Width and height in px of the image file ``path``, which is read in full; a PNG is verified without decoding.

    Raises:
        BundleError: if the file is not a readable image, is truncated, or is not 8-bit RGB.
    """
    with open_image(path) as image:
        require_rgb(image)
        try:
            image.verify() if image.format == "PNG" else image.load()
        except Exception as error:  # damaged files make PIL raise errors of many kinds
            raise unreadable(path, error) from error
        return image.size


def read_pair_mask(image: str | Path, mask: str | Path, table: np.ndarray) -> np.ndarray:
    """The mask of an 8-bit RGB image, (H, W) uint8, after checking that both are readable and match (``load_mask``)."""
    width, height = rgb_size(image)
    return load_mask(mask, table, (height, width))


def count_labels(labels: Sequence[Label], class_names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count the multi-hot ``labels`` with each class, and with each combination of classes, e.g. ``"1 0 ?"``."""
    combinations = Counter(label_text(label) for label in labels)
    return {
        "per_class": {name: sum(label[index] == 1 for label in labels) for index, name in enumerate(class_names)},
        "per_combination": dict(sorted(combinations.items(), key=lambda item: -item[1])),
    }


def format_counts(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Format the result of ``count_labels`` as lines of text."""
    names = list(counts["per_class"])
    lines = [f"  {count:7d}  {name}" for name, count in counts["per_class"].items()]
    for combination, count in counts["per_combination"].items():
        marks = zip(names, combination.split(), strict=True)
        present = [name + "?" * (mark == "?") for name, mark in marks if mark != "0"]
        lines.append(f"  {count:7d}  [{combination}] {' + '.join(present) or 'no class'}")
    return lines


def inspect_labels(
    folder: Path, class_names: Sequence[str], label_file: str | Path | None
) -> tuple[list[Path], list[Label], list[str]]:
    """The training images, the labels that could be read, and the problems with the others."""
    try:
        if label_file is not None:
            items = labelled_images(folder.parents[1], class_names, label_file)
            return [Path(item["image"]) for item in items], [item["label"] for item in items], []
        images = find_images(folder, nested=True)
    except (OSError, ValueError) as error:
        return [], [], [str(error)]
    labels, problems = [], []
    for path in images:
        try:
            labels.append(parse_label(path.name, len(class_names)))
        except ValueError as error:
            problems.append(f"{path}: {error}")
    return images, labels, problems


def inspect_train(
    folder: Path, class_names: Sequence[str], label_file: str | Path | None
) -> tuple[dict, list[str], list[str]]:
    """Report on the training images in ``folder``, their problems and what else to know (see ``check_dataset``)."""
    images, labels, problems = inspect_labels(folder, class_names, label_file)
    counts = count_labels(labels, class_names)
    if labels:
        problems += [
            f"{label_file or folder} must show every class in at least one patch, got none with {name!r}; "
            "it cannot be learned: add patches, or remove it from `class_names` and from the labels."
            for name, count in counts["per_class"].items()
            if count == 0
        ]
    sizes = {}
    for path in images:
        try:
            sizes[path] = rgb_size(path)
        except ValueError as error:
            problems.append(str(error))
    size_counts = Counter(sizes.values()).most_common()
    if len(size_counts) > 1:
        (width, height), count = size_counts[0]
        odd = next(path for path, size in sizes.items() if size != (width, height))
        problems.append(
            f"{odd} must be {width}x{height} like {count} of the {len(sizes)} training patches, got "
            f"{'x'.join(map(str, sizes[odd]))}; cut patches of one size with `{command_here('prepare')}`."
        )
    report = {"images": len(images), "sizes": {f"{w}x{h}": count for (w, h), count in size_counts}, **counts}
    return report, problems, label_findings(labels, class_names)


def inspect_scored(folder: Path, table: np.ndarray) -> tuple[dict, list[str]]:
    """Report on the images with masks in ``folder``, and their problems (see ``check_dataset``).

    Args:
        folder: has ``img`` and ``mask``.
        table: our value for each value in the masks.
    """
    try:
        images, masks = image_items(folder / "img", nested=True), masks_in(folder / "mask")
    except (OSError, ValueError) as error:
        return {}, [str(error)]
    problems, sizes, pixels = [], Counter(), np.zeros(256, dtype=np.int64)
    for item in images:
        image, key = item["image"], match_key(item["name"])
        if key not in masks:
            problems.append(
                f"{image} must have a mask of the same name in {folder / 'mask'}; add it or remove the image."
            )
            continue
        try:
            mask = read_pair_mask(image, masks[key], table)
        except ValueError as error:
            problems.append(str(error))
            continue
        sizes[f"{mask.shape[1]}x{mask.shape[0]}"] += 1
        pixels += np.bincount(mask.ravel(), minlength=256)
    values = [value for value in np.unique(table[table >= 0]).tolist() if value != IGNORED or pixels[IGNORED]]
    shares = {str(value): round(float(pixels[value] / max(1, pixels.sum())), 6) for value in values}
    if sizes and not pixels[1:IGNORED].any():
        left_out = " Those of `ignore_value` (255) are left out; map it if it is a class." if pixels[IGNORED] else ""
        problems.append(
            f"{folder / 'mask'} must show some tissue (a value that `mask_values` maps to 1 or more), got none in "
            f"{sum(sizes.values())} masks, so nothing can be scored; correct `mask_values` or the masks.{left_out}"
        )
    return {"images": len(images), "sizes": dict(sizes.most_common()), "shares": shares}, problems


def inspect_dataset(
    dataset_dir: str | Path, classes: Classes, label_file: str | Path | None = None, group: str | None = None
) -> tuple[dict, list[str], list[str]]:
    """The report of ``check_dataset``, all problems, and all warnings, one line each with the rule and the remedy.

    Args:
        dataset_dir, classes, label_file: as for ``check_dataset``.
        group: regular expression whose match in an image's name is its patient, slide or group.
    """
    dataset_dir = Path(dataset_dir)
    train, problems, warnings = inspect_train(dataset_dir / "train" / "img", classes.class_names, label_file)
    report, scored = {"train": train}, []
    for split in ("val", "test"):
        if not is_scored(dataset_dir, split):
            warnings += _unscored(dataset_dir / split, split)
            continue
        scored.append(split)
        report[split], faults = inspect_scored(dataset_dir / split, classes.lookup_table())
        problems += faults
    warnings += score_findings(report, {value: classes.value_names[value] for value in classes.tissues})
    warnings += duplicates(dataset_dir, scored)
    try:
        groups = read_groups(label_file) if label_file else {}
    except (OSError, ValueError):  # already among the problems
        groups = {}
    warnings += shared_groups(dataset_dir, scored, group, groups)
    warnings += filter(None, [single_class_warning(classes)])
    return report, problems, warnings


def _unscored(folder: Path, split: str) -> list[str]:
    """What is not done without masks of a split; nothing is said of a data set without test."""
    if split == "val":
        return [
            f"{folder} has no masks, so no epoch is chosen: the last one is kept, and nothing is scored on val; add "
            "val/img and val/mask to know how good the masks are."
        ]
    return [f"{folder} has images but no masks, so nothing is scored on test."] if list_images(folder / "img") else []


@distributed.one_rank_only()
def check_dataset(
    dataset_dir: str | Path,
    classes: Classes,
    label_file: str | Path | None = None,
    batch_size: int = 1,
    segmenter_batch_size: int = 2,
) -> dict:
    """Reject a data set on which training would fail, before it starts; warn of what would be learnt or scored badly.

    Args:
        dataset_dir: has ``train/img`` and, if they are to be scored, ``val/img`` with ``val/mask``, and ``test`` alike.
        classes: the data set's classes.
        label_file: training labels, if the file names carry none (see ``data.labelled_images``).
        batch_size: patches per training step of the classifier, in each process.
        segmenter_batch_size: the same for the segmentation network.

    Returns:
        For each split the number of ``images`` and their ``sizes``; for ``train`` the number of patches ``per_class``
        and ``per_combination`` of classes; for the others the ``shares`` of pixels by mask value.

    Raises:
        BundleError: with the first ten problems, one per line.
    """
    report, problems, warnings = inspect_dataset(dataset_dir, classes, label_file)
    batch_size *= distributed.get_world_size()
    if 0 < report["train"]["images"] < batch_size:
        problems.append(
            f"{Path(dataset_dir) / 'train' / 'img'} must hold at least one batch, {batch_size} patches, got "
            f"{report['train']['images']}; lower `classifier_batch_size`."
        )
    if segmenter_batch_size < 2:
        problems.append(
            f"`batch_size` must be at least 2, since batch norm needs it in training, got {segmenter_batch_size}; "
            "increase it."
        )
    if not problems:
        for warning in warnings:
            logger.warning(warning)
        logger.info(f"{dataset_dir} passed all checks.\n" + "\n".join(format_report(report, classes.value_names)))
        return report
    lines = problems[:SHOWN_PROBLEMS]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(
            f"… and {len(problems) - SHOWN_PROBLEMS} more; `{command_here(f'check {dataset_dir} …')}` lists them all."
        )
    raise BundleError("\n".join(lines))


def format_report(report: Mapping[str, Mapping], value_names: Sequence[str]) -> list[str]:
    """Format the result of ``check_dataset`` as lines of text.

    Args:
        report: the result.
        value_names: the name of each mask value; higher values have no name.
    """
    lines = []
    for split, result in report.items():
        sizes = [f"{count} of {size}" for size, count in result["sizes"].items()]
        more = f", … and {len(sizes) - 3} more sizes" if len(sizes) > 3 else ""
        lines.append(f"{split}: {result['images']} images, {', '.join(sizes[:3])}{more}")
        if split == "train":
            lines += format_counts(result)
        for value, share in result.get("shares", {}).items():
            name = "ignored" if int(value) == IGNORED else "".join(value_names[int(value) :][:1])
            lines.append(f"  {share:7.2%}  {value} {name}")
    return lines


def main(dataset_dir: str, dataset: str, label_file: str | None = None, group: str | None = None) -> None:
    """Print a summary of a data set and warnings, or everything wrong with it (and exit with status 1).

    Args:
        dataset_dir: the data set's folder.
        dataset: its overlay, ``configs/dataset_….json``.
        label_file: training labels, if the file names carry none.
        group: as for ``inspect_dataset``; default: that of the overlay's ``source``.
    """
    overlay, classes = read_overlay(dataset)
    group = read_release(overlay | ({"source": {"group": group}} if group else {})).group
    report, problems, warnings = inspect_dataset(
        str(dataset_dir), classes, label_file or overlay.get("label_file"), group
    )
    if problems:
        print("\n".join(problems))
        sys.exit(1)
    print("\n".join([*format_report(report, classes.value_names), *(f"Warning: {text}" for text in warnings)]))
