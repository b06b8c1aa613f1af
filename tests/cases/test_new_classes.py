"""A trained network of three classes is adapted to data of two or four."""

import json
import re
import shutil
import sys
import zipfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BUNDLE, method_configs
from monai.bundle import ConfigParser
from PIL import Image
from some_classes import some_classes

from scripts.commands.training import AdaptationStage
from scripts.data.few_shot import adaptation_stages, require_same_classes
from scripts.data.preparing.new_dataset import describe_dataset
from scripts.files.foreign_files import read_tensors
from scripts.runs.plain_errors import plain_cause
from scripts.runs.run_folder import RunFolder
from scripts.weights.state_dicts import load_weights

STORED = Path(__file__).parents[1] / "stored_runs"
NAMES = {2: ["tumor", "other"], 4: ["tumor", "stroma", "lymphocytes", "lower tumor"]}


def regrouped(source, folder, num_classes):
    """A copy of a demo data set with other classes: two are merged, or the lower half of one is a fourth."""
    for path in source.rglob("mask/*.png"):
        split, mask = path.parts[-3], np.array(Image.open(path))
        if num_classes == 2:
            mask[mask == 3] = 2
        else:
            mask[32:][mask[32:] == 1] = 4
        label = " ".join(str(int((mask == value).any())) for value in range(1, num_classes + 1))
        stem = re.sub(r"-\[.*", f"[{label}]" if split == "train" else "", path.stem)
        for kind in ("img", "mask"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        shutil.copy(source / split / "img" / path.name, folder / split / "img" / f"{stem}.png")
        Image.fromarray(mask).save(folder / split / "mask" / f"{stem}.png")
    return folder


@pytest.fixture
def adapt(tmp_path, few_shot_dir, run_bundle):
    """Adapt the network of the stored run to regrouped classes, for one epoch."""
    sys.path.insert(0, str(STORED))
    from make import SMALL

    with zipfile.ZipFile(STORED / "small_run.zip") as archive:
        archive.extractall(tmp_path / "source")
    (tmp_path / "small.json").write_text(json.dumps(SMALL), encoding="utf-8")

    def run(num_classes, **settings):
        data = regrouped(few_shot_dir, tmp_path / "data", num_classes)
        overlay = describe_dataset("regrouped", data, NAMES[num_classes], background=True)
        (tmp_path / "dataset.json").write_text(json.dumps(overlay), encoding="utf-8")
        own = [str(tmp_path / name) for name in ("dataset.json", "small.json")]
        configs = ["configs/train.json", "configs/lite.json", *own, "configs/adapt.json"]
        settings |= {"source_dir": str(tmp_path / "source"), "num_images": 8, "epochs": 1, "dataset_dir": str(data)}
        run_bundle("adapt", tmp_path / "run", configs, **settings)
        return RunFolder(tmp_path / "run")

    return run


@pytest.mark.e2e
@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("pixel_masks", [True, False])
def test_a_network_of_three_classes_adapted_to_two_or_four(adapt, num_classes, pixel_masks):
    """Line 12: from masks, and from image-level labels, for which the classifier learns the new classes first."""
    folder = adapt(num_classes, new_head=True, pixel_masks=pixel_masks, classifier_epochs=1)
    assert list(folder.stages) == adaptation_stages(pixel_masks, new_head=True)
    scores = json.loads((folder.path / "scores/segmenter_test.json").read_text())["protocols"]["published"]
    assert list(scores["classes"]) == NAMES[num_classes]
    head = read_tensors(folder.path / "models/model.pt")["network.segmentation_head.0.weight"]
    assert len(head) == num_classes and (folder.path / "report.html").is_file()
    values = {value for path in (folder.path / "pseudo_masks").glob("*.png") for value in np.unique(Image.open(path))}
    assert values <= set(range(num_classes + 1)) and len(values) > 1


@pytest.mark.parametrize("num_classes", [2, 4])
def test_other_classes_without_the_option(adapt, num_classes):
    """Line 12: one sentence that names it, before anything is written."""
    with pytest.raises(RuntimeError) as error:
        adapt(num_classes)
    message = str(plain_cause(error.value))
    assert re.search(
        rf"must have the 3 classes of .*source, .*got {num_classes}, .*; pass --new-head to train", message
    )


def test_the_rule_counts_classes_before_it_compares_them(tmp_path):
    """Line 12: no `zip` that ends early."""
    (tmp_path / "configs").mkdir()
    config = {key: value for key, value in vars(some_classes(["a", "b", "c"])).items() if key != "value_names"}
    (tmp_path / "configs/train.json").write_text(json.dumps(config), encoding="utf-8")
    require_same_classes(tmp_path, some_classes(["a", "b", "x"]))
    with pytest.raises(ValueError, match="must have the 3 classes .*, got 2, .*--new-head"):
        require_same_classes(tmp_path, some_classes(["a", "b"]))


@pytest.mark.parametrize("method", ["esfan", "ibdr", "sshr"])
def test_the_heads_are_all_that_depends_on_the_classes(method, monkeypatch):
    """Line 12: every other weight has the same shape for two classes as for three, so it is kept."""
    monkeypatch.chdir(BUNDLE)
    shapes = {"segmenter_def": [], "classifier_def": []}
    for count in (2, 3):
        parser = ConfigParser()
        parser.read_config(method_configs(method))
        parser["num_classes"] = count
        for name, found in shapes.items():
            found.append({k: v.shape for k, v in parser.get_parsed_content(name).state_dict().items()})
    for name, key in (("segmenter_def", "head_parts"), ("classifier_def", "classifier_head_parts")):
        two, three = shapes[name]
        other = {weight for weight in two if two[weight] != three[weight]}
        heads = tuple(f"{part}." for part in parser.get(key))
        assert two.keys() == three.keys() and other and all(weight.startswith(heads) for weight in other)


def test_each_stage_of_an_adaptation_can_be_rerun():
    """Line 12: also the classifier's training, which only a new head has."""
    stages = {stage for choice in product([True, False], repeat=2) for stage in adaptation_stages(*choice)}
    assert {stage.value for stage in AdaptationStage} == stages


def test_new_parts_keep_their_random_weights(tmp_path):
    """Line 12: the rest is loaded, as strictly as ever."""

    def network(classes):
        return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, classes))

    source, target = network(3), network(2)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    before = target[1].weight.clone()
    load_weights(target, tmp_path / "w.pt", ["1"])
    assert torch.equal(target[0].weight, source[0].weight) and torch.equal(target[1].weight, before)
    with pytest.raises(ValueError, match=r"2 have other shapes \(1.weight \(3, 3\) instead of \(2, 3\), "):
        load_weights(target, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="`part` must name a part of Sequential, got '2'"):
        load_weights(target, tmp_path / "w.pt", ["2"])


@pytest.mark.e2e
def test_labels_alone_train(tmp_path, few_shot_dir, run_bundle):
    """Line 17: all stages, the last epoch's weights, a report, and nothing scored."""
    sys.path.insert(0, str(STORED))
    from make import SMALL

    data = shutil.copytree(few_shot_dir, tmp_path / "data")
    for name in ("val", "test/mask", "train/mask"):
        shutil.rmtree(data / name)
    (tmp_path / "small.json").write_text(json.dumps(SMALL), encoding="utf-8")
    configs = ["configs/train.json", "configs/lite.json", "configs/dataset_demo.json", str(tmp_path / "small.json")]
    few = {"classifier_epochs": 1, "epochs": 1, "batch_size": 4, "classifier_batch_size": 4}
    run_bundle("training", tmp_path / "run", configs, dataset_dir=str(data), **few)
    folder = RunFolder(tmp_path / "run")
    assert [folder.is_complete(stage) for stage in folder.stages] == 3 * [True]
    assert all(record["scores"] == {} for record in folder.stages.values())
    assert (folder.path / "models/model.pt").is_file() and (folder.path / "report.html").is_file()
