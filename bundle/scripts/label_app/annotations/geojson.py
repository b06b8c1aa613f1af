"""Read drawn areas from GeoJSON as QuPath exports it; what is no area of a known class is left out and named."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...errors import BundleError
from .shapes import Shape, value_of, vertices

logger = logging.getLogger(__name__)

NAMED = 10  # features to name in a message


def read_geojson(content: Any, value_names: Sequence[str], source: str = "the label") -> list[Shape]:
    """Read the areas of GeoJSON: a FeatureCollection, a feature or a list of features.

    Lines, points, areas without a class, of a class that QuPath ignores (``Region*``) or of another one, and damaged
    outlines are left out, with a warning that names each by its position, from 0, and the reason.

    Args:
        content: the parsed JSON.
        value_names: names of the classes by mask value.
        source: name of the file, for messages.

    Raises:
        BundleError: if there are features but no area of a known class, or no features are found.
    """
    if isinstance(content, Mapping):
        content = content.get("features", [content])
    if not isinstance(content, list):
        raise BundleError(f"`features` must be a list, got {type(content).__name__}; export it again.")
    shapes: list[Shape] = []
    left_out: list[str] = []
    for index, feature in enumerate(content):
        try:
            value = value_of(class_name(feature), value_names, derived=True)
            for kind, coordinates in geometries(feature["geometry"]):
                try:
                    shapes += areas(kind, coordinates, value)
                except BundleError as error:
                    left_out.append(f"features[{index}]: {error}")
        except BundleError as error:
            left_out.append(f"features[{index}]: {error}")
        except (AttributeError, KeyError, TypeError):
            left_out.append(f"features[{index}]: it is no feature with a geometry.")
    reasons = " ".join(left_out[:NAMED]) + (f" And {len(left_out) - NAMED} more." if len(left_out) > NAMED else "")
    if left_out and not shapes:
        raise BundleError(
            "the GeoJSON must have an outline, a geometry of type Polygon or MultiPolygon, and each annotation's class "
            f"must be one of {list(value_names)}; got none: {reasons}"
        )
    if left_out:
        logger.warning(f"{source}: left out {len(left_out)} parts: {reasons}")
    return shapes


def class_name(feature: Mapping[str, Any]) -> str:
    """The class of a feature: QuPath's classification, with the names of a derived class joined, or the name.

    Raises:
        BundleError: if it has none, or one that QuPath ignores.
    """
    properties = feature.get("properties") or {}
    found = properties.get("classification") or {}
    if isinstance(found, Mapping):
        names = found.get("names")
        found = ": ".join(map(str, names)) if isinstance(names, list) else found.get("name")
    found = found or properties.get("name")
    if not found:
        raise BundleError("it has no class; set one in QuPath.")
    if str(found).strip().endswith("*"):
        raise BundleError(f"its class {found} is one that QuPath ignores.")
    return found


def geometries(geometry: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The type and coordinates of each simple geometry, also inside collections."""
    if geometry["type"] == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from geometries(part)
    else:
        yield geometry["type"], geometry["coordinates"]


def areas(kind: str, coordinates: Any, value: int) -> list[Shape]:
    """The areas of a geometry.

    Raises:
        BundleError: if it is a line or a point, or an outline is damaged.
    """
    if kind not in ("Polygon", "MultiPolygon"):
        raise BundleError(f"it is a {kind}, no outline.")
    shapes = []
    for rings in [coordinates] if kind == "Polygon" else coordinates:
        corners = [vertices(ring) for ring in rings]
        if corners:
            shapes.append(Shape(value, corners[0], corners[1:]))
    return shapes
