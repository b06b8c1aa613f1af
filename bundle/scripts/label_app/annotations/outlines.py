"""A class map's outlines in formats that viewers read: MONAI Label's JSON, DSA, ASAP XML and QuPath's GeoJSON.

Outlines follow the class map's pixel edges, so they have the class map's areas. A polygon is an outer ring and one ring
per hole, in pixels of the image (level 0). GeoJSON and DSA support holes. ASAP XML and MONAI Label's JSON do not: there
a polygon is a single ring with a bridge to each hole and back along the same line, which encloses the same pixels.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ...data.classes import Classes
from ...files.atomic import atomic_path, write_json
from ...slides.outlines.geojson import DECIMALS, GeoJSONWriter
from ...slides.outlines.polygons import Polygon, PolygonTracer
from .class_maps import ClassMap

Ring = list[list[float]]  # x and y of the vertices, not closed


@dataclass(frozen=True)
class Outline:
    """The outline of a region of one class.

    Args:
        label: name of the class.
        color: RGB, 0..255.
        rings: the outer ring, then the holes, in opposite orientation.
    """

    label: str
    color: tuple[int, int, int]
    rings: list[Ring]

    def one_ring(self) -> Ring:
        """Join all rings into one, with a bridge to each hole and back."""
        outer = self.rings[0]
        path = list(outer)
        for hole in self.rings[1:]:
            path += [outer[0], *hole, hole[0]]
        return path


def trace(class_map: ClassMap, classes: Classes) -> list[Polygon]:
    """Trace the polygons of a class map, in class map pixels."""
    ignored = [value for value in range(256) if value not in classes.tissues]
    tracer = PolygonTracer(class_map.values.shape[1], ignored)
    return tracer.add(class_map.values) + tracer.finish()


def place(polygons: Sequence[Polygon], class_map: ClassMap, classes: Classes) -> list[Outline]:
    """Convert polygons to pixels of the image and add class names and colours, sorted by class."""
    scale, origin = (np.array(pair[::-1], dtype=np.float64) for pair in (class_map.scale, class_map.origin))
    outlines = []
    for polygon in sorted(polygons, key=lambda polygon: polygon.value):
        rings = [_numbers(ring * scale + origin) for ring in polygon.rings]
        color = tuple(int(part) for part in classes.palette[polygon.value])
        outlines.append(Outline(classes.value_names[polygon.value], color, rings))
    return outlines


def _numbers(points: np.ndarray) -> Ring:
    """Convert points, (n, 2) float, to JSON numbers, to integers if all are whole."""
    points = points.round(DECIMALS)
    return (points.astype(np.int64) if np.all(points == points.round()) else points).tolist()


def server_json(outlines: Sequence[Outline], facts: Mapping[str, Any]) -> dict[str, Any]:
    """MONAI Label's own format: elements with one ring per polygon.

    Args:
        outlines: sorted by class.
        facts: name, model, location, size and other details of the request.
    """
    labels = {outline.label: list(outline.color) for outline in outlines}
    elements = [
        {"label": label, "contours": [outline.one_ring() for outline in outlines if outline.label == label]}
        for label in labels
    ]
    place = {"location": facts.get("location"), "size": facts.get("size")}
    return {**facts, "annotations": [{"annotation": {**place, "elements": elements, "labels": labels}}]}


def write_dsa(path: Path, outlines: Sequence[Outline], facts: Mapping[str, Any]) -> None:
    """Write a Digital Slide Archive annotation document: closed polylines with holes."""
    elements = []
    for outline in outlines:
        rings = [[[x, y, 0] for x, y in ring] for ring in outline.rings]
        element = {
            "type": "polyline",
            "closed": True,
            "group": outline.label,
            "label": {"value": outline.label},
            "lineColor": "rgb({},{},{})".format(*outline.color),
            "lineWidth": 2,
            "points": rings[0],
        }
        elements.append(element | ({"holes": rings[1:]} if rings[1:] else {}))
    write_json(path, {"name": facts["name"], "description": json.dumps(dict(facts)), "elements": elements})


def write_asap(path: Path, outlines: Sequence[Outline]) -> None:
    """Write ASAP annotations, which QuPath's MONAI Label plugin reads too."""
    root = ElementTree.Element("ASAP_Annotations")
    annotations, groups = (ElementTree.SubElement(root, name) for name in ("Annotations", "AnnotationGroups"))
    colors = {}
    for outline in outlines:
        color = colors[outline.label] = "#{:02x}{:02x}{:02x}".format(*outline.color)
        names = {"Name": outline.label, "Type": "Polygon", "PartOfGroup": outline.label, "Color": color}
        coordinates = ElementTree.SubElement(ElementTree.SubElement(annotations, "Annotation", names), "Coordinates")
        for order, (x, y) in enumerate(outline.one_ring()):
            ElementTree.SubElement(coordinates, "Coordinate", {"Order": str(order), "X": str(x), "Y": str(y)})
    for label, color in colors.items():
        group = ElementTree.SubElement(groups, "Group", {"Name": label, "PartOfGroup": "None", "Color": color})
        ElementTree.SubElement(group, "Attributes")
    ElementTree.indent(root)
    with atomic_path(path) as temporary:
        ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)


def write_geojson(path: Path, polygons: Sequence[Polygon], class_map: ClassMap, classes: Classes, name: str) -> None:
    """Write annotations for QuPath, one feature per class, as for whole slides."""
    with GeoJSONWriter(classes, class_map.scale, class_map.origin, path.parent) as writer:
        writer.add(polygons)
        writer.save(path, name)
