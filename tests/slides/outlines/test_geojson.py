import json
import uuid

import numpy as np
import pytest
import shapely
from some_classes import some_classes

from scripts.slides.outlines.geojson import GeoJSONWriter
from scripts.slides.outlines.polygons import PolygonTracer

CLASSES = some_classes(["tumor", "stroma ü"])


def write(path, values, scale=(2.0, 2.0), origin=(0.0, 0.0), classes=CLASSES):
    tracer = PolygonTracer(values.shape[1], [classes.outside])
    with GeoJSONWriter(classes, scale, origin, path.parent) as writer:
        writer.add(tracer.add(values) + tracer.finish())
        writer.save(path, "a slide")
    return json.loads(path.read_text())


def random_map(seed=0):
    return np.random.default_rng(seed).integers(0, 3, (20, 30))


def numbers(coordinates):
    return [coordinates] if not isinstance(coordinates, list) else [x for part in coordinates for x in numbers(part)]


def test_features_are_what_the_specification_and_qupath_ask_for(tmp_path):
    content = write(tmp_path / "a.geojson", random_map())
    assert content["type"] == "FeatureCollection" and len(content["features"]) == 2
    for feature, name, color in zip(content["features"], CLASSES.value_names[1:], CLASSES.palette[1:]):
        assert feature["type"] == "Feature" and uuid.UUID(feature["id"])
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["classification"] == {"name": name, "color": color}
        assert feature["geometry"]["type"] == "MultiPolygon"
        for polygon in feature["geometry"]["coordinates"]:
            for number, ring in enumerate(polygon):  # RFC 7946, 3.1.6
                assert len(ring) >= 4 and ring[0] == ring[-1]
                assert shapely.LinearRing(ring).is_ccw == (number == 0)
    assert all(
        isinstance(number, int)
        for feature in content["features"]
        for number in numbers(feature["geometry"]["coordinates"])
    )


@pytest.mark.parametrize(("scale", "origin"), [((2.0, 2.0), (0.0, 0.0)), ((1.7, 1.3), (100.25, 7.5))])
def test_areas_and_places_are_those_of_the_map_in_level_0(tmp_path, scale, origin):
    values = random_map(1)
    content = write(tmp_path / "a.geojson", values, scale, origin)
    for feature, value in zip(content["features"], (1, 2)):
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        assert shape.area == pytest.approx((values == value).sum() * scale[0] * scale[1], rel=1e-4)
        rows, columns = np.nonzero(values == value)
        for row, column in zip(rows[::17], columns[::17]):
            assert shape.contains(
                shapely.Point((column + 0.5) * scale[1] + origin[1], (row + 0.5) * scale[0] + origin[0])
            )


def test_without_background_each_value_is_a_class(tmp_path):
    classes = some_classes(["rest", "gland"], background=False)
    content = write(tmp_path / "a.geojson", random_map(), classes=classes)  # 2 is outside the tissue
    assert [feature["properties"]["name"] for feature in content["features"]] == ["rest", "gland"]
    assert classes.outside == 2


def test_a_map_of_nothing_has_no_features(tmp_path):
    assert write(tmp_path / "a.geojson", np.zeros((3, 4), dtype=int)) == {"type": "FeatureCollection", "features": []}


def test_the_same_map_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, random_map())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
