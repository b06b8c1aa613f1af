import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
from conftest import BUNDLE
from monai.bundle import ConfigParser

from scripts.data.classes import Classes
from scripts.inference.config import write_inference_config
from scripts.runs.run_folder import RunFolder, read_record

TEMPLATE = json.loads((BUNDLE / "configs" / "train.json").read_text())


def read_json(path):
    return json.loads(path.read_text())


def config_with(**settings):
    return deepcopy(TEMPLATE) | settings


def files(folder):
    """The content of each file of a folder, by its path in it."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fill(folder, **contents):
    for name, content in contents.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


# --- opening a run


def test_a_new_folder_becomes_a_bundle_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RunFolder("run").open(config_with(seed=7), "data", "labels.csv")
    run = tmp_path / "run"
    saved = read_json(run / "configs" / "train.json")
    own = {"seed": 7, "bundle_root": ".", "output_dir": "@bundle_root"}
    own |= {"dataset_dir": str(tmp_path / "data"), "label_file": str(tmp_path / "labels.csv")}
    assert saved == TEMPLATE | own
    code = {path.relative_to(BUNDLE) for path in (BUNDLE / "scripts").rglob("*.py")}
    assert code and all((run / path).read_bytes() == (BUNDLE / path).read_bytes() for path in code)
    configs = {path.name for path in (run / "configs").iterdir()}
    assert {
        "train.json",
        "method_ibdr.json",
        "adapt.json",
        "evaluate.json",
        "inference_slides.json",
        "logging.conf",
    } <= configs
    assert not any(name.startswith(("dataset_", "inference.json", "metadata")) for name in configs)
    assert list(run.rglob("__pycache__")) == []


def test_the_same_settings_open_the_folder_again(tmp_path):
    RunFolder(tmp_path).open(config_with(), tmp_path / "data")
    saved = read_json(tmp_path / "configs" / "train.json")
    (tmp_path / ".model.pt.partial-abc").mkdir()  # what a killed process left
    RunFolder(tmp_path).open(config_with(_meta_={"version": "1"}), tmp_path / "data")
    assert read_json(tmp_path / "configs" / "train.json") == saved
    assert not (tmp_path / ".model.pt.partial-abc").exists()


def test_changed_settings_are_named_and_nothing_is_written(tmp_path):
    RunFolder(tmp_path).open(config_with(extra=1), tmp_path / "data")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "classifier.pt").touch()
    before = files(tmp_path)
    train = TEMPLATE["train"] | {"accumulation_steps": 4}
    changed = config_with(threshold=0.5, seed=1, num_workers=3, train=train)
    named = "extra: was 1, now nothing; seed: was 0, now 1; threshold: was 0.3, now 0.5; "
    with pytest.raises(ValueError, match=f"configs/train.json: {named}train#accumulation_steps: was 1, now 4. Restore"):
        RunFolder(tmp_path).open(changed, tmp_path / "data")
    assert files(tmp_path) == before


def test_a_run_that_made_nothing_may_have_other_settings(tmp_path):
    RunFolder(tmp_path).open(config_with(source_dir="nope"), tmp_path / "data")
    for name in ("run.log", "tensorboard/events", "scripts/own.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "checkpoints").mkdir()
    RunFolder(tmp_path).open(config_with(source_dir="run"), tmp_path / "data")
    assert read_json(tmp_path / "configs" / "train.json")["source_dir"] == str(Path("run").resolve())


def test_new_settings_are_accepted_when_asked_for(tmp_path):
    RunFolder(tmp_path).open(config_with(), tmp_path / "data")
    RunFolder(tmp_path).open(config_with(seed=1), tmp_path / "data", new_settings=True)
    assert read_json(tmp_path / "configs" / "train.json")["seed"] == 1


def test_free_settings_may_change_and_are_kept(tmp_path):
    RunFolder(tmp_path).open(config_with(), tmp_path / "data")
    free = {"num_workers": 5, "picture_names": ["a.png"], "imports": ["$import os"], "cudnn_benchmark": False}
    RunFolder(tmp_path).open(config_with(**free), tmp_path / "elsewhere", tmp_path / "labels.csv")
    saved = read_json(tmp_path / "configs" / "train.json")
    paths = {"dataset_dir": str(tmp_path / "elsewhere"), "label_file": str(tmp_path / "labels.csv")}
    assert {key: value for key, value in saved.items() if TEMPLATE.get(key) != value} == {
        **free,
        **paths,
        "output_dir": "@bundle_root",
    }


def test_settings_of_several_processes_are_reset_to_those_of_one(tmp_path):
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / name) for name in ("train.json", "multi_gpu_train.json")])
    config = parser.get() | {"redo": "train_segmenter"}
    changed = {key for key in config if key != "_meta_" and config[key] != TEMPLATE.get(key)}
    assert changed >= {"device", "initialize", "finalize", "train", "classification"}
    RunFolder(tmp_path).open(config, tmp_path / "data")
    saved = read_json(tmp_path / "configs" / "train.json")
    different = {key for key in saved.keys() | TEMPLATE.keys() if saved.get(key) != TEMPLATE.get(key)}
    assert different == {"_desc_", "imports", "dataset_dir", "output_dir"}


# --- setting results aside


def test_results_are_set_aside_in_numbered_folders(tmp_path):
    outputs = [tmp_path / "models" / "model.pt", tmp_path / "pseudo_masks", tmp_path / "missing.pt"]
    for content in ("first", "second"):
        fill(tmp_path, **{"models__model.pt": content, "pseudo_masks__a.png": content + " mask", "run.json": content})
        RunFolder(tmp_path).set_aside(outputs)
    RunFolder(tmp_path).set_aside(outputs)  # nothing is there: no third folder
    assert files(tmp_path) == {
        "run.json": "second",
        "previous/1/models/model.pt": "first",
        "previous/1/pseudo_masks/a.png": "first mask",
        "previous/2/models/model.pt": "second",
        "previous/2/pseudo_masks/a.png": "second mask",
    }
    assert sorted(path.name for path in (tmp_path / "previous").iterdir()) == ["1", "2"]


def test_paths_outside_are_refused_and_nothing_is_moved(tmp_path):
    fill(tmp_path, **{"run__model.pt": "inside", "run2__masks__a.png": "outside"})
    before = files(tmp_path)
    with pytest.raises(
        ValueError, match=f"{tmp_path / 'run2' / 'masks'} must be inside {tmp_path / 'run'} to be regenerated"
    ):
        RunFolder(tmp_path / "run").set_aside([tmp_path / "run" / "model.pt", tmp_path / "run2" / "masks"])
    assert files(tmp_path) == before and not (tmp_path / "run" / "previous").exists()


def test_undoing_a_stage_without_outputs_forgets_it_and_those_after_it(tmp_path):
    record(tmp_path, "one", "two", "three")
    RunFolder(tmp_path).undo("two", [])
    assert list(RunFolder(tmp_path).stages) == ["one"]


# --- the record


def record(run, *stages):
    for stage in stages:
        fill(run, **{f"{stage}.pt": stage})
        RunFolder(run).complete(stage, {"seed": 3, "result": str(run / f"{stage}.pt")})


@pytest.mark.parametrize(("stage", "left"), [("one", []), ("two", ["one"]), ("three", ["one", "two"])])
def test_a_forgotten_stage_takes_the_later_ones_with_it(tmp_path, stage, left):
    record(tmp_path, "one", "two", "three")
    before = read_record(tmp_path)["stages"]
    RunFolder(tmp_path).forget(stage)
    assert read_record(tmp_path)["stages"] == {name: before[name] for name in left}


def test_forgetting_an_unknown_stage_changes_nothing(tmp_path):
    RunFolder(tmp_path).forget("one")
    assert not (tmp_path / "run.json").exists()
    record(tmp_path, "one")
    before = files(tmp_path)
    RunFolder(tmp_path).forget("two")
    assert files(tmp_path) == before


def test_a_stage_is_complete_while_its_result_is_there(tmp_path):
    assert not RunFolder(tmp_path).is_complete("one")
    record(tmp_path, "one")
    assert RunFolder(tmp_path).is_complete("one") and not RunFolder(tmp_path).is_complete("two")
    assert read_record(tmp_path)["stages"]["one"]["seed"] == 3
    (tmp_path / "one.pt").unlink()
    assert not RunFolder(tmp_path).is_complete("one")


def test_a_moved_folder_is_complete_by_its_own_results(tmp_path):
    record(tmp_path / "old", "one")
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert RunFolder(tmp_path / "new").is_complete("one") and not RunFolder(tmp_path / "old").is_complete("one")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    (tmp_path / "new" / "one.pt").unlink()  # that of the old place does not count
    assert not RunFolder(tmp_path / "new").is_complete("one")


def test_a_result_outside_the_folder_is_found_where_it_is(tmp_path):
    fill(tmp_path, **{"elsewhere__model.pt": "weights"})
    RunFolder(tmp_path / "run").complete("one", {"result": str(tmp_path / "elsewhere" / "model.pt")})
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert RunFolder(tmp_path / "moved").is_complete("one")
    (tmp_path / "elsewhere" / "model.pt").unlink()
    assert not RunFolder(tmp_path / "moved").is_complete("one")


# --- the configs for inference


def test_inference_has_the_run_s_settings_and_patch_size(tmp_path):
    shared = {
        "dataset_name": "mine",
        "method_name": "other",
        "preset": "small",
        "class_names": ["a", "b"],
        "classifier_values": [1, 2],
        "segmenter_values": [2, 1],
        "mask_values": {"9": 0, "7": 1, "8": 2},
        "palette": [[0, 0, 0], [1, 1, 1], [2, 2, 2]],
        "patch_size": [64, 96],
        "segmenter_def": {"_target_": "torch.nn.Conv2d", "in_channels": 3, "out_channels": 2, "kernel_size": 1},
        "eval_batch_size": 5,
        "amp": True,
    }
    own = {"segmenter_path": "mine.pt", "device": "cpu", "run": ["$1"], "network": "$2", "output_dir": "out"}
    RunFolder(tmp_path).open(config_with(**shared, **own, seed=1), tmp_path / "data")
    write_inference_config(tmp_path, Classes.of(shared), (64, 96), "train_segmenter")
    template = read_json(BUNDLE / "configs" / "inference.json")
    assert all(template[key] != value for key, value in shared.items())
    assert read_json(tmp_path / "configs" / "inference.json") == template | shared
    metadata = read_json(tmp_path / "configs" / "metadata.json")
    assert metadata["pred_classes"] == "0 background, 1 a, 2 b"
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert image["spatial_shape"] == pred["spatial_shape"] == [64, 96]
    assert (image["num_channels"], pred["num_channels"]) == (3, 2)
    assert pred["channel_def"] == {"0": "background", "1": "a", "2": "b"}
