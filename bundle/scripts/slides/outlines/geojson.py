"""Stream polygons into GeoJSON that QuPath imports as annotations."""

import json
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from ...data.classes import Classes
from ...files.atomic import atomic_path
from .polygons import Polygon

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://geojson.org/")
DECIMALS = 4  # of coordinates in pixels of level 0


class GeoJSONWriter:
    """Context manager that collects each class's polygons in a temporary file and writes one feature per class.

    Args:
        classes: names and colours of the classes.
        scale: pixels of level 0 per pixel of the class map, (y, x).
        origin: the class map's top left corner, (y, x), in pixels of level 0.
        folder: folder for temporary files.
    """

    def __init__(self, classes: Classes, scale: Sequence[float], origin: Sequence[float], folder: str | Path) -> None:
        self.classes = classes
        self.scale, self.origin = np.array(scale[::-1], dtype=np.float64), np.array(origin[::-1], dtype=np.float64)
        self.whole = all(float(value).is_integer() for value in (*scale, *origin))
        self.files = {value: TemporaryFile("w+", dir=folder, encoding="ascii") for value in classes.tissues}

    def __enter__(self) -> "GeoJSONWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for file in self.files.values():
            file.close()

    def add(self, polygons: Iterable[Polygon]) -> None:
        """Add polygons of any class, in class map pixels."""
        for polygon in polygons:
            file = self.files[polygon.value]
            mark = ",\n[" if file.tell() else "["
            for ring in polygon.rings:
                corners = self._coordinates(np.concatenate([ring, ring[:1]]))
                file.write(mark + json.dumps(corners, separators=(",", ":")))
                mark = ","
            file.write("]")

    def _coordinates(self, ring: np.ndarray) -> list[list[float]]:
        """Convert ``ring``, (n, 2) x and y, to pixels of level 0."""
        points = ring * self.scale + self.origin
        return (points.astype(np.int64) if self.whole else points.round(DECIMALS)).tolist()

    def save(self, path: str | Path, name: str) -> None:
        """Write the FeatureCollection; a class without polygons has no feature.

        Args:
            path: output file; its name should end in ``.geojson``.
            name: name of the slide, from which the features' ids are derived.
        """
        with atomic_path(path) as temporary, open(temporary, "w", encoding="ascii") as target:
            target.write('{"type":"FeatureCollection","features":[')
            used = [value for value, file in self.files.items() if file.tell()]
            for position, value in enumerate(used):
                properties = {
                    "objectType": "annotation",
                    "name": self.classes.value_names[value],
                    "classification": {
                        "name": self.classes.value_names[value],
                        "color": [int(part) for part in self.classes.palette[value]],
                    },
                }
                identity = uuid.uuid5(NAMESPACE, f"{name} {value} {self.classes.value_names[value]}")
                target.write(f'{"," if position else ""}\n{{"type":"Feature","id":{json.dumps(str(identity))},')
                target.write(f'"properties":{json.dumps(properties)},')
                target.write('"geometry":{"type":"MultiPolygon","coordinates":[\n')
                self.files[value].seek(0)
                shutil.copyfileobj(self.files[value], target)
                target.write("\n]}}")
            target.write("\n]}\n")
