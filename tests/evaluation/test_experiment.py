import ast
import json
import os
from ast import literal_eval
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import BUNDLE, LITE, TINY
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from scripts.evaluation.borders import BorderScores, digest
from scripts.evaluation.experiment import charts, commands, experiment, mean_iou, read_plan, run_folder, table
from scripts.runs.run_folder import read_record

SVG = "{http://www.w3.org/2000/svg}"


def write_plan(path, **content):
    path.write_text(json.dumps(content))
    return str(path)


def fake_run(folder, ious, minutes, **more):
    """A complete run in which class a and b have these IoUs, c has 0.9 and d was never there."""
    scores = {name: {"iou": iou} for name, iou in {**ious, "c": 0.9, "d": None}.items()}
    (folder / "scores").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "scores" / "segmenter_val.json").write_text(
        json.dumps({"protocols": {"published": {"classes": scores, **more}}})
    )
    torch.save({"weight": torch.zeros(1000, 1500), "bias": torch.zeros(2)}, folder / "models" / "model.pt")
    stages = {
        "train_classifier": {"minutes": 1.5, "result": "x"},
        "run": {"minutes": minutes, "result": "models/model.pt"},
    }
    (folder / "run.json").write_text(json.dumps({"stages": stages}))


def test_table_has_means_and_ranges_of_what_is_complete(tmp_path):
    plan = {"classes": ["a", "b"], "variants": {"one": {}, "two": {}, "not run": {}}}
    fake_run(run_folder(tmp_path, "one", 0), {"a": 0.5, "b": 0.7}, 10)
    fake_run(run_folder(tmp_path, "one", 1), {"a": 0.6, "b": 0.8}, 12)
    fake_run(run_folder(tmp_path, "two", 1), {"a": 0.1, "b": 0.3}, 2)
    lines = table(plan, [0, 1], tmp_path).splitlines()
    assert lines[4:] == [
        "| one | – | 0.650 (0.600–0.700) | – | – | – | – | – | 12 (12–14) | 1.5 | 2 |",
        "| two | – | 0.200 | – | – | – | – | – | 4 | 1.5 | 1 |",
    ]
    assert mean_iou(run_folder(tmp_path, "one", 0), "segmenter", "val", None) == pytest.approx((0.5 + 0.7 + 0.9) / 3)


def test_table_has_the_border_scores_of_the_chosen_classes(tmp_path):
    true = np.zeros((100, 200), dtype=np.uint8)
    true[:, :100], true[:, 100:], true[90:, 190:] = 1, 2, 3
    pred = np.roll(true, 2, axis=1)
    scores = BorderScores(["background", "a", "b", "c"], exclude_background=True)
    scores.add("0.png", pred, true)
    folder = run_folder(tmp_path, "one", 0)
    fake_run(folder, {"a": 0.5, "b": 0.7}, 10, borders=scores.summary())
    plan = {"classes": ["a", "b"], "variants": {"one": {}}}
    expected = digest(scores.summary(), ["a", "b"])
    assert expected["near_border"] < expected["inside"] and expected["small_found"] is None
    shown = [expected[name] for name in ("boundary_iou", "near_border", "inside")]
    cells = table(plan, [0], tmp_path).splitlines()[4].split(" | ")
    assert cells[3:8] == [*(f"{value:.3f}" for value in shown), "–", "1.000"]


def test_charts_show_mean_iou_by_what_the_variants_differ_in(tmp_path):
    points = {"10 %": "few", "50 %": "half", "all": "whole"}
    one = {"x_name": "patches", "points": points, "level": "top"}
    variants = {name: {} for name in [*points.values(), "top"]}
    path = write_plan(tmp_path / "plan.json", variants=variants, charts={"patches": one, "empty": one | {"points": {}}})
    plan = read_plan(path) | {"classes": ["a", "b"]}
    runs = {"few": {"a": 0.0, "b": 0.5}, "whole": {"a": 0.5, "b": 0.5}, "top": {"a": 1.0, "b": 0.5}}
    for name, ious in runs.items():
        fake_run(run_folder(tmp_path, name, 0), ious, 1)
    found = charts(plan, [0], tmp_path)
    assert list(found) == ["patches"]  # nothing of the other has run
    drawing = ElementTree.fromstring(found["patches"])
    assert drawing.get("aria-label") == "mean IoU by patches: 0.250 at 10 %, 0.500 at all"
    lines = [[line.get("class"), line.get("points").split()] for line in drawing.iter(f"{SVG}polyline")]
    (line,), (level,) = ([places for kind, places in lines if kind == wanted][:1] for wanted in ("line", "third"))
    heights = [float(place.split(",")[1]) for place in [*line, *level]]
    low, middle, *tops = heights
    assert len(line) == 2 and len(level) == 3 and set(tops) == {tops[0]}
    assert low - middle == pytest.approx(middle - tops[0], abs=0.11) and middle < low  # 0.25, 0.5, 0.75
    said = [text.text for text in drawing.iter(f"{SVG}text")]
    assert {"10 %", "50 %", "all", "mean IoU by patches", "segmentation", "top"} <= set(said) and "CAMs" not in said


@pytest.mark.parametrize(
    "one, message",
    [
        ({"x_name": "x", "points": {"1": "nobody"}}, "must name variants, got .'nobody'"),
        ({"x_name": "x", "points": {"1": "a"}, "level": "b"}, "must name variants, got .'b'"),
        ({"points": {"1": "a"}}, "must have .*x_name"),
        ({"x_name": "x", "points": {}, "colour": 1}, "must have .*got .*colour"),
    ],
)
def test_a_chart_of_what_is_not_there_is_refused(tmp_path, one, message):
    with pytest.raises(ValueError, match=message):
        read_plan(write_plan(tmp_path / "plan.json", variants={"a": {}}, charts={"one": one}))


def test_a_variant_s_settings_come_after_those_of_all(tmp_path):
    plan = {
        "configs": ["a.json"],
        "settings": {"x": 1, "y": None},
        "variants": {"own": {"configs": ["b.json"], "settings": {"x": [1, 2]}}, "taken": {"classifier_of": "own"}},
    }
    (own,) = commands(plan, "own", 3, tmp_path)
    assert own[4:7] == ["training", "--config_file", "['a.json', 'b.json']"]
    wanted = {"--x": "[1, 2]", "--y": "$None", "--seed": "3", "--output_dir": str(tmp_path / "own" / "3")}
    assert dict(zip(own[7::2], own[8::2])) == wanted
    score, segment = commands(plan, "taken", 3, tmp_path)
    assert score[4:7] == ["score_classifier", "--config_file", "['a.json', 'configs/evaluate.json']"]
    assert segment[4:7] == ["segmentation", "--config_file", "['a.json']"]
    classifier = str(tmp_path / "own" / "3" / "models" / "classifier" / "model.pt")
    assert dict(zip(segment[7::2], segment[8::2]))["--classifier_path"] == classifier


def test_variants_that_are_like_others_have_their_settings_too(tmp_path):
    variants = {
        "one": {"like": "two", "settings": {"x": 1}, "classifier_of": None},
        "two": {"like": "three", "configs": ["{dataset}.json"], "settings": {"x": 2, "y": 2}},
        "three": {"configs": ["c.json"], "settings": {"y": 3, "z": 3}, "classifier_of": "four"},
        "four": {"second_round_of": "two"},
    }
    path = write_plan(tmp_path / "plan.json", classes={"glas": ["gland"]}, variants=variants)
    plan = read_plan(path, "glas")
    one, two = (plan["variants"][name] for name in ("one", "two"))
    assert one["configs"] == two["configs"] == ["c.json", "glas.json"] and plan["classes"] == ["gland"]
    assert one["settings"] == {"x": 1, "y": 2, "z": 3} and two["settings"] == {"x": 2, "y": 2, "z": 3}
    assert [one["classifier_of"], two["classifier_of"]] == [None, "four"]
    assert len(commands(plan, "one", 0, tmp_path)) == 1 and len(commands(plan, "two", 0, tmp_path)) == 2
    (again,) = commands(plan, "four", 5, tmp_path)
    assert again[4] == "segmentation"
    assert dict(zip(again[7::2], again[8::2]))["--source_dir"] == str(tmp_path / "two" / "5")
    assert read_plan(path, "other")["classes"] is None


@pytest.mark.e2e
def test_runs_what_is_not_there_and_names_what_failed(tmp_path, demo_dir, monkeypatch):
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "2")
    settings = TINY | {"dataset_dir": str(demo_dir), "device": "cpu"}
    fewer = {"classifier_epochs": 1, "epochs": 1}
    variants = {
        "other masks": {"classifier_of": "base", "settings": {"cam_segmenter#flips": True}},
        "base": {},
        "wrong": {"settings": {"dataset_dir": str(tmp_path / "missing")}},
    }
    plan = write_plan(tmp_path / "plan.json", configs=LITE, settings=settings, variants=variants)
    text = experiment(plan, str(tmp_path / "out"), jobs=2, settings=fewer)
    assert text.startswith((tmp_path / "out" / "table.md").read_text())
    assert "wrong, seed 0: exit status 1, see" in text and "missing/train/img must be a folder" in (
        tmp_path / "out" / "wrong" / "0" / "log.txt"
    ).read_text(encoding="utf-8")
    log = (tmp_path / "out" / "base" / "0" / "log.txt").read_text(encoding="utf-8")
    assert all(f"Training the {stage}: 8 patches, 1 epochs of" in log for stage in ("classifier", "segmenter"))
    base, other = (read_record(tmp_path / "out" / name / "0")["stages"] for name in ("base", "other_masks"))
    assert list(base) == ["train_classifier", "generate_pseudo_masks", "train_segmenter"]
    assert list(other) == ["generate_pseudo_masks", "train_segmenter"]
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| base", "| other masks"))]
    assert len(rows) == 2 and all(row[1] != "–" and row[2] != "–" for row in rows)
    completed = base["train_segmenter"]["completed"]
    experiment(plan, str(tmp_path / "out"), only="base")
    assert read_record(tmp_path / "out" / "base" / "0")["stages"]["train_segmenter"]["completed"] == completed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"variants": {}}, "must have `variants`"),
        ({"variants": {"a": {}}, "seed": 1}, "must have `variants`, and only keys from"),
        ({"variants": {"a": {"epochs": 3}}}, "'a' must have only keys from .*'classifier_of'.*, got"),
        ({"variants": {"a": {"classifier_of": "b"}}}, "`classifier_of` of 'a' must name a variant, got 'b'"),
        ({"variants": {"a": {"like": "b"}, "b": {"like": "a"}}}, "`like` of 'a' must not lead back to itself"),
        ({"variants": {"{dataset}": {}}}, "`dataset` must name the data set for"),
    ],
)
def test_refuses_plans_that_say_something_else(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_plan(write_plan(tmp_path / "plan.json", **content))


def test_refuses_unknown_variants(tmp_path):
    with pytest.raises(ValueError, match=r"`only` must name variants of .*, got \['b'\]"):
        experiment(write_plan(tmp_path / "plan.json", variants={"a": {}}), str(tmp_path), only="b")


PLANS = [path.name for path in sorted((BUNDLE / "docs").glob("*.json")) if "variants" in json.loads(path.read_text())]


@pytest.mark.parametrize("dataset", ["glas", "luad_tissue"])
@pytest.mark.parametrize("name", PLANS)
def test_a_plan_in_docs_says_what_can_be_built(name, dataset, monkeypatch, tmp_path):
    monkeypatch.chdir(BUNDLE)
    plan = read_plan(f"docs/{name}", dataset)
    seen = set()
    for name in plan["variants"]:
        command = commands(plan, name, 0, tmp_path)[-1]
        parser = ConfigParser()
        parser.read_config(literal_eval(command[6]))
        for key, value in zip(command[7::2], command[8::2]):
            key, value = key.removeprefix("--"), DefaultParseValue(value)
            parser[key] = None if value == "$None" else value
        networks = [str(parser.get_parsed_content(f"{stage}_def")) for stage in ("classifier", "segmenter")]
        settings = {key: parser[key] for key in parser.get() if not key.startswith("_")}
        assert (description := json.dumps([networks, settings | {"output_dir": ""}])) not in seen
        seen.add(description)


def test_overlays_of_the_working_directory_count_and_its_training_does_not(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    for name in ("train.json", "mine.json"):
        (tmp_path / "configs" / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    plan = {"variants": {"own": {"configs": ["configs/mine.json"]}}}
    (command,) = commands(plan, "own", 0, tmp_path)
    files = ast.literal_eval(command[command.index("--config_file") + 1])
    assert files == ["configs/train.json", str(tmp_path / "configs" / "mine.json")]
