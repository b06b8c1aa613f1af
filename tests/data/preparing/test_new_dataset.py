import itertools
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from skimage.color import rgb2lab
from typer.testing import CliRunner

from scripts.commands.app import app
from scripts.data.mask_values import lookup_table
from scripts.data.preparing.new_dataset import describe_dataset, distinct_colors, new_dataset, next_commands

CONFIGS = Path(__file__).parents[3] / "bundle" / "configs"


@pytest.fixture
def configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "configs"


def run(arguments):
    """Give the command's result for what a person types."""
    words = shlex.split(arguments)
    result = CliRunner().invoke(app, ["new-dataset", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(Path("configs", f"dataset_{words[0]}.json").read_text())


def test_with_background_the_classes_are_1_to_k(configs):
    overlay = run("own --dataset-dir data --class-names tumor,stroma,other")
    assert overlay["class_names"] == ["tumor", "stroma", "other"]
    assert overlay["classifier_values"] == overlay["segmenter_values"] == [1, 2, 3]
    assert overlay["mask_values"] == {"0": 0, "1": 1, "2": 2, "3": 3}
    assert overlay["palette"] == [[255, 255, 255], [230, 159, 0], [86, 180, 233], [0, 158, 115]]
    assert overlay["level_weights"] == [0.2, 0.3, 0.5] and overlay["threshold"] == 0.5
    assert overlay["dataset_name"] == "own" and overlay["dataset_dir"] == str(Path.cwd() / "data")


def test_without_background_the_last_class_is_0_as_in_glas(configs):
    overlay = run("glands --dataset-dir glands --class-names gland,rest --no-background")
    assert overlay["classifier_values"] == [1, 0] and overlay["segmenter_values"] == [0, 1]  # METHODS.md, section 5
    assert overlay["mask_values"] == {"0": 0, "1": 1}
    assert overlay["palette"] == [[239, 239, 239], [230, 159, 0]]
    three = describe_dataset("x", "x", ["a", "b", "rest"], False)
    assert three["classifier_values"] == [1, 2, 0] and three["segmenter_values"] == [0, 1, 2]


def test_colors_belong_to_the_classes_in_their_order(configs):
    overlay = run("a --dataset-dir x --class-names p,q --colors [[1,2,3],[4,5,6]]")
    assert overlay["palette"] == [[255, 255, 255], [1, 2, 3], [4, 5, 6]]
    overlay = run("b --dataset-dir x --class-names p,q --no-background --colors [[1,2,3],[4,5,6]]")
    assert overlay["palette"] == [[4, 5, 6], [1, 2, 3]]


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("'tumor epithelium, tumor-associated stroma'", ["tumor epithelium", "tumor-associated stroma"]),
        ("tumor", ["tumor"]),
        ("1,2", ["1", "2"]),
    ],
)
def test_class_names_are_what_was_typed(configs, typed, names):
    assert run(f"own --dataset-dir x --class-names {typed}")["class_names"] == names


def test_overlay_has_the_keys_and_the_layout_of_the_others(configs):
    path = new_dataset("own", dataset_dir="x", class_names=["a", "b"])
    existing = json.loads((CONFIGS / "dataset_bcss.json").read_text())
    own = json.loads(path.read_text())
    assert [name for name in own if name != "dataset_dir"] == list(existing)
    assert [line[:5] for line in path.read_text().splitlines()[1:-1]] == ['    "'] * len(own)


@pytest.mark.parametrize("background", [True, False])
def test_each_class_has_a_mask_value_and_a_colour(background):
    names = [f"class {index}" for index in range(30)]
    overlay = describe_dataset("x", "x", names, background)
    values = [*range(31)] if background else [*range(30)]
    assert np.flatnonzero(lookup_table(overlay["mask_values"]) >= 0).tolist() == values
    assert sorted(overlay["classifier_values"]) == overlay["segmenter_values"] == values[-30:]
    assert len({tuple(color) for color in overlay["palette"]}) == len(values)


def test_computed_colours_are_far_apart_in_cielab():
    lab = rgb2lab(np.array([[255, 255, 255], *distinct_colors(24)]) / 255)
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)]
    assert min(distances) > 25  # a just noticeable difference is 2.3


@pytest.mark.parametrize("name", ["", "a b", "../x", "x/y", ".hidden", "-x", "ü", "a.b"])
def test_refuses_names_that_do_not_fit_a_file(configs, name):
    with pytest.raises(ValueError, match="`name` must be made of letters"):
        new_dataset(name, dataset_dir="x", class_names=["a"])
    assert not configs.exists()


@pytest.mark.parametrize(
    ("class_names", "background"),
    [(["a", "b", "a"], True), (["a", "", "b"], True), (["a", ""], True), ([""], True), ([], True), (["a"], False)],
)
def test_refuses_class_names_that_are_empty_equal_or_too_few(configs, class_names, background):
    with pytest.raises(ValueError, match="`class_names` must be [12] or more different, non-empty names"):
        new_dataset("x", dataset_dir="x", class_names=class_names, background=background)


def test_refuses_a_text_in_the_place_of_class_names(configs):
    with pytest.raises(ValueError, match="`class_names` must be a list of names, got 'a,b'"):
        new_dataset("x", dataset_dir="x", class_names="a,b")


@pytest.mark.parametrize(
    "colors", [[[1, 2, 3]], [[1, 2], [3, 4]], [[0, 0, 256], [0, 0, 0]], [[0.5, 0, 0], [0, 0, 0]], "red"]
)
def test_refuses_colours_that_do_not_fit(configs, colors):
    with pytest.raises(ValueError, match="`colors` must be 2 RGB colours"):
        new_dataset("x", dataset_dir="x", class_names=["a", "b"], colors=colors)


def test_refuses_to_overwrite(configs):
    path = new_dataset("own", dataset_dir="x", class_names=["a"])
    before = path.read_text()
    with pytest.raises(FileExistsError, match="`name` must be new, got 'own'"):
        new_dataset("own", dataset_dir="y", class_names=["b"])
    assert path.read_text() == before


def test_classes_apart_by_spaces_are_refused(configs):
    result = CliRunner().invoke(app, shlex.split("new-dataset mine --dataset-dir x --class-names a b"))
    assert result.exit_code == 2 and "unexpected extra argument" in result.output
    assert not configs.exists()


def test_says_the_commands_that_follow(configs):
    lines = next_commands(new_dataset("2024", "my data", ["a", "b"])).splitlines()
    folder = shlex.quote(str(Path("my data").resolve()))
    assert lines == [
        f"Wrote configs/dataset_2024.json. Once the patches are in {folder}, run:",
        f"weakhisto check {folder} --dataset 2024",
        "weakhisto train --dataset 2024",
    ]


def test_names_joined_by_something_else_than_commas_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be separated by commas, got \['tumor;stroma'\]"):
        new_dataset("x", "d", ["tumor;stroma"], config_dir=tmp_path)
