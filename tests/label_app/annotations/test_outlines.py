import json
from xml.etree import ElementTree

import numpy as np
import pytest
from shapely.geometry import Polygon as Shapely
from shapely.geometry import shape
from some_classes import some_classes

from scripts.label_app.annotations.class_maps import ClassMap
from scripts.label_app.annotations.label_files import Annotation, read_asap, read_geojson
from scripts.label_app.annotations.outlines import place, server_json, trace, write_asap, write_dsa, write_geojson

CLASSES = some_classes(["tumor", "stroma"], palette=[[255, 255, 255], [205, 51, 51], [0, 255, 10]])
FACTS = {"name": "n", "model": "m", "location": [7, 5], "size": [80, 60]}


@pytest.fixture()
def class_map():
    """Regions with holes in holes, in which every form of an outline occurs."""
    values = np.kron(np.random.default_rng(3).integers(0, 3, (12, 16)), np.ones((2, 2))).astype(np.uint8)
    values[4:20, 4:20] = 1
    values[8:16, 8:16] = 0
    values[10:12, 10:12] = 2
    return ClassMap(values, 0.0, (2.5, 2.5), (5.0, 7.0), (60, 80))


def areas_in_mask(class_map):
    return {name: (class_map.values == value).sum() * 2.5**2 for value, name in enumerate(CLASSES.value_names) if value}


def ring_area(ring):
    """Inside a ring, by the shoelace formula, whichever way it runs."""
    x, y = np.array(ring, dtype=float).T[:2]
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2


def outlines(class_map):
    return place(trace(class_map, CLASSES), class_map, CLASSES)


def test_areas_are_the_masks_in_the_servers_json(class_map):
    answer = server_json(outlines(class_map), FACTS)
    annotation = answer["annotations"][0]["annotation"]
    areas = {e["label"]: sum(map(ring_area, e["contours"])) for e in annotation["elements"]}
    assert areas == pytest.approx(areas_in_mask(class_map))
    assert annotation["labels"] == {"tumor": [205, 51, 51], "stroma": [0, 255, 10]}
    assert (annotation["location"], annotation["size"], answer["model"]) == ([7, 5], [80, 60], "m")
    json.dumps(answer)


def test_areas_are_the_masks_in_dsa_documents(class_map, tmp_path):
    write_dsa(tmp_path / "a.json", outlines(class_map), FACTS)
    document = json.loads((tmp_path / "a.json").read_text())
    areas = dict.fromkeys(CLASSES.class_names, 0.0)
    for element in document["elements"]:
        assert element["type"] == "polyline" and element["closed"] and all(p[2] == 0 for p in element["points"])
        flat = [[p[:2] for p in ring] for ring in [element["points"], *element.get("holes", [])]]
        polygon = Shapely(flat[0], flat[1:])
        assert polygon.is_valid
        areas[element["label"]["value"]] += polygon.area
    assert areas == pytest.approx(areas_in_mask(class_map))
    assert any("holes" in element for element in document["elements"])
    assert {e["lineColor"] for e in document["elements"] if e["group"] == "stroma"} == {"rgb(0,255,10)"}


def test_asap_and_geojson_paint_the_map_again(class_map, tmp_path):
    write_asap(tmp_path / "a.xml", outlines(class_map))
    write_geojson(tmp_path / "a.geojson", trace(class_map, CLASSES), class_map, CLASSES, "slide")
    geojson = json.loads((tmp_path / "a.geojson").read_text())
    names = CLASSES.value_names
    for shapes in (read_asap((tmp_path / "a.xml").read_bytes(), names), read_geojson(geojson, names)):
        painted = Annotation(shapes=shapes).painted(class_map.values.shape, class_map.scale, class_map.origin)
        assert np.array_equal(painted, class_map.values)
    areas = {f["properties"]["name"]: shape(f["geometry"]).area for f in geojson["features"]}
    assert areas == pytest.approx(areas_in_mask(class_map))


def test_asap_has_what_qupaths_plugin_reads(class_map, tmp_path):
    write_asap(tmp_path / "a.xml", outlines(class_map))
    root = ElementTree.parse(tmp_path / "a.xml").getroot()
    annotations = root.findall("Annotations/Annotation")
    assert {(a.get("Name"), a.get("Color")) for a in annotations} == {("tumor", "#cd3333"), ("stroma", "#00ff0a")}
    orders = [int(c.get("Order")) for c in annotations[0].iter("Coordinate")]
    assert orders == list(range(len(orders))) and len(orders) >= 4
    assert {g.get("Name") for g in root.findall("AnnotationGroups/Group")} == {"tumor", "stroma"}


def test_a_map_without_classes_has_no_outlines(tmp_path):
    empty = ClassMap(np.zeros((4, 5), np.uint8), 0.0, (1, 1), (0, 0), (4, 5))
    assert outlines(empty) == [] and server_json([], FACTS)["annotations"][0]["annotation"]["elements"] == []
    write_geojson(tmp_path / "a.geojson", [], empty, CLASSES, "slide")
    assert json.loads((tmp_path / "a.geojson").read_text())["features"] == []
