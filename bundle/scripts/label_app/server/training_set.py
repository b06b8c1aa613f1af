"""Turn annotated images and slides into a data set in the bundle's layout."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...data.check import rgb_size
from ...data.preparing.prepare import patch_label, patch_starts
from ...errors import BundleError
from ...files.atomic import write_json
from ...files.foreign_files import open_image
from ...files.pictures import write_mask, write_png
from ...slides.reading.files import is_slide
from ...slides.reading.slide import Slide, SlideView
from ..annotations.label_files import Annotation
from .settings import BundleSettings

SMALLEST_SHARE = 0.02  # minimum annotated fraction of a patch, and of a class to count in its image-level label
LARGEST_NUMBER = 5000  # maximum number of patches per slide
SEED = 0  # for choosing the val images


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with its annotation.

    Args:
        name: file name without suffix.
        path: path of the image.
        annotation: its annotation.
    """

    name: str
    path: Path
    annotation: Annotation


@dataclass(frozen=True)
class Patch:
    """A patch for training: name, image (H, W, 3) uint8 and mask (H, W) uint8."""

    name: str
    image: np.ndarray
    mask: np.ndarray


def write_masked_patches(
    images: Sequence[AnnotatedImage], folder: Path, settings: BundleSettings, mpp: float | None, val_split: float
) -> int:
    """Write ``train/img`` and ``train/mask``, and ``val`` likewise, in patches of the bundle's size.

    Args:
        images: annotated images; those without a mask or shapes are skipped.
        folder: folder of the data set.
        settings: the bundle's classes.
        mpp: micrometres per pixel of slides whose files do not state it.
        val_split: fraction of the images, in [0, 1), that goes into ``val``.

    Returns:
        The number of patches in ``train``.

    Raises:
        BundleError: if ``train`` has fewer than two patches.
    """
    if not 0 <= val_split < 1:
        raise BundleError(f"`val_split` must be in [0, 1), got {val_split}; 0 uses all images for training.")
    drawn = [image for image in images if image.annotation.label is None]
    order = np.random.default_rng(SEED).permutation(len(drawn))
    held_out = set(order[: int(len(drawn) * val_split)].tolist())
    counts = {"train": 0, "val": 0}
    for index, image in enumerate(drawn):
        split = "val" if index in held_out else "train"
        for patch in cut(image, settings, mpp):
            _write_patch(folder / split, patch, settings)
            counts[split] += 1
    if counts["train"] < 2:
        raise BundleError(
            f"training needs at least two patches with masks, of {settings.patch_size} pixels, tagged final; got "
            f"{counts['train']} from {len(drawn)} images. Annotate more images; images with only a list of tissues are "
            "for the other trainer."
        )
    return counts["train"]


def cut(image: AnnotatedImage, settings: BundleSettings, mpp: float | None) -> Iterator[Patch]:
    """Yield the patches of an annotated image, cut side by side, that have enough annotated pixels."""
    height, width = settings.patch_size
    if is_slide(image.path):
        yield from _cut_slide(image, settings, mpp)
        return
    rgb_size(image.path)
    with open_image(image.path) as picture:
        pixels = np.asarray(picture)
    mask = image.annotation.painted(pixels.shape[:2])
    places = [
        (y, x) for y in patch_starts(len(mask), height, height) for x in patch_starts(mask.shape[1], width, width)
    ]
    if not places:
        raise BundleError(f"{image.path.name} must be at least {height} x {width} pixels, got {mask.shape}.")
    for top, left in places:
        window = (slice(top, top + height), slice(left, left + width))
        if _shows_enough(mask[window], settings):
            name = image.name if len(places) == 1 else f"{image.name}_x{left}_y{top}"
            yield Patch(name, pixels[window], mask[window])


def _cut_slide(image: AnnotatedImage, settings: BundleSettings, mpp: float | None) -> Iterator[Patch]:
    """Yield such patches of a slide, at the resolution of the bundle's patches."""
    if settings.model_mpp is None:
        raise BundleError(f"`model_mpp` must be known to train on the slide {image.path.name}; annotate patches.")
    slide, (height, width) = Slide(image.path, mpp), settings.patch_size
    whole = SlideView(slide, settings.model_mpp)
    first, last = _drawn_box(image.annotation, whole)
    tops, lefts = (
        [start for start in patch_starts(length, side, side) if start + side > low and start < high]
        for length, side, low, high in zip(whole.shape, (height, width), first, last, strict=True)
    )
    if len(tops) * len(lefts) > LARGEST_NUMBER:
        raise BundleError(
            f"the annotations of {image.name} must span at most {LARGEST_NUMBER} patches, got "
            f"{len(tops) * len(lefts)}; draw smaller ones, or closer together."
        )
    for top, left in ((top, left) for top in tops for left in lefts):
        corner = [math.ceil(start * step) for start, step in zip((top, left), whole.scale, strict=True)]
        ends = [
            math.ceil((start + side) * step)
            for start, side, step in zip((top, left), (height, width), whole.scale, strict=True)
        ]
        origin = (top * whole.scale[0], left * whole.scale[1])
        mask = image.annotation.painted((height, width), whole.scale, origin)
        if _shows_enough(mask, settings):
            view = SlideView(slide, settings.model_mpp, (*corner, ends[0] - corner[0], ends[1] - corner[1]))
            yield Patch(f"{image.name}_x{left}_y{top}", view.read()[:height, :width], mask)


def _drawn_box(annotation: Annotation, view: SlideView) -> tuple[list[float], list[float]]:
    """Bounding box of the shapes, as top left and bottom right in pixels of a view; the whole view for a mask."""
    if annotation.shapes is None or not annotation.shapes:
        return [0, 0], list(view.shape) if annotation.shapes is None else [0, 0]
    corners = np.concatenate([shape.outer for shape in annotation.shapes])[:, ::-1] / np.array(view.scale)
    return corners.min(axis=0).tolist(), corners.max(axis=0).tolist()


def _shows_enough(mask: np.ndarray, settings: BundleSettings) -> bool:
    """Whether enough of a patch is annotated; if 0 is a class, all of it is."""
    return not settings.classes.background or (mask > 0).mean() >= SMALLEST_SHARE


def write_labelled_patches(
    images: Sequence[AnnotatedImage], folder: Path, mask_dir: Path, settings: BundleSettings
) -> int:
    """Write ``train/img`` and ``labels.json`` with image-level labels.

    The label of an image with an annotator's mask is derived from the mask, which also becomes its pseudo mask.

    Args:
        images: patches, all of one size.
        folder: folder of the data set.
        mask_dir: folder of the pseudo masks.
        settings: the bundle's classes.

    Returns:
        The number of patches.

    Raises:
        BundleError: if there are fewer than two patches, they differ in size, or one is a slide.
    """
    slides = [image.name for image in images if is_slide(image.path)]
    tagged = [image for image in images if image.annotation.label is not None and image.name in slides]
    if tagged:
        raise BundleError(f"image-level labels must be on patches, got the slide {tagged[0].name}; draw on it.")
    patches = [image for image in images if image.name not in slides]
    sizes = {image.name: rgb_size(image.path) for image in patches}
    labelled = [image for image in patches if image.annotation.label is not None]
    if len(labelled) < 1 or len(patches) < 2 or len(set(sizes.values())) > 1:
        raise BundleError(
            "training from image-level labels needs at least two patches of one size, tagged final, and a list of "
            f"tissues for at least one of them; got {len(patches)} patches, {len(labelled)} with lists, of sizes "
            f"{sorted(set(sizes.values()))}."
        )
    rows = []
    for image in patches:
        with open_image(image.path) as picture:
            write_png(folder / "train" / "img" / f"{image.name}.png", picture)
            size = (picture.height, picture.width)
        label = image.annotation.label
        if label is None:
            mask = image.annotation.painted(size)
            label = patch_label(mask, settings.classes.classifier_values, SMALLEST_SHARE)
            write_mask(mask_dir / f"{image.name}.png", mask, settings.classes.palette)
        rows.append({"image": f"{image.name}.png", "label": label})
    write_json(folder / "labels.json", {"training": rows})
    return len(rows)


def _write_patch(folder: Path, patch: Patch, settings: BundleSettings) -> None:
    """Write a patch and its mask."""
    write_png(folder / "img" / f"{patch.name}.png", Image.fromarray(patch.image))
    write_mask(folder / "mask" / f"{patch.name}.png", patch.mask, settings.classes.palette)
