import json

import numpy as np
import pytest
from PIL import Image
from some_classes import some_classes

from scripts.label_app.annotations.label_files import Annotation, Shape, label_suffix, read_label
from scripts.label_app.annotations.nifti import write_nifti

CLASSES = some_classes(["tumor", "stroma"])
SIZE = (4, 6)
MASK = np.array([[0, 0, 1, 1, 1, 0], [0, 2, 1, 0, 1, 0], [0, 2, 1, 1, 1, 0], [2, 2, 2, 0, 0, 0]], dtype=np.uint8)


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_label(path, SIZE, CLASSES)


def test_masks_are_read_as_png_and_nifti(tmp_path):
    Image.fromarray(MASK).save(tmp_path / "m.png")
    write_nifti(tmp_path / "m.nii.gz", MASK)
    for name in ("m.png", "m.nii.gz"):
        annotation = read_label(tmp_path / name, SIZE, CLASSES)
        assert annotation.mask.dtype == np.uint8 and np.array_equal(annotation.mask, MASK)
        assert np.array_equal(annotation.painted(SIZE), MASK)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('["tumor", "stroma"]', [1, 1]),
        ('["STROMA "]', [0, 1]),
        ("[1, 0]", [1, 0]),
        ('{"labels": ["tumor"]}', [1, 0]),
        ('{"label": [0, 1]}', [0, 1]),
        ('{"tags": ["stroma"]}', [0, 1]),
    ],
)
def test_lists_of_tissues_become_multi_hot(tmp_path, content, expected):
    assert read(tmp_path, "tags.json", content).label == expected


@pytest.mark.parametrize(
    "content", ["[]", "[0, 0]", "[1]", "[1, 2]", '["bone"]', "3", "null", '{"x": ["tumor"]}', "[true, false]"]
)
def test_other_lists_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"image-level labels must be a list of one or more of \['tumor', 'stroma'\]"):
        read(tmp_path, "tags.json", content)


def feature(kind, coordinates, name="tumor"):
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "properties": {"classification": {"name": name}}, "geometry": geometry}


RING, HOLE = [[2, 0], [5, 0], [5, 3], [2, 3], [2, 0]], [[3, 1], [3, 2], [4, 2], [4, 1], [3, 1]]
STROMA = [[1, 1], [2, 1], [2, 3], [3, 3], [3, 4], [0, 4], [0, 3], [1, 3]]


@pytest.mark.parametrize(
    "content",
    [
        {
            "type": "FeatureCollection",
            "features": [feature("Polygon", [RING, HOLE]), feature("Polygon", [STROMA], "Stroma")],
        },
        [feature("MultiPolygon", [[RING, HOLE]]), feature("Polygon", [STROMA], "stroma")],
    ],
)
@pytest.mark.parametrize("name", ["a.geojson", "a.json"])
def test_geojson_is_painted_to_the_pixel(tmp_path, content, name):
    assert np.array_equal(read(tmp_path, name, json.dumps(content)).painted(SIZE), MASK)


def asap(name, group, points):
    rows = [f'<Coordinate Order="{order}" X="{x}" Y="{y}" />' for order, (x, y) in enumerate(points)]
    coordinates = f"<Coordinates>{''.join(reversed(rows))}</Coordinates>"
    return f'<Annotation Name="{name}" Type="Polygon" PartOfGroup="{group}">{coordinates}</Annotation>'


def test_asap_is_painted_to_the_pixel(tmp_path):
    outer = RING[:-1]
    with_bridge = [*outer, outer[0], *HOLE[:-1], HOLE[0]]  # one ring that goes to its hole and back
    body = asap("Annotation 0", "tumor", with_bridge) + asap("stroma", "None", STROMA)
    text = f"<ASAP_Annotations><Annotations>{body}</Annotations></ASAP_Annotations>"
    assert np.array_equal(read(tmp_path, "a.xml", text).painted(SIZE), MASK)


def test_later_shapes_lie_on_top_of_earlier_ones():
    square = np.array([[0, 0], [2, 0], [2, 2], [0, 2]], dtype=float)
    annotation = Annotation(shapes=[Shape(1, square * 2), Shape(2, square)])
    assert annotation.painted((4, 4)).tolist() == [[2, 2, 1, 1], [2, 2, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_windows_at_other_resolutions_take_the_middle_of_their_pixels():
    square = np.array([[4.0, 8.0], [12.0, 8.0], [12.0, 16.0], [4.0, 16.0]])
    mask = np.zeros((20, 20), np.uint8)
    mask[8:16, 4:12] = 1
    for annotation in (Annotation(shapes=[Shape(1, square)]), Annotation(mask=mask)):
        window = annotation.painted((4, 4), scale=(4, 2), origin=(4, 2))
        assert window.tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
        assert not annotation.painted((2, 2), scale=(1, 1), origin=(17, 17)).any()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "x", r"name must end in one of \['.png'"),
        ("a.json", "{", "must be JSON in UTF-8"),
        ("a.json", b"\xff\xfe", "must be JSON in UTF-8"),
        ("a.json", "[" * 100000, "must be JSON in UTF-8"),
        ("a.png", "x", "cannot identify image file|must be a readable image"),
        ("a.xml", "<a>", "must be XML as ASAP writes it"),
        ("a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "must have no DOCTYPE"),
        ("a.xml", asap("bone", "None", STROMA), "each annotation's class must be one of .*got 'bone'"),
        ("a.xml", asap("tumor", "None", [[0, 0], [1, 1]]), "must have at least three vertices"),
        ("a.xml", asap("tumor", "None", [[0, 0], ["x", 1], [2, 2]]), "vertices must be pairs of numbers"),
        ("a.geojson", json.dumps([feature("Point", [0, 0])]), "geometry of type Polygon or MultiPolygon"),
        ("a.geojson", json.dumps([feature("Polygon", [RING], None)]), "each annotation's class must be"),
        ("a.geojson", '{"features": 3}', "`features` must be a list"),
        ("a.geojson", '[{"geometry": null}]', "geometry of type Polygon"),
        ("a.geojson", json.dumps([feature("Polygon", [[[0, 0], [1, None], [2, 2]]])]), "pairs of numbers"),
        ("a.geojson", json.dumps([feature("Polygon", [[[0, 0], [1, 1e999], [2, 2]]])]), "two finite numbers"),
    ],
)
def test_other_files_are_refused_in_words(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, name, content)


def test_masks_of_other_sizes_and_values_are_refused(tmp_path):
    Image.fromarray(MASK[:3]).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="must have the size of its image, 6 x 4 pixels, got 6 x 3"):
        read_label(tmp_path / "small.png", SIZE, CLASSES)
    Image.fromarray(MASK + 1).save(tmp_path / "high.png")
    with pytest.raises(ValueError, match="values must be among 0 background, 1 tumor, 2 stroma; got 1..3"):
        read_label(tmp_path / "high.png", SIZE, CLASSES)


def test_suffixes_are_told_whatever_stands_before_them():
    assert label_suffix("a.b.NII.GZ") == ".nii.gz" and label_suffix("x.nii") == ".nii"
