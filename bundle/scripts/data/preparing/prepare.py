"""Build a data set in the published layout from images with masks: patches for training, whole images for scoring.

    python -m scripts prepare --source DIR --output DIR --dataset NAME [--patch-size 128] ...

The source has folders ``{split}/img`` and ``{split}/mask``, or is one flat folder: a release that the overlay's section
``"source"`` describes (see ``releases``); ``prepare.json`` records which of its images went to which split. Splits may
also have a folder of patches for each class (see ``class_folders``), which are only linked and labelled.

A training mask only determines which classes a patch shows: it is not written, except with ``train_masks``, which cuts
it like its image, for few-shot adaptation. ``min_share`` is the smallest share of a patch at which a class counts as
present, and so determines what can be learned: if it is low, most patches show most classes and their labels hardly
differ; if it is high, labels call slivers of tissue absent, and patches in which no class reaches the share are lost.
The table printed at the end (patches per class and per combination of classes) shows which combinations are available
for training; classes that always occur together cannot be told apart.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import BundleError
from ...files.atomic import write_json
from ...files.foreign_files import open_image
from ...files.job_lock import new_folder
from ...files.pictures import GREY, IGNORED, Palette, mask_picture
from ...runs.config_lists import overlay_file
from ...runs.progress import Progress
from ..check import count_labels, format_counts, read_pair_mask
from ..classes import Classes, read_overlay
from ..items import image_items, images_with_masks, mask_name
from ..mask_values import inverse, lookup_table, to_ours
from .class_folders import NOTE, find_class_folders, link_patches
from .releases import SPLITS, Release, read_flat_folder, read_release, require_separate_groups


def is_flat(source: Path, release: Release) -> bool:
    """Whether to read ``source`` as a flat folder: it has no ``{split}/img``, and ``release`` has a mask suffix."""
    layout = any((source / split / "img").is_dir() for split in SPLITS)
    return source.is_dir() and not layout and release.mask_suffix is not None


def find_pairs(source: Path, splits: Sequence[str], release: Release) -> dict[str, list[dict[str, str]]]:
    """Images and masks of each split in ``source``, from ``{split}/img`` and ``{split}/mask`` or a flat folder.

    Returns:
        Items ``{"image": path, "label": mask path, "name": file name}`` by split (see ``images_with_masks``).

    Raises:
        FileNotFoundError: if the split ``"train"`` is requested but missing, or if all splits are missing.
        BundleError: for an unknown split, or two images of a split with the same name.
    """
    if not splits or not set(splits) <= set(SPLITS):
        raise BundleError(f"`splits` must be one or more of {', '.join(SPLITS)}, got {splits}; rename them.")
    if is_flat(source, release):
        pairs = read_flat_folder(source, release)
        found = [split for split in splits if pairs[split]]
        if not found:
            raise FileNotFoundError(
                f"{source} must contain images of {' or '.join(splits)}, but has none; check `source` or `splits`."
            )
        return {split: pairs[split] for split in found}
    found = [split for split in splits if (source / split).is_dir()]
    if not found or "train" in set(splits) - set(found):
        fault = "check `source`" if source.is_dir() else "it does not exist; check `source`"
        raise FileNotFoundError(
            f"{source} must contain {'/img and '.join(splits)}/img, or images with their masks beside them if the "
            f"data set's overlay has `mask_suffix` in its section `source`; {fault}."
        )
    pairs = {}
    for split in found:
        pairs[split] = images_with_masks(image_items(source / split / "img", nested=True), source / split / "mask")
    return pairs


def patch_starts(length_px: int, patch_size: int, stride: int) -> list[int]:
    """First pixel of each patch along a side of ``length_px``; the last patch is shifted back to end at the border."""
    last = length_px - patch_size
    return [*range(0, last, stride), last] if last >= 0 else []


def patch_label(mask: np.ndarray, values: Sequence[int], min_share: float) -> list[int]:
    """The multi-hot label of a patch with ``mask``, (H, W) uint8: the classes that cover at least ``min_share`` of it.

    Args:
        mask: class values.
        values: the mask value of each class, in label order.
        min_share: share of the pixels that are not ignored, in (0, 1].
    """
    pixels = np.bincount(mask.ravel(), minlength=256)
    counted = mask.size - pixels[IGNORED]
    return [int(pixels[value] >= min_share * counted > 0) for value in values]


def cut_patches(
    items: Sequence[Mapping[str, str]],
    folder: Path,
    classes: Classes,
    table: np.ndarray,
    patch_size: int,
    stride: int,
    min_share: float,
    draw_mask: Callable[[np.ndarray], Image.Image] | None = None,
) -> dict:
    """Write labelled patches, ``<stem>_x<left>_y<top>[1 0 1].png``, into ``folder / "img"``.

    Args:
        items: images and masks (see ``find_pairs``).
        folder: where to write.
        classes: the data set's classes.
        table: our value for each value in the masks (see ``lookup_table``).
        patch_size: side of a patch in px.
        stride: distance between neighbouring patches in px.
        min_share: smallest share of a patch at which a class counts as present.
        draw_mask: turns a mask into an image, which is written to ``folder / "mask"``; ``None`` for no masks.

    Returns:
        The number of images, of patches and of what was skipped, and the counts of ``count_labels``.
    """
    labels, small_images, empty_patches = [], 0, 0
    for item in Progress(len(items), "train", "image").through(items):
        mask = read_pair_mask(item["image"], item["label"], table)
        image = np.asarray(open_image(item["image"]))
        tops, lefts = (patch_starts(length, patch_size, stride) for length in mask.shape)
        small_images += not (tops and lefts)
        for top, left in ((top, left) for top in tops for left in lefts):
            window = (slice(top, top + patch_size), slice(left, left + patch_size))
            label = patch_label(mask[window], classes.classifier_values, min_share)
            if not any(label):
                empty_patches += 1
                continue
            name = f"{mask_name(item['name'])[:-4]}_x{left}_y{top}[{' '.join(map(str, label))}].png"
            Image.fromarray(image[window]).save(new_file(folder / "img" / name))
            if draw_mask is not None:
                draw_mask(mask[window]).save(new_file(folder / "mask" / name))
            labels.append(label)
    return {
        "images": len(items),
        "images_smaller_than_patch": small_images,
        "patches": len(labels),
        "patches_without_class": empty_patches,
        **count_labels(labels, classes.class_names),
    }


def mask_drawer(written: Mapping[int, int], palette: Palette) -> Callable[[np.ndarray], Image.Image]:
    """A function that turns a mask in our values into a palette image.

    Args:
        written: the value to write for each of ours.
        palette: colour of each of our values.
    """
    table = lookup_table({str(ours): value for ours, value in written.items()})
    colours = np.zeros((256, 3), dtype=np.uint8)
    for ours, value in written.items():
        colours[value] = GREY if ours == IGNORED else palette[ours]
    return lambda mask: mask_picture(to_ours(mask, table), colours)


def copy_pairs(
    items: Sequence[Mapping[str, str]], folder: Path, table: np.ndarray, draw_mask: Callable[[np.ndarray], Image.Image]
) -> None:
    """Write images as RGB PNG into ``folder / "img"`` and masks as palette PNG into ``folder / "mask"``.

    Args:
        items: images and masks (see ``find_pairs``).
        folder: where to write.
        table: our value for each value in the masks (see ``lookup_table``).
        draw_mask: turns a mask in our values into an image.
    """
    for item in Progress(len(items), folder.name, "image").through(items):
        mask = read_pair_mask(item["image"], item["label"], table)
        name = mask_name(item["name"])
        open_image(item["image"]).save(new_file(folder / "img" / name))
        draw_mask(mask).save(new_file(folder / "mask" / name))


def new_file(path: Path) -> Path:
    """Create the folder of ``path``, which may be a subfolder of the split's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def written_values(classes: Classes, published: bool) -> dict[int, int]:
    """The value to write for each of our values: the same, or that of the data set's ``published`` files.

    Where ``mask_values`` would misread ours, for instance if it maps 64 and 128 to them, the files' are written too.
    Ignored pixels keep the data set's ``ignore_value``, if it has one.
    """
    written, table = inverse(classes.mask_values), classes.lookup_table()
    ignored = dict.fromkeys(table[table == IGNORED].tolist(), classes.ignore_value)
    if published or any(table[ours] != ours for ours in written):
        return written | ignored
    return {ours: ours for ours in written} | ignored


def cut_settings(patch_size: int, stride: int | None, min_share: float) -> dict:
    """The settings of ``cut_patches``; ``stride`` defaults to half of ``patch_size``.

    Raises:
        BundleError: unless patches with these settings cover every pixel and can have a label.
    """
    if type(patch_size) is not int or patch_size < 1:
        raise BundleError(f"`patch_size` must be a whole number of pixels, got {patch_size!r}; use 1 or more.")
    stride = max(1, patch_size // 2) if stride is None else stride
    if type(stride) is not int or not 1 <= stride <= patch_size:
        raise BundleError(
            f"`stride` must be in 1..{patch_size} (`patch_size`), got {stride!r}; a larger stride skips pixels."
        )
    if type(min_share) not in (int, float) or not 0 < min_share <= 1:
        raise BundleError(f"`min_share` must be in (0, 1], got {min_share!r}; use a fraction, not a percentage.")
    return {"patch_size": patch_size, "stride": stride, "min_share": min_share}


def prepare(
    source: str,
    output: str,
    dataset: str,
    patch_size: int | None = None,
    stride: int | None = None,
    min_share: float | None = None,
    published_values: bool = False,
    splits: Sequence[str] = SPLITS,
    train_masks: bool = False,
    group: str | None = None,
) -> dict:
    """Write a data set to train on; see the module's docstring. The folder appears complete or not at all.

    Args:
        source: has ``{train,val,test}/{img,mask}``, where an image and its mask have the same name and val and test may
            be missing; or is a release, images and masks in one folder, as described by the overlay's ``source``; or
            has a folder of patches for each class, in splits or not.
        output: the folder to create.
        dataset: the data set's name or the path of its overlay (see ``runs.config_lists``), whose section ``source``
            (see ``Release``) says how to read ``source``.
        patch_size: side of a training patch in px; default: from the overlay's ``source``, or 128.
        stride: distance between neighbouring patches in px, up to ``patch_size``; default: from the overlay's
            ``source``, or half of ``patch_size`` if that is given.
        min_share: smallest share of a patch at which a class counts as present; default: from the overlay's ``source``,
            or 0.05.
        published_values: write masks with the file values of ``mask_values`` instead of ours, as happens anyway if
            it does not map ours to themselves.
        splits: the splits to prepare.
        train_masks: also write the masks of the training patches, for few-shot adaptation; training never reads them.
        group: regular expression; images whose names have the same match, e.g. the slide's name, stay in one split.
            Default: from the overlay's ``source``.

    Returns:
        The report, also written to ``prepare.json``: the settings, the contents of each split, and, if ``source`` is a
        flat folder, the names of each split's images.

    Raises:
        FileExistsError: if ``output`` exists.
        BundleError: for an argument out of range, or an invalid file.
    """
    source, output = Path(str(source)), Path(str(output))  # Fire reads a folder named 2024 as a number
    if output.exists():
        raise FileExistsError(f"`output` must be a new folder, got {output}; remove it or choose another one.")
    overlay, classes = read_overlay(overlay_file("dataset", dataset))
    release = read_release(overlay)
    if group is not None:
        release = replace(release, group=group)
    if patch_size is None:
        patch_size, stride = release.patch_size, release.stride if stride is None else stride
    settings = cut_settings(patch_size, stride, release.min_share if min_share is None else min_share)
    table = lookup_table(release.mask_values, release.ignore_value)
    written = written_values(classes, published_values)
    draw_mask = mask_drawer(written, classes.palette)
    splits = [splits] if isinstance(splits, str) else list(splits)
    sorted_patches = find_class_folders(source, classes.class_names, splits)
    others = [
        split for split in splits if not sorted_patches or split not in sorted_patches and (source / split).is_dir()
    ]
    pairs = find_pairs(source, others, release) if others else {}
    if group is not None:
        require_separate_groups(pairs, group)
    report = {"source": str(source), "dataset": str(dataset), **settings, "written_values": written}
    if is_flat(source, release):
        report["names"] = {split: [item["name"] for item in items] for split, items in pairs.items()}
    with new_folder(output) as folder:
        for split, folders in sorted_patches.items():
            report[split] = link_patches(folders, folder / split, classes.class_names)
            report["note"] = NOTE
        for split, items in pairs.items():
            (folder / split / "img").mkdir(parents=True)
            if split != "train" or train_masks:
                (folder / split / "mask").mkdir()
            if split == "train":
                drawer = draw_mask if train_masks else None
                report[split] = cut_patches(items, folder / split, classes, table, **settings, draw_mask=drawer)
            else:
                copy_pairs(items, folder / split, table, draw_mask)
                report[split] = {"images": len(items)}
        write_json(folder / "prepare.json", report)
    return report


def format_report(report: Mapping) -> str:
    """Format the report of ``prepare`` as a table."""
    lines = []
    train = report.get("train", {})
    if train and "patches" not in train:
        lines += [
            f"train: {train['images']} patches, each labelled with the class of its folder",
            *format_counts(train),
        ]
    elif train:
        lines += [
            f"train: {train['patches']} patches of {report['patch_size']} px from {train['images']} images, labelled "
            f"with the classes that cover {report['min_share']:.1%} or more",
            *format_counts(train),
            f"  {train['patches_without_class']:7d}  patches skipped: no class covers {report['min_share']:.1%}",
            f"  {train['images_smaller_than_patch']:7d}  images skipped: smaller than a patch",
        ]
    for split in ("val", "test"):
        if split in report:
            kind = "patches without masks" if "per_class" in report[split] else "images with masks"
            lines.append(f"{split}: {report[split]['images']} {kind}")
    lines += [f"Note: {report['note']}"] if "note" in report else []
    return "\n".join(lines)
