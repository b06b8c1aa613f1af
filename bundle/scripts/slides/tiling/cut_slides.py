"""Cut tissue patches from slides whose labels hold for whole slides; each patch inherits its slide's labels.

    python -m scripts prepare --slides slides.csv --output DIR --dataset NAME [--mpp 0.5] [--patch-size 224] ...

Inherited labels are noisy: a slide's label says that a class is somewhere on it, not in every patch. They suit classes
that fill most of a slide's tissue, or a first network whose masks are then corrected.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data.check import count_labels, format_counts
from ...data.classes import read_overlay
from ...errors import BundleError
from ...files.atomic import write_csv, write_json
from ...files.job_lock import new_folder
from ...runs.config_lists import overlay_file
from ...runs.progress import Progress
from ..reading.slide import Slide, SlideView, thumbnail_view
from ..segmenting.engine import TISSUE_MPP, TISSUE_PX
from ..segmenting.tissue import tissue_mask
from .slide_labels import LabelledSlide, read_slide_labels, split_slides

logger = logging.getLogger(__name__)

NOTE = (
    "The patches inherit the labels of their slides, which are noisy: a class of the slide need not be in every patch. "
    "Expect worse masks than with labels of patches, and look at some pseudo masks before you trust them."
)
TISSUE_SHARE = 0.5  # of a patch, from which on it is kept


def tissue_places(view: SlideView, patch_px: int) -> list[tuple[int, int]]:
    """Row and column, in a grid of patches side by side, of each patch at least half of which is tissue."""
    small = thumbnail_view(view.slide, TISSUE_MPP, TISSUE_PX)
    tissue = tissue_mask(small.read(), sum(small.mpp) / 2)
    step = [patch_px * mpp / coarse for mpp, coarse in zip(view.mpp, small.mpp, strict=True)]  # px of the thumbnail
    rows, columns = (side // patch_px for side in view.shape)

    def share(row: int, column: int) -> float:
        window = [
            slice(int(at * side), math.ceil((at + 1) * side)) for at, side in zip((row, column), step, strict=True)
        ]
        part = tissue[tuple(window)]
        return part.mean() if part.size else 0.0

    return [(row, column) for row in range(rows) for column in range(columns) if share(row, column) >= TISSUE_SHARE]


def cut_slide(
    labelled: LabelledSlide, folder: Path, mpp: float, patch_px: int, most: int, rng: np.random.Generator
) -> list[str]:
    """Write the tissue patches of a slide, at most ``most``, drawn at random, into ``folder``.

    Returns:
        Their names, ``SLIDE_x<left>_y<top>[1 0].png``, in pixels at ``mpp``; without the label if a class is unknown.
    """
    slide = Slide(labelled.path, labelled.mpp, overrule_mpp=labelled.mpp is not None, mpp_from="table")
    view = SlideView(slide, mpp)
    view.block = (patch_px, patch_px)  # read_block then reads patches
    places = tissue_places(view, patch_px)
    if not places:
        logger.warning(f"{labelled.path.name}: no patch of {patch_px} px at {mpp} um per pixel is tissue; left out.")
    chosen = sorted(rng.permutation(len(places))[:most])
    known = not any(map(math.isnan, labelled.label))
    label = f"[{' '.join(map(str, labelled.label))}]" if known else ""
    names = []
    for row, column in (places[index] for index in chosen):
        name = f"{labelled.name}_x{column * patch_px}_y{row * patch_px}{label}.png"
        Image.fromarray(view.read_block(row, column)).save(folder / name)
        names.append(name)
    return names


def cut_slides(
    slides: str | Path,
    output: str | Path,
    dataset: str,
    mpp: float | None = None,
    patch_size: int = 224,
    most: int = 200,
    val_share: float = 0.0,
) -> dict[str, Any]:
    """Write a data set of patches with the labels of their slides; the folder appears complete or not at all.

    Args:
        slides: a table (see ``read_slide_labels``).
        output: the folder to create: ``train/img``, with ``val_share`` also ``val/img`` (without masks), and
            ``labels.csv``, the labels of the training patches with their slides and patients.
        dataset: the data set's name or the path of its overlay.
        mpp: micrometres per pixel of the patches; default: the overlay's ``model_mpp``.
        patch_size: side of a patch in px.
        most: largest number of patches of a slide, drawn at random.
        val_share: share of the slides, whole patients, whose patches go to val.

    Returns:
        The report, also written to ``prepare.json``.

    Raises:
        FileExistsError: if ``output`` exists.
        BundleError: for an invalid table or argument, or slides without tissue.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"`output` must be a new folder, got {output}; remove it or choose another one.")
    overlay, classes = read_overlay(overlay_file("dataset", dataset))
    mpp = overlay.get("model_mpp") if mpp is None else mpp
    if mpp is None or not mpp > 0:
        raise BundleError(
            f"`mpp` must be the patches' micrometres per pixel, above 0, got {mpp}; pass for instance --mpp 0.5, or "
            "set `model_mpp` in the data set's overlay."
        )
    splits = split_slides(read_slide_labels(slides, classes.class_names), val_share)
    report: dict[str, Any] = {"slides": str(slides), "dataset": str(dataset), "mpp": mpp, "patch_size": patch_size}
    report["note"] = NOTE
    rng = np.random.default_rng(0)
    with new_folder(output) as folder:
        for split, members in splits.items():
            image_dir = folder / split / "img"
            image_dir.mkdir(parents=True)
            names = [
                (labelled, cut_slide(labelled, image_dir, mpp, patch_size, most, rng))
                for labelled in Progress(len(members), split, "slide").through(members)
            ]
            report[split] = _counted(names, classes.class_names)
            if not report[split]["patches"]:
                raise BundleError(
                    f"the slides of {split} must have tissue, but no patch of {patch_size} px was found in "
                    f"{[slide.path.name for slide in members][:5]}; lower --patch-size, or look at the slides."
                )
            if split == "train":
                _write_labels(folder / "labels.csv", names, classes.class_names)
        write_json(folder / "prepare.json", report)
    return report


def _counted(names: Sequence[tuple[LabelledSlide, Sequence[str]]], class_names: Sequence[str]) -> dict[str, Any]:
    labels = [slide.label for slide, patches in names for _ in patches]
    return {
        "slides": len(names),
        "groups": len({slide.group for slide, _ in names}),
        "patches": len(labels),
        **count_labels(labels, class_names),
    }


def _write_labels(path: Path, names: Sequence[tuple[LabelledSlide, Sequence[str]]], class_names: Sequence[str]) -> None:
    """Write the label table of patches, which ``--label-file`` takes; unknown labels are empty cells."""
    rows = [
        [name, *("" if math.isnan(value) else value for value in slide.label), slide.name, slide.group]
        for slide, patches in names
        for name in patches
    ]
    write_csv(path, ["image", *class_names, "slide", "patient"], rows)


def format_report(report: Mapping[str, Any]) -> str:
    """Format the report of ``cut_slides`` as lines of text."""
    lines = []
    for split in ("train", "val"):
        if split in report:
            part = report[split]
            groups = f"{part['slides']} slides of {part['groups']} patients or groups"
            lines += [f"{split}: {part['patches']} patches from {groups}", *format_counts(part)]
    if any("?" in combination for combination in report["train"]["per_combination"]):
        lines.append("Some labels are unknown, so file names have none: train with --label-file labels.csv.")
    return "\n".join([*lines, f"Note: {report['note']}"])
