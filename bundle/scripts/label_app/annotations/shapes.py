"""Drawn areas, and what their files say of classes and vertices."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import BundleError


@dataclass(frozen=True)
class Shape:
    """A drawn area.

    Args:
        value: mask value of its class.
        outer: vertices, (n, 2) x and y, in pixels of the image (level 0).
        holes: vertices of each hole.
    """

    value: int
    outer: np.ndarray
    holes: Sequence[np.ndarray] = field(default_factory=tuple)


def value_of(name: Any, value_names: Sequence[str], derived: bool = False) -> int:
    """The mask value of a class name, case-insensitive.

    Args:
        name: the name.
        value_names: names of the classes by mask value.
        derived: whether ``"tumor: invasive"`` is ``"tumor"``, unless there is such a class.

    Raises:
        BundleError: if there is no such class.
    """
    names = [known.strip().lower() for known in value_names]
    text = name.strip().lower() if isinstance(name, str) else ""
    while derived and text not in names and ":" in text:
        text = text.rpartition(":")[0].strip()
    if text not in names:
        raise BundleError(f"each annotation's class must be one of {list(value_names)}, got {name!r}; set its class.")
    return names.index(text)


def vertices(points: Iterable[Any]) -> np.ndarray:
    """Convert vertices to (n, 2) float64.

    Raises:
        BundleError: if they are no outline.
    """
    try:
        corners = np.array([[float(part) for part in list(point)[:2]] for point in points], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BundleError(f"vertices must be pairs of numbers, x first; {error}.") from error
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
        raise BundleError(
            f"an outline must have at least three vertices, each of two finite numbers; got {len(corners)}."
        )
    return corners
