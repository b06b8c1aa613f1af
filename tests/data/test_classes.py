import ast
import json
from dataclasses import FrozenInstanceError, asdict

import numpy as np
import pytest
from conftest import BUNDLE
from some_classes import some_classes

from scripts.data.classes import KEYS, Classes, read_overlay

NAMES = ["tumor", "stroma", "necrosis"]
WHITE, RED, GREEN, BLUE = [255, 255, 255], [205, 51, 51], [0, 255, 0], [65, 105, 225]


@pytest.fixture
def tissues():
    """Classes with background, whose channels are in another order than their values and labels."""
    return Classes(
        class_names=NAMES,
        classifier_values=[2, 1, 3],
        segmenter_values=[3, 2, 1],
        mask_values={"0": 2, "1-9": 1, "10": 3, "254-255": 0},
        palette=[WHITE, RED, GREEN, BLUE],
    )


@pytest.fixture
def rest():
    """Classes without background, 0 is one of them: GlaS and the like."""
    return Classes(["gland", "rest"], [1, 0], [0, 1], {"0": 0, "1-255": 1}, [GREEN, RED])


# --- what follows from the keys


def test_with_background_its_value_is_no_class(tissues):
    assert len(tissues) == 3 and tissues.background
    assert tissues.value_names == ["background", "stroma", "tumor", "necrosis"]
    assert tissues.channel_names == ["necrosis", "tumor", "stroma"]
    assert tissues.tissues == [1, 2, 3]
    assert tissues.outside == 0 and tissues.colors == [WHITE, RED, GREEN, BLUE]
    assert tissues.legend == [("background", WHITE), ("stroma", RED), ("tumor", GREEN), ("necrosis", BLUE)]


def test_without_background_the_outside_of_tissue_has_a_value_of_its_own(rest):
    assert len(rest) == 2 and not rest.background
    assert rest.value_names == ["rest", "gland"] == rest.channel_names
    assert rest.tissues == [0, 1]
    assert rest.outside == 2 and rest.colors == [GREEN, RED, WHITE]
    assert rest.legend == [("rest", GREEN), ("gland", RED)]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([1, 2, 3], ["background", "tumor", "stroma", "necrosis"]),
        ([2, 1, 3], ["background", "stroma", "tumor", "necrosis"]),
        ([1, 0, 2], ["stroma", "tumor", "necrosis"]),
    ],
)
def test_names_each_mask_value(values, names):
    classes = some_classes(NAMES, 0 not in values, classifier_values=values)
    assert classes.value_names == names


@pytest.mark.parametrize(
    ("classifier_values", "segmenter_values", "order"),
    [([1, 2, 3], [1, 2, 3], [0, 1, 2]), ([2, 1, 3], [3, 2, 1], [2, 0, 1]), ([1, 0, 2], [0, 1, 2], [1, 0, 2])],
)
def test_channels_of_the_classifier_are_put_in_the_segmenters_order(classifier_values, segmenter_values, order):
    values = {"classifier_values": classifier_values, "segmenter_values": segmenter_values}
    classes = some_classes(NAMES, 0 not in segmenter_values, **values)
    assert classes.channel_order == order
    assert [classes.class_names[channel] for channel in order] == classes.channel_names


def test_one_class_is_enough():
    for background in (True, False):
        assert some_classes(["tumor"], background).tissues == [int(background)]


def test_masks_are_translated_both_ways(tissues, rest):
    table = tissues.lookup_table()
    assert table[[0, 1, 9, 10, 254, 255]].tolist() == [2, 1, 1, 3, 0, 0] and set(table[11:254]) == {-1}
    published = tissues.published_values()
    assert published.dtype == np.uint8 and published.tolist() == [254, 1, 0, 10]  # the lowest of several
    assert rest.published_values().tolist() == [0, 1]


@pytest.mark.parametrize(("mask_values", "missing"), [({"0": 1, "1": 2}, [0]), ({"5-9": 1}, [0, 2]), ({}, [0, 1, 2])])
def test_refuses_published_values_without_an_entry_for_ours(mask_values, missing):
    classes = some_classes(NAMES[:2], mask_values=mask_values)
    with pytest.raises(ValueError, match="`mask_values` must have an entry for each of our values, got none") as error:
        classes.published_values()
    assert f"got none for {missing};" in str(error.value)


def test_colors_are_no_way_to_change_the_palette(tissues, rest):
    for classes in (tissues, rest):
        for color in classes.colors:
            color[:] = [1, 2, 3]
    assert tissues.palette == [WHITE, RED, GREEN, BLUE] and rest.colors == [GREEN, RED, [255, 255, 255]]


def test_keys_are_those_of_a_config_and_fixed(tissues):
    assert list(asdict(tissues)) == [*KEYS, "ignore_value"]
    assert Classes.of({**asdict(tissues), "seed": 7}) == tissues
    with pytest.raises(FrozenInstanceError):
        tissues.class_names = ["a"]


# --- what does not fit


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("class_names", "tumor,stroma", "`class_names` must be a list of non-empty names, got 'tumor,stroma'; write"),
        ("class_names", ["tumor", 3], r"`class_names` must be a list of non-empty names, got \['tumor', 3\]; write"),
        ("class_names", ["tumor", ""], "`class_names` must be a list of non-empty names, got .*; write it as"),
        ("class_names", [], r"`class_names` must be one or more different names, got \[\]; rename or add"),
        ("class_names", ["a", "a", "b"], r"`class_names` must be one or more different names, got \['a', 'a', 'b'\]"),
        (
            "class_names",
            ["$a", "b", "@c"],
            r"must not start with \$, @ or %, which .* got \['\$a', '@c'\]; rename them",
        ),
        ("class_names", ["a#b", "%b", "c"], r"or contain #, got \['a#b', '%b'\]; rename them"),
        ("classifier_values", "123", "`classifier_values` must be a list of whole numbers, 0 or more, got '123'"),
        ("classifier_values", [1.0, 2, 3], r"`classifier_values` must be a list of whole .* got \[1.0, 2, 3\]"),
        ("classifier_values", [True, 2, 3], r"`classifier_values` must be a list of whole .* got \[True, 2, 3\]"),
        ("classifier_values", [-1, 1, 2], r"`classifier_values` must be a list of whole numbers, 0 or more, got \[-1"),
        ("segmenter_values", [1, 2, None], "`segmenter_values` must be a list of whole numbers, 0 or more, got .*None"),
        ("segmenter_values", [1, 2, -3], "`segmenter_values` must be a list of whole numbers, 0 or more, got .*-3"),
        (
            "segmenter_values",
            [0, 1, 2],
            r"`segmenter_values` must be the values of `classifier_values`, \[1, 2, 3\], in any",
        ),
        (
            "segmenter_values",
            [1, 2],
            r"`segmenter_values` must be the values of .* in any order, got \[1, 2\]; list each",
        ),
        ("segmenter_values", [1, 2, 2], "`segmenter_values` must be the values of .* in any order"),
        ("mask_values", [0, 1], r"`mask_values` must map each value in the masks to ours, got \[0, 1\]; write it as"),
        ("mask_values", {"9-1": 1}, "`mask_values` must have keys such as .* got '9-1'; rewrite the key"),
        (
            "mask_values",
            {"0": "1"},
            "`mask_values` must map to whole numbers in 0..255, got '1' for '0'; use a class's value",
        ),
        ("mask_values", {"0-3": 1, "2": 1}, "`mask_values` must list each value once, but '2' overlaps"),
        (
            "mask_values",
            {"0": 4, "1": 9},
            r"`mask_values` must map to the classes' values, 0..3, but also maps to \[4, 9\]",
        ),
        (
            "palette",
            [[0, 0, 0]] * 3,
            "`palette` must be 4 RGB colours in 0..255, one per mask value, got .*; write each",
        ),
        ("palette", [[0, 0, 0]] * 5, "`palette` must be 4 RGB colours"),
        ("palette", [[0, 0]] * 4, "`palette` must be 4 RGB colours"),
        ("palette", [[0, 0, 0]] * 3 + [[0, 0]], "`palette` must be 4 RGB colours"),
        ("palette", [[0, 0, 256]] * 4, "`palette` must be 4 RGB colours"),
        ("palette", [[0, 0, -1]] * 4, "`palette` must be 4 RGB colours"),
        ("palette", [[0.0, 0, 0]] * 4, "`palette` must be 4 RGB colours"),
        ("palette", ["red"] * 4, r"`palette` must be 4 RGB colours .* got \['red'"),
    ],
)
def test_refuses_what_does_not_fit(key, value, message):
    with pytest.raises(ValueError, match=message):
        some_classes(NAMES, **{key: value})


@pytest.mark.parametrize("values", [[], [1, 2], [1, 2, 3, 4], [1, 1, 2], [1, 2, 4], [2, 3, 4], [0, 2, 3], [0, 0, 1]])
def test_refuses_values_with_gaps_or_of_another_number(values):
    with pytest.raises(
        ValueError,
        match="`classifier_values` must assign a different mask value to each of the classes .* without gaps, got",
    ) as error:
        some_classes(NAMES, classifier_values=values, segmenter_values=values)
    assert f"got {values}." in str(error.value)


# --- overlays


@pytest.mark.parametrize("path", sorted((BUNDLE / "configs").glob("dataset_*.json")), ids=lambda path: path.stem)
def test_overlays_are_read_with_their_classes(path):
    overlay, classes = read_overlay(path)
    assert overlay == json.loads(path.read_text())
    assert asdict(classes) == {key: overlay[key] for key in KEYS} | {"ignore_value": 255}


def test_overlays_are_refused_with_their_path(tmp_path, tissues):
    path = tmp_path / "dataset_x.json"
    with pytest.raises(FileNotFoundError, match="dataset_x.json"):
        read_overlay(path)
    for keys, message in (
        ({"palette": [WHITE]}, "dataset_x.json: `palette` must be 4 RGB colours"),
        ({"threshold": 30}, r"dataset_x.json: `threshold` must be in \[0, 1\], got 30"),
        ({"level_weights": [0, 0]}, "dataset_x.json: `level_weights` must be a list of numbers"),
    ):
        path.write_text(json.dumps(asdict(tissues) | keys))
        with pytest.raises(ValueError, match=message):
            read_overlay(path)
    path.write_text(json.dumps({"class_names": NAMES, "palette": [WHITE]}))
    lacking = r"dataset_x.json must describe .*; \['classifier_values', 'segmenter_values', 'mask_values'\] are missing"
    with pytest.raises(ValueError, match=lacking):
        read_overlay(path)


# --- signatures

PARTS = {*KEYS, "value_names", "channel_names"}


def taken(tree):
    """The name of each function and class of a module, and the names of what it takes or, as a dataclass, has."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = node.args
            yield node.name, {arg.arg for arg in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        elif isinstance(node, ast.ClassDef):
            yield node.name, {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}


def test_what_belongs_together_is_passed_as_classes_alone():
    paths = sorted((BUNDLE / "scripts").rglob("*.py"))
    found = [(path.name, name, names & PARTS) for path in paths for name, names in taken(ast.parse(path.read_text()))]
    assert [(file, name) for file, name, parts in found if len(parts) > 1] == [("classes.py", "Classes")]
    assert len(found) > 300
