"""From annotated images and slides to a data set in the bundle's layout."""

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

SMALLEST_SHARE = 0.02  # of a patch that is drawn on; of a class that a mask shows, to be its image-level label
LARGEST_NUMBER = 5000  # of patches that one slide gives
SEED = 0  # of what becomes val


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with its annotation.

    Args:
        name: without a suffix.
        path: of the image.
        annotation: what is known of it.
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
        images: those without a mask or shapes are left out.
        folder: of the data set.
        settings: the bundle's classes.
        mpp: of slides whose files do not say it.
        val_split: share of the images, in [0, 1), that goes into ``val``.

    Returns:
        The number of patches in ``train``.

    Raises:
        BundleError: if there are not two patches in ``train``.
    """
    if not 0 <= val_split < 1:
        raise BundleError(f"`val_split` must lie in [0, 1), got {val_split}; 0 keeps all images for training.")
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
            f"training needs two patches with masks or more, of {settings.patch_size} pixels, tagged final; got "
            f"{counts['train']} from {len(drawn)} images. Draw on more images; those that only have a list of tissues "
            "are for the other trainer."
        )
    return counts["train"]


def cut(image: AnnotatedImage, settings: BundleSettings, mpp: float | None) -> Iterator[Patch]:
    """The patches of an annotated image that show enough of what is drawn, side by side."""
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
    """Likewise of a slide, at the resolution of the bundle's patches, where something is drawn."""
    if settings.model_mpp is None:
        raise BundleError(f"{image.path.name} is a slide, and the bundle's `model_mpp` is unknown; annotate patches.")
    slide, (height, width) = Slide(image.path, mpp), settings.patch_size
    whole = SlideView(slide, settings.model_mpp)
    first, last = _drawn_box(image.annotation, whole)
    tops, lefts = (
        [start for start in patch_starts(length, side, side) if start + side > low and start < high]
        for length, side, low, high in zip(whole.shape, (height, width), first, last, strict=True)
    )
    if len(tops) * len(lefts) > LARGEST_NUMBER:
        raise BundleError(
            f"the annotations of {image.name} must lie within {LARGEST_NUMBER} patches, got {len(tops) * len(lefts)}; "
            "draw smaller ones, or nearer to one another."
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
    """First and last row and column, in pixels of a view, that shapes reach; all of it for a mask."""
    if annotation.shapes is None or not annotation.shapes:
        return [0, 0], list(view.shape) if annotation.shapes is None else [0, 0]
    corners = np.concatenate([shape.outer for shape in annotation.shapes])[:, ::-1] / np.array(view.scale)
    return corners.min(axis=0).tolist(), corners.max(axis=0).tolist()


def _shows_enough(mask: np.ndarray, settings: BundleSettings) -> bool:
    """Whether enough of a patch is drawn on; where 0 is a class, all of it is."""
    return not settings.classes.background or (mask > 0).mean() >= SMALLEST_SHARE


def write_labelled_patches(
    images: Sequence[AnnotatedImage], folder: Path, mask_dir: Path, settings: BundleSettings
) -> int:
    """Write ``train/img`` and ``labels.json`` with image-level labels.

    An annotator's mask gives its image's label, and is put where pseudo masks go, which keeps it.

    Args:
        images: patches, all of one size.
        folder: of the data set.
        mask_dir: of the pseudo masks.
        settings: the bundle's classes.

    Returns:
        The number of patches.

    Raises:
        BundleError: if there are not two, or they differ in size, or one is a slide.
    """
    slides = [image.name for image in images if is_slide(image.path)]
    tagged = [image for image in images if image.annotation.label is not None and image.name in slides]
    if tagged:
        raise BundleError(f"image-level labels are for patches; {tagged[0].name} is a slide: draw on it.")
    patches = [image for image in images if image.name not in slides]
    sizes = {image.name: rgb_size(image.path) for image in patches}
    labelled = [image for image in patches if image.annotation.label is not None]
    if len(labelled) < 1 or len(patches) < 2 or len(set(sizes.values())) > 1:
        raise BundleError(
            "training from image-level labels needs two patches or more of one size, tagged final, and a list of "
            f"tissues for one or more of them; got {len(patches)} patches, {len(labelled)} with lists, of sizes "
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
