import json

import numpy as np
import pytest
from some_classes import some_classes

from scripts.label_app.annotations.geojson import read_geojson
from scripts.label_app.annotations.label_files import read_label

CLASSES = some_classes(["tumor", "stroma"])
NAMES = CLASSES.value_names


def square(left, top, side=2):
    return [[left, top], [left + side, top], [left + side, top + side], [left, top + side], [left, top]]


def feature(geometry, classification=None, **properties):
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {"objectType": "annotation", "classification": classification, **properties},
    }


def polygon(left, top, side=2):
    return {"type": "Polygon", "coordinates": [square(left, top, side)]}


TUMOR = {"name": "tumor", "color": [200, 0, 0]}
POINT, LINE = {"type": "Point", "coordinates": [1, 1]}, {"type": "LineString", "coordinates": [[0, 0], [5, 5]]}


def test_what_can_be_used_of_an_export_is_used_and_the_rest_named(tmp_path, caplog):
    """Situation 21, with the byte order mark that Windows' editors add."""
    features = [
        feature(polygon(0, 0), TUMOR),
        feature(polygon(4, 0)),
        feature(LINE, TUMOR),
        feature(POINT),
        feature(polygon(4, 4), {"name": "Region*"}),
        feature(polygon(4, 2), {"name": "bone"}),
        feature({"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}, TUMOR),
        feature(None, TUMOR),
        3,
        feature(polygon(2, 2), {"name": " Stroma"}),
    ]
    path = tmp_path / "a.geojson"
    path.write_text("\ufeff" + json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    expected = np.zeros((6, 6), np.uint8)
    expected[:2, :2], expected[2:4, 2:4] = 1, 2
    assert np.array_equal(read_label(path, (6, 6), CLASSES).painted((6, 6)), expected)
    for text in (
        "a.geojson: left out 8 parts:",
        "features[1]: it has no class",
        "features[2]: it is a LineString, no outline",
        "features[3]: it has no class",
        "features[4]: its class Region* is one that QuPath ignores",
        "features[5]: each annotation's class must be one of ['background', 'tumor', 'stroma'], got 'bone'",
        "features[6]: an outline must have at least three vertices",
        "features[7]: it is no feature with a geometry",
        "features[8]: it is no feature with a geometry",
    ):
        assert text in caplog.text


@pytest.mark.parametrize(
    "classification",
    [
        {"name": "tumor: invasive"},
        {"name": "Tumor: invasive: front"},
        {"names": ["Tumor", "Positive"]},
        {"names": ["tumor"]},
        "tumor",
    ],
)
def test_derived_classes_count_as_their_class(classification):
    assert [shape.value for shape in read_geojson(feature(polygon(0, 0), classification), NAMES)] == [1]


def test_a_class_of_its_own_rules_over_what_it_is_derived_from():
    names = ["background", "tumor", "tumor: invasive"]
    assert read_geojson([feature(polygon(0, 0), {"name": "Tumor: Invasive"})], names)[0].value == 2


def test_collections_and_several_polygons_are_taken_apart(caplog):
    several = {"type": "MultiPolygon", "coordinates": [[square(0, 0)], [square(4, 0)]]}
    mixed = {"type": "GeometryCollection", "geometries": [polygon(0, 4), POINT, several]}
    shapes = read_geojson({"features": [feature(mixed, TUMOR)]}, NAMES)
    assert [shape.outer[0].tolist() for shape in shapes] == [[0, 4], [0, 0], [4, 0]]
    assert "left out 1 parts: features[0]: it is a Point, no outline." in caplog.text


def test_an_empty_export_has_no_areas():
    assert read_geojson({"type": "FeatureCollection", "features": []}, NAMES) == []


def test_an_export_of_which_nothing_can_be_used_is_refused():
    features = [feature(POINT, TUMOR)] * 12
    with pytest.raises(ValueError, match=r"got none: features\[0\]: it is a Point.* And 2 more"):
        read_geojson(features, NAMES)
