"""Read annotations of an image: a mask (PNG, NIfTI), drawn shapes (ASAP XML, GeoJSON) or a list of tissues.

These files are untrusted: sizes, names and values are validated, and files are read as data only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from skimage.draw import polygon as pixels_inside

from ...data.classes import Classes
from ...data.mask_values import read_mask
from ...errors import BundleError
from . import nifti
from .geojson import read_geojson
from .shapes import Shape, value_of, vertices

SUFFIXES = (".png", *nifti.SUFFIXES, ".xml", ".geojson", ".json")
LARGEST_BYTES = 200_000_000


@dataclass(frozen=True)
class Annotation:
    """The annotation of an image; exactly one field is set.

    Args:
        mask: class values, (H, W) uint8.
        shapes: drawn areas in painting order.
        label: multi-hot, whether each class occurs.
    """

    mask: np.ndarray | None = None
    shapes: Sequence[Shape] | None = None
    label: list[int] | None = None

    def painted(self, size: tuple[int, int], scale: Sequence[float] = (1, 1), origin: Sequence[float] = (0, 0)) -> Any:
        """Rasterise a window of the image, (height, width) uint8; undrawn pixels are 0.

        Args:
            size: height and width of the window in window pixels.
            scale: pixels of the image per pixel of the window, (y, x).
            origin: the window's top left corner, (y, x), in pixels of the image.
        """
        if self.mask is not None:
            rows, columns = (
                np.minimum((start + (np.arange(length) + 0.5) * step).astype(np.intp), side - 1)
                for start, length, step, side in zip(origin, size, scale, self.mask.shape, strict=True)
            )
            return self.mask[np.ix_(rows, columns)]
        mask = np.zeros(size, dtype=np.uint8)
        for shape in self.shapes or ():
            inside = _inside(shape.outer, size, scale, origin)
            for hole in shape.holes:
                inside &= ~_inside(hole, size, scale, origin)
            mask[inside] = shape.value
        return mask


def read_label(path: str | Path, size: tuple[int, int], classes: Classes) -> Annotation:
    """Read a label file.

    Args:
        path: file with one of ``SUFFIXES``.
        size: height and width of its image in pixels.
        classes: names and values.

    Raises:
        BundleError: if the file is invalid; the message says why.
    """
    path = Path(path)
    suffix = label_suffix(path.name)
    if path.stat().st_size > LARGEST_BYTES:
        raise BundleError(
            f"a label file must have at most {LARGEST_BYTES / 1e6:g} MB, got {path.stat().st_size / 1e6:g}."
        )
    if suffix == ".xml":
        return Annotation(shapes=read_asap(path.read_bytes(), classes.value_names))
    if suffix in (".json", ".geojson"):
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise BundleError(f"the label must be JSON in UTF-8; {error}.") from error
        if suffix == ".geojson" or _is_geojson(content):
            return Annotation(shapes=read_geojson(content, classes.value_names, path.name))
        return Annotation(label=read_tags(content, classes.class_names))
    mask = nifti.read_nifti(path, size) if suffix in nifti.SUFFIXES else read_mask(path)
    if mask.shape != size:
        raise BundleError(
            f"the mask must have the size of its image, {size[1]} x {size[0]} pixels, got "
            f"{mask.shape[1]} x {mask.shape[0]}."
        )
    if not 0 <= mask.min() <= mask.max() < len(classes.value_names):
        values = ", ".join(f"{value} {name}" for value, name in enumerate(classes.value_names))
        raise BundleError(f"the mask's values must be among {values}; got {mask.min()}..{mask.max()}.")
    return Annotation(mask=mask.astype(np.uint8))


def label_suffix(name: str) -> str:
    """The suffix of a label file's name, one of ``SUFFIXES``.

    Raises:
        BundleError: if it is none of them.
    """
    found = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)
    if found is None:
        raise BundleError(f"a label file's name must end in one of {list(SUFFIXES)}, got {name!r}.")
    return found


def read_tags(content: Any, class_names: Sequence[str]) -> list[int]:
    """Convert a list of tissues to a multi-hot label.

    Args:
        content: class names (``["tumor", "stroma"]``), case-insensitive, or a 0 or 1 per class; or an object with such
            a list under ``"labels"``, ``"label"`` or ``"tags"``.
        class_names: the tissue classes in label order.
    """
    if isinstance(content, Mapping):
        content = next((content[key] for key in ("labels", "label", "tags") if key in content), None)
    names = [name.lower() for name in class_names]
    if isinstance(content, list) and content and all(isinstance(part, str) for part in content):
        unknown = [part for part in content if part.strip().lower() not in names]
        if not unknown:
            tags = {part.strip().lower() for part in content}
            return [int(name in tags) for name in names]
    elif isinstance(content, list) and len(content) == len(names) and any(content):
        if all(type(part) is int and part in (0, 1) for part in content):
            return list(content)
    raise BundleError(
        f"image-level labels must be a list of one or more of {list(class_names)}, such as "
        f"{json.dumps([class_names[0]])}, or {len(names)} numbers 0 or 1 that are not all 0; got {str(content)[:200]}."
    )


def read_asap(content: bytes, value_names: Sequence[str]) -> list[Shape]:
    """Read the polygons of ASAP's XML; the class is the annotation's group, or its name if the group is ``"None"``."""
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise BundleError("the XML must have no DOCTYPE and no entities; save it with ASAP or QuPath.")
    try:
        root = ElementTree.fromstring(content)  # noqa: S314, without entities
    except ElementTree.ParseError as error:
        raise BundleError(f"the label must be XML as ASAP writes it; {error}.") from error
    shapes = []
    for annotation in root.iter("Annotation"):
        group = annotation.get("PartOfGroup")
        name = annotation.get("Name") if group in (None, "None") else group
        points = sorted(annotation.iter("Coordinate"), key=lambda point: int(point.get("Order", 0)))
        corners = vertices([[point.get("X"), point.get("Y")] for point in points])
        shapes.append(Shape(value_of(name, value_names), corners))
    return shapes


def _is_geojson(content: Any) -> bool:
    """Whether JSON is a GeoJSON object, or a list of features."""
    first = content[0] if isinstance(content, list) and content else content
    return isinstance(first, Mapping) and first.get("type") in ("Feature", "FeatureCollection")


def _inside(corners: np.ndarray, size: tuple[int, int], scale: Sequence[float], origin: Sequence[float]) -> np.ndarray:
    """Pixels of a window whose centres are inside an outline, (height, width) bool; see ``painted``."""
    x, y = ((corners[:, axis] - origin[1 - axis]) / scale[1 - axis] - 0.5 for axis in (0, 1))
    inside = np.zeros(size, dtype=bool)
    if min(x.max(), y.max()) >= -0.5 and x.min() < size[1] and y.min() < size[0]:
        inside[pixels_inside(y, x, size)] = True
    return inside
