"""Descriptions of data sets and plans that are not as they must be, and text in them that could be code."""

import json

import pytest
from bad_input import remove, require_sentence, stopped, table, write_json
from conftest import BUNDLE, LITE
from monai.bundle import ConfigParser
from PIL import Image
from test_bad_data import OVERLAY

from scripts.data.check import main
from scripts.data.preparing.new_dataset import new_dataset
from scripts.data.preparing.prepare import prepare
from scripts.evaluation.experiment import experiment
from scripts.runs.plain_errors import plain_cause
from scripts.runs.stages import stage_config


def overlay(**changes):
    """A fault: an overlay with other keys; ``None`` takes one out."""
    return write_json("dataset_x.json", {key: value for key, value in (OVERLAY | changes).items() if value is not None})


def text(content):
    """A fault: an overlay of other text."""
    return write_json("dataset_x.json", content)


FILE = "dataset_x.json"
CODE = "$open('victim', 'w')"
OVERLAYS = table(
    ("no file", remove(FILE), FILE + " must be a JSON file", "it does not exist"),
    ("no JSON", text("class_names: [a]"), FILE + " must be JSON in UTF-8", "fix the file"),
    ("a comma too many", text('{"class_names": ["a"],}'), FILE + " must be JSON in UTF-8", "fix the file"),
    ("UTF-16", text(json.dumps(OVERLAY).encode("utf-16")), FILE + " must be JSON in UTF-8", "fix the file"),
    ("a key twice", text('{"palette": 1, "palette": 2}'), FILE + " must be JSON", "['palette'] are repeated"),
    ("NaN", text('{"threshold": NaN}'), FILE + " must be JSON", "NaN is not a JSON number", "fix the file"),
    ("a list", text([1]), FILE + " must describe a data set", "new-dataset"),
    ("a key missing", overlay(palette=None), FILE + " must describe a data set", "['palette'] are missing", "pass"),
    ("names as text", overlay(class_names="tumor,stroma"), FILE + ": `class_names` must be a list", "'tumor,stroma'"),
    (
        "a name that is no text",
        overlay(class_names=["tumor", 3]),
        FILE + ": `class_names` must be a list of non-empty names",
    ),
    ("a name twice", overlay(class_names=["tumor"] * 2), "`class_names` must be one or more different names", "rename"),
    (
        "a name too many",
        overlay(class_names=["a", "b", "c"]),
        FILE + ": `classifier_values` must assign a different mask value to each of the classes",
        "got",
    ),
    ("a name that is code", overlay(class_names=[CODE, "b"]), FILE + ": `class_names` must not start with $", "rename"),
    ("a name that refers", overlay(class_names=["@seed", "b"]), FILE + ": `class_names` must not start with $, @"),
    (
        "a value twice",
        overlay(classifier_values=[1, 1]),
        FILE + ": `classifier_values` must assign a different mask value to each of the classes",
        "[1, 1]",
    ),
    ("a value of 1.0", overlay(classifier_values=[1.0, 2]), "`classifier_values` must be a list of whole numbers"),
    ("values as text", overlay(segmenter_values="12"), "`segmenter_values` must be a list of whole numbers", "'12'"),
    ("other values", overlay(segmenter_values=[0, 1]), "`segmenter_values` must be the values of `classifier_values`"),
    (
        "a colour too few",
        overlay(palette=[[0, 0, 0]] * 2),
        FILE + ": `palette` must be 3 RGB colours",
        "write each as [R, G, B]",
    ),
    ("a colour of 256", overlay(palette=[[0, 0, 256]] * 3), FILE + ": `palette` must be 3 RGB colours in 0..255"),
    ("colours as text", overlay(palette=["red"] * 3), FILE + ": `palette` must be 3 RGB colours", "['red'"),
    ("mask values as a list", overlay(mask_values=[0, 1]), "`mask_values` must map each value in the masks", "[0, 1]"),
    ("a range backwards", overlay(mask_values={"9-1": 1}), "`mask_values` must have keys such as", "'9-1'", "rewrite"),
    (
        "a mask value beyond",
        overlay(mask_values={"0": 3}),
        "`mask_values` must map to the classes' values, 0..2",
        "[3]",
    ),
    ("a percentage", overlay(threshold=30), FILE + ": `threshold` must be in [0, 1], got 30", "not a percentage"),
    ("a threshold of text", overlay(threshold="0.3"), FILE + ": `threshold` must be in [0, 1], got '0.3'"),
    (
        "a weight below 0",
        overlay(level_weights=[1, -1, 1]),
        "`level_weights` must be a list of numbers",
        "use weights such as",
    ),
    ("weights of 0", overlay(level_weights=[0, 0, 0]), "`level_weights` must be a list of numbers", "not all 0"),
    ("a mask value of text", overlay(mask_values={"0": "1"}), "`mask_values` must map to whole numbers", "'1'"),
)
SECTIONS = table(
    ("an unknown key", overlay(source={"sufix": "_a"}), "`source` must be a section with keys among", "['sufix']"),
    ("no section", overlay(source=[1]), "`source` must be a section with keys among", "[1]", "rename or remove it"),
    ("a percentage", overlay(source={"val_share": 20}), "`val_share` must be in [0, 1), got 20", "not a percentage"),
    (
        "an open bracket",
        overlay(source={"group": "("}),
        "`group` must be a regular expression, got '('",
        "fix the pattern",
    ),
)
PLANS = table(
    ("no JSON", "variants", "plan.json must be JSON in UTF-8", "fix the file"),
    ("a list", [], "plan.json must have `variants`"),
    ("an unknown key", {"variants": {"a": {}}, "seeds": 3}, "plan.json must have `variants`", "seeds"),
    ("a loop", {"variants": {"a": {"like": "b"}, "b": {"like": "a"}}}, "`like` of 'a' must not lead back to itself"),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with an overlay in order; the working directory is another one."""
    overlay()(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize("case", OVERLAYS)
def test_overlays_are_refused_by_check_and_by_prepare(folder, case):
    case.spoil(folder)
    require_sentence(stopped(main, str(folder / "data"), str(folder / FILE)), case)
    require_sentence(stopped(prepare, str(folder / "data"), str(folder / "out"), str(folder / FILE)), case)
    assert not (folder / "here" / "victim").exists() and not (folder / "out").exists()


@pytest.mark.parametrize("case", SECTIONS)
def test_sections_are_refused_by_prepare(folder, case):
    case.spoil(folder)
    require_sentence(stopped(prepare, str(folder / "data"), str(folder / "out"), str(folder / FILE)), case)


@pytest.mark.parametrize("case", PLANS)
def test_plans_are_refused(folder, case):
    write_json("plan.json", case.spoil)(folder)
    require_sentence(stopped(experiment, str(folder / "plan.json"), str(folder / "out")), case)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("segmenter_values", [1, 2, 0], "`segmenter_values` must be the values of `classifier_values`"),
        ("palette", [[0, 0, 0]], "`palette` must be 4 RGB colours"),
        ("mask_values", {"0": 9}, "`mask_values` must map to the classes' values, 0..3, but also maps to [9]"),
        ("class_names", ["a"], "`classifier_values` must assign a different mask value to each of the classes ['a']"),
        ("threshold", float("nan"), "`threshold` must be in [0, 1], got nan"),
        ("classifier_values", "123", "`classifier_values` must be a list, got '123'"),
    ],
)
@pytest.mark.parametrize("run_id", ["training", "train_classifier", "generate_pseudo_masks", "run"])
def test_each_run_refuses_classes_that_do_not_fit_first_of_all(run_bundle, tmp_path, run_id, key, value, sentence):
    with pytest.raises(RuntimeError) as error:
        run_bundle(run_id, tmp_path / "run", **{key: value})
    assert sentence in str(plain_cause(error.value))
    assert not (tmp_path / "run").exists()


def test_a_missing_config_is_named(run_bundle, tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset_none.json"):
        run_bundle("training", tmp_path / "run", [*LITE, "configs/dataset_none.json"])


@pytest.mark.parametrize("name", ["$open('victim', 'w')", "$import os", "@seed", "%train", "a#b"])
def test_new_data_sets_have_no_class_that_is_code(folder, name):
    message = stopped(new_dataset, "own", dataset_dir=str(folder), class_names=["tumor", name])
    assert "`class_names` must not start with $, @ or %" in message and name in message
    assert not (folder / "here" / "configs").exists()


def test_new_data_sets_have_no_folder_that_a_config_cannot_name(folder):
    message = stopped(new_dataset, "own", dataset_dir=str(folder / "a#1"), class_names=["tumor", "stroma"])
    assert "`dataset_dir` must not contain # or ::" in message and "a#1; rename the folder" in message


def test_names_of_files_and_folders_are_no_code(folder):
    data = folder / "here" / CODE
    for name in (f"{CODE}[1 0].png", "@seed[0 1].png", "%seed[1 1].png"):
        for part in ("train/img", "val/img", "val/mask"):
            (data / part).mkdir(parents=True, exist_ok=True)
            Image.new("L" if part == "val/mask" else "RGB", (8, 8), 1).save(data / part / name)
    labels = {"training": [{"image": path.name, "label": [1, 1]} for path in (data / "train" / "img").iterdir()]}
    write_json("$labels.json", labels)(folder)
    path = new_dataset("own", dataset_dir=CODE, class_names=["tumor", "stroma"])  # relative, as it is typed
    for label_file in (None, str(folder / "$labels.json")):
        parser = ConfigParser()
        parser.read_config([str(BUNDLE / "configs" / "train.json"), str(path)])
        parser["label_file"], parser["classifier_batch_size"] = label_file, 1
        parser = ConfigParser(stage_config(parser.get(), "train_classifier"))
        assert parser.get_parsed_content("check")["train"]["images"] == 3
        items = parser.get_parsed_content("training_images")
        assert {item["image"] for item in items} == set(map(str, (data / "train" / "img").iterdir()))
        assert parser.get_parsed_content("dataset_dir") == str(data)
    assert not (folder / "here" / "victim").exists()


def test_the_code_in_these_tests_would_run(folder):
    ConfigParser({"a": CODE}).get_parsed_content("a")
    assert (folder / "here" / "victim").exists()
