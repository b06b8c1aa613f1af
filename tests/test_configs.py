import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import BUNDLE, LITE, TINY
from monai.bundle import ConfigParser, ConfigWorkflow
from PIL import Image

from scripts.data.classes import Classes
from scripts.data.preparing.new_dataset import describe_dataset
from scripts.data.preparing.prepare import prepare
from scripts.inference.config import write_inference_config
from scripts.runs.plain_errors import plain_cause
from scripts.runs.stages import stage_config

CONFIGS = sorted((BUNDLE / "configs").glob("*.json"))


def load(name):
    return json.loads((BUNDLE / "configs" / name).read_text())


@pytest.fixture()
def in_bundle(monkeypatch):
    monkeypatch.chdir(BUNDLE)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configs_are_json_with_four_spaces(path):
    lines = path.read_text().splitlines()
    assert lines[1].startswith("    ") and not lines[1].startswith("     ")
    assert all((len(line) - len(line.lstrip())) % 4 == 0 for line in lines)


def test_the_bundle_s_own_inference_is_that_of_a_run_with_its_defaults(tmp_path):
    (tmp_path / "configs").mkdir()
    shutil.copy(BUNDLE / "configs" / "train.json", tmp_path / "configs")
    train = load("train.json")
    write_inference_config(tmp_path, Classes.of(train), train["patch_size"]["default"], "train_segmenter")
    for name in ("inference.json", "metadata.json"):
        assert json.loads((tmp_path / "configs" / name).read_text()) == load(name)


def test_luad_overlay_is_the_explicit_default():
    train, luad = load("train.json"), load("dataset_luad.json")
    assert {name: train[name] for name in luad if name != "_desc_"} == {
        name: value for name, value in luad.items() if name != "_desc_"
    }


def test_esfan_overlay_is_the_explicit_default():
    parser, esfan = ConfigParser(load("train.json")), load("method_esfan.json")
    del esfan["_desc_"]
    assert {name: parser.get(name) for name in esfan} == esfan


PUBLISHED = {  # METHODS of the two papers' code, said a second time so that a slip shows
    "luad": ([0.47, 0.06, 0.47], 0.3, [[255, 255, 255], [205, 51, 51], [0, 255, 0], [65, 105, 225], [255, 165, 0]]),
    "bcss": ([0.11, 0.78, 0.11], 0.7, [[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [153, 0, 255]]),
    "glas": ([1, 1, 1], 0.25, [[239, 239, 239], [190, 61, 42]]),
    "digestpath": ([1, 1, 1], 0.25, [[239, 239, 239], [63, 125, 88]]),
    "hph": ([1, 1, 1], 0.25, [[239, 239, 239], [66, 27, 155]]),
    "wien": ([1, 1, 1], 0.25, [[239, 239, 239], [255, 250, 141]]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_data_sets_have_the_published_numbers(name):
    overlay = load(f"dataset_{name}.json")
    assert (overlay["level_weights"], overlay["threshold"], overlay["palette"]) == PUBLISHED[name]
    four, two = ([1, 2, 3, 4], [1, 2, 3, 4]), ([1, 0], [0, 1])
    values = overlay["classifier_values"], overlay["segmenter_values"]
    assert values == (four if name in ("luad", "bcss") else two)
    published_masks = {"0": 1, "1": 2, "2": 3, "3": 4, "4": 0} if values == four else {"0": 0, "1-255": 1}
    assert overlay["mask_values"] == published_masks


def test_methods_have_the_published_numbers(in_bundle):
    parser = ConfigParser()
    parser.read_config(["configs/train.json", "configs/method_ibdr.json"])
    settings = {
        "classifier_epochs": 10,
        "classifier_batch_size": 20,
        "classifier_lr": 0.01,
        "classification#max_gradient_norm": 5,
        "epochs": 10,
        "batch_size": 16,
        "lr": 0.01,
    }
    assert {name: parser[name] for name in settings} == settings
    loss = parser.get_parsed_content("segmenter_loss")
    assert loss.weights == [1.0, 0.4] and not loss.loss.published
    weights = [getattr(loss.loss, name) for name in ("alpha", "beta", "gamma", "delta", "eta", "tau")]
    assert weights == [1, 0.2, 0.1, 0.1, 0.1, 0.4]
    loss = parser.get_parsed_content("classifier_loss")
    assert (loss.boundary_weight, loss.embedding_weight, loss.loss.weights) == (0.01, 0.01, [0.2, 0.3, 0.5])


def test_methods_settle_the_same_things():
    esfan, ibdr = load("method_esfan.json"), load("method_ibdr.json")
    assert ibdr.keys() - esfan.keys() == {"iicb"} and esfan.keys() <= ibdr.keys()


def test_metadata_names_the_default_tissues():
    channel_def = load("metadata.json")["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert channel_def == dict(zip("01234", ["background", *load("train.json")["class_names"]]))


@pytest.mark.parametrize("overlays", [[], ["lite.json"]], ids=["paper", "lite"])
@pytest.mark.parametrize(("method", "num_classes"), [("esfan", 2), ("esfan", 7), ("ibdr", 2), ("ibdr", 4)])
def test_networks_build_for_any_number_of_classes(in_bundle, overlays, method, num_classes):
    parser = ConfigParser()
    parser.read_config([f"configs/{name}" for name in ("train.json", f"method_{method}.json", *overlays)])
    parser["num_classes"] = num_classes
    segmenter = parser.get_parsed_content("segmenter_def").eval()
    with torch.inference_mode():
        assert segmenter(torch.rand(1, 3, 33, 50)).shape == (1, num_classes, 33, 50)
    assert parser.get_parsed_content("classifier_def").deep_head.out_channels == num_classes


@pytest.mark.parametrize("path", sorted((BUNDLE / "configs").glob("dataset_*.json")), ids=lambda path: path.stem)
def test_data_set_overlays_are_consistent(path):
    overlay = json.loads(path.read_text())
    classes = len(overlay["class_names"])
    assert sorted(overlay["classifier_values"]) == sorted(overlay["segmenter_values"])
    assert len(overlay["classifier_values"]) == classes and len(overlay["level_weights"]) == 3
    meanings = set(overlay["mask_values"].values())
    assert meanings == set(range(len(overlay["palette"]))) == meanings | set(overlay["classifier_values"])


@pytest.mark.parametrize("path", sorted((BUNDLE / "configs").glob("dataset_*.json")), ids=lambda path: path.stem)
def test_data_set_overlays_run_up_to_their_data(in_bundle, path, tmp_path):
    parser = ConfigParser()
    parser.read_config(["configs/train.json", "configs/lite.json", str(path)])
    parser["dataset_dir"] = str(tmp_path)
    parser = ConfigParser(stage_config(parser.get(), "train_classifier"))
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content("check")
    assert f"{tmp_path}/train/img must be a folder of images, but it does not exist" in str(error.value.__cause__)


@pytest.mark.parametrize("method", ["esfan", "ibdr"])
@pytest.mark.parametrize("path", sorted((BUNDLE / "configs").glob("dataset_*.json")), ids=lambda path: path.stem)
def test_any_method_learns_from_any_data_set_s_classes(in_bundle, method, path):
    parser = ConfigParser()
    parser.read_config(["configs/train.json", f"configs/method_{method}.json", "configs/lite.json", str(path)])
    classes = len(parser["class_names"])
    image, target = torch.rand(2, 3, 32, 32), torch.randint(0, classes + 1, (2, 1, 32, 32))
    for stage, wanted in (("classifier", (target[:, 0, 0, :classes] > 0).float()), ("segmenter", target)):
        network = parser.get_parsed_content(f"{stage}_def").train()
        loss = parser.get_parsed_content(f"{stage}_loss")(network(image), wanted)
        loss.backward()
        assert torch.isfinite(loss) and loss.item() > 0
    assert parser.get_parsed_content("background") == (0 not in parser["segmenter_values"])


@pytest.mark.parametrize(
    ("stage", "section"), [("train_classifier", "train"), ("train_segmenter", "train"), ("train_segmenter", "validate")]
)
def test_files_are_decoded_once_for_all_epochs(in_bundle, finished_run, demo_dir, monkeypatch, stage, section):
    parser = ConfigParser()
    parser.read_config(LITE)
    parser["dataset_dir"], parser["output_dir"], parser["device"] = str(demo_dir), str(finished_run), "cpu"
    parser["classifier_batch_size"] = parser["batch_size"] = 2
    parser = ConfigParser(stage_config(parser.get(), stage))
    loader = parser.get_parsed_content(f"{section}#dataloader")
    opened = []
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: opened.append(args))
    for _ in range(2):
        assert sum(len(batch["image"]) for batch in loader) == (3 if section == "validate" else 8)
    assert opened == []


def test_every_property_that_monai_asks_for_is_there(in_bundle, finished_run, demo_dir):
    shared = {"dataset_dir": str(demo_dir), "output_dir": str(finished_run), "device": "cpu", "logging_file": False}
    training = ConfigWorkflow(LITE, "configs/metadata.json", workflow_type="train", **shared, **TINY)
    training.initialize()
    assert training.check_properties() == []
    shared["dataset_dir"] += "/val/img"
    inference = ConfigWorkflow(
        str(finished_run / "configs" / "inference.json"), workflow_type="infer", bundle_root=str(finished_run), **shared
    )
    inference.initialize()
    assert inference.check_properties() == []


@pytest.mark.e2e
@pytest.mark.parametrize("published_values", [False, True])
def test_run_folder_is_a_bundle_that_segments_a_folder_of_images(finished_run, demo_dir, tmp_path, published_values):
    bundle = tmp_path / "bundle"
    shutil.copytree(finished_run, bundle)
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    config["mask_values"] = {"0": 1, "1": 2, "2": 3, "9": 0}
    (bundle / "configs" / "inference.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "monai.bundle", "run", "--dataset_dir", str(demo_dir / "val" / "img")]
    command += ["--output_dir", str(tmp_path / "out"), "--published_values", str(published_values)]
    if published_values:
        command += ["--config_file", "configs/inference.json"]
    else:  # from another working directory
        command += ["--config_file", "bundle/configs/inference.json", "--bundle_root", "bundle"]
    subprocess.run(command, cwd=bundle if published_values else tmp_path, check=True, capture_output=True)
    names = sorted(path.name for path in (demo_dir / "val" / "img").iterdir())
    for folder in ("masks", "overlays"):
        assert sorted(path.name for path in (tmp_path / "out" / folder).iterdir()) == names
    confusion = np.zeros((4, 4), dtype=int)
    ours = {1: 2, 2: 3, 0: 1, 9: 0} if published_values else {value: value for value in range(4)}
    for name in names:
        with (
            Image.open(tmp_path / "out" / "masks" / name) as pred,
            Image.open(demo_dir / "val" / "mask" / name) as true,
        ):
            pred = np.vectorize(ours.get)(np.asarray(pred))
            np.add.at(confusion, (np.asarray(true), pred), 1)
    recorded = json.loads((finished_run / "scores" / "segmenter_val.json").read_text())
    assert confusion.tolist() == recorded["protocols"]["with_background"]["confusion"]


def test_masks_of_any_folder_are_gated_by_predicted_labels(finished_run, run_bundle, demo_dir, tmp_path):
    shutil.copytree(finished_run / "models", tmp_path / "models")
    settings = {"pseudo_masks#image_dir": str(demo_dir / "test" / "img"), "mask_dir": str(tmp_path / "masks")}
    run_bundle("write_masks", tmp_path, **settings)
    run_bundle("score_classifier", tmp_path, [*LITE, "configs/evaluate.json"])
    confusion = np.zeros((4, 4), dtype=int)
    for path in (demo_dir / "test" / "mask").iterdir():
        with Image.open(tmp_path / "masks" / path.name) as pred, Image.open(path) as true:
            np.add.at(confusion, (np.asarray(true), np.asarray(pred)), 1)
    scores = json.loads((tmp_path / "scores" / "classifier_test.json").read_text())
    assert confusion.tolist() == scores["protocols"]["with_background"]["confusion"]


@pytest.mark.e2e
@pytest.mark.parametrize("class_names", [["tumor", "rest"], ["tumor", "stroma", "lymphocytes", "rest"]], ids=len)
@pytest.mark.parametrize("method", ["esfan", "ibdr"])
def test_each_method_runs_end_to_end_on_two_and_four_classes(run_bundle, few_shot_dir, tmp_path, method, class_names):
    overlay = describe_dataset("x", tmp_path / "data", class_names, False)
    overlay["source"] = {"mask_values": {str(value): value % len(class_names) for value in range(4)}}
    if len(class_names) == 2:
        overlay["source"]["mask_values"] |= {"2": 0, "3": 0}
    (tmp_path / "dataset_x.json").write_text(json.dumps(overlay))
    prepare(str(few_shot_dir), str(tmp_path / "data"), str(tmp_path / "dataset_x.json"), 64)
    configs = ["configs/train.json", f"configs/method_{method}.json", "configs/lite.json", tmp_path / "dataset_x.json"]
    run_bundle("training", tmp_path / "run", configs, dataset_dir=str(tmp_path / "data"), **TINY)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert list(record["stages"]) == ["train_classifier", "generate_pseudo_masks", "train_segmenter"]
    assert len(list((tmp_path / "run" / "pseudo_masks").glob("*.png"))) == 8
    for stage in ("train_classifier", "train_segmenter"):
        scores = record["stages"][stage]["scores"]["val"]["protocols"]
        assert list(scores) == ["published"]  # without background there is one protocol
        assert set(scores["published"]["classes"]) == set(class_names)
        assert sum(map(sum, scores["published"]["confusion"])) == 3 * 64 * 64
    names = torch.load(tmp_path / "run" / "models" / "model.pt", weights_only=True).keys()
    assert any("hdfm" in name for name in names) == (method == "ibdr")
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    command += ["--dataset_dir", str(few_shot_dir / "test" / "img"), "--output_dir", str(tmp_path / "out")]
    subprocess.run(command, cwd=tmp_path / "run", check=True, capture_output=True)
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 2


@pytest.mark.parametrize(("pixel_masks", "freeze"), [(True, True), (False, False)])
def test_a_trained_network_adapts_to_another_stain(
    finished_run, run_bundle, few_shot_dir, tmp_path, pixel_masks, freeze
):
    settings = {"source_dir": str(finished_run), "num_images": 3, "freeze_encoder": freeze, "epochs": 2}
    configs = [*LITE[:-1], "configs/dataset_demo_lab_b.json", "configs/adapt.json"]
    data = {"dataset_dir": str(few_shot_dir), "pixel_masks": pixel_masks}
    run_bundle("adapt", tmp_path, configs, **settings, **data)
    record = json.loads((tmp_path / "run.json").read_text())["stages"]
    assert list(record) == [
        "score_source",
        "copy_pixel_masks" if pixel_masks else "generate_pseudo_masks",
        "train_segmenter",
    ]
    masks = sorted((tmp_path / "pseudo_masks").glob("*.png"))
    assert len(masks) == 3
    same = [np.array_equal(Image.open(path), Image.open(few_shot_dir / "train" / "mask" / path.name)) for path in masks]
    assert all(same) == pixel_masks
    before, after = (torch.load(d / "models" / "model.pt", weights_only=True) for d in (finished_run, tmp_path))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and any(".encoder." in name for name in changed) != freeze
    state = torch.load(tmp_path / "checkpoints" / "segmenter.pt", weights_only=True)
    assert state["trainer"]["epoch_length"] == 1
    assert all(torch.equal(after[name], state["network"][name]) for name in after)  # the last epoch's weights
    rows = (tmp_path / "scores" / "adaptation.csv").read_text().splitlines()
    means = [
        scores["protocols"]["published"]["mean_iou"]
        for scores in (record["score_source"]["scores"]["val"], record["train_segmenter"]["scores"]["val"])
    ]
    assert any(row.startswith(f"val,published,mean,{means[0]},{means[1]},") for row in rows)
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    for stage, mean in zip(("before", "after"), means):
        text = (
            f"<strong>{mean:.2f}</strong><span>overlap with the truth (mean IoU) on val, {stage} the adaptation</span>"
        )
        assert text in report


def test_a_finished_adaptation_is_not_taken_for_another_one(finished_run, run_bundle, few_shot_dir, tmp_path):
    configs = [*LITE[:-1], "configs/dataset_demo_lab_b.json", "configs/adapt.json"]
    settings = {"source_dir": str(finished_run), "num_images": 2, "epochs": 1, "dataset_dir": str(few_shot_dir)}
    run_bundle("adapt", tmp_path, configs, **settings)
    before = (tmp_path / "models" / "model.pt").read_bytes()
    run_bundle("adapt", tmp_path, configs, **settings)
    with pytest.raises(RuntimeError) as error:
        run_bundle("adapt", tmp_path, configs, **settings | {"freeze_encoder": True})
    assert "freeze_encoder: was false, now true. Restore" in str(plain_cause(error.value))
    assert (tmp_path / "models" / "model.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("scores", "choose", "last_is_kept"),
    [([0.9, 0.8], True, False), ([0.8, 0.9], True, True), ([0.9, 0.8], False, True)],
    ids=["first epoch best", "last epoch best", "not chosen by val"],
)
def test_which_weights_are_kept_with_val(run_bundle, tmp_path, monkeypatch, scores, choose, last_is_kept):
    scores = iter(scores)
    monkeypatch.setattr("scripts.evaluation.metrics.mean_iou", lambda confusion, exclude_background: next(scores))
    run_bundle("training", tmp_path, **TINY, **{"validate#best_model#choose": choose})
    state = torch.load(tmp_path / "checkpoints" / "segmenter.pt", weights_only=True)["averaged_network"]
    kept = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items()) == last_is_kept


def test_without_val_the_last_weights_are_kept(finished_run, run_bundle, few_shot_dir, tmp_path):
    shutil.copytree(few_shot_dir, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "val")
    configs = [*LITE[:-1], "configs/dataset_demo_lab_b.json", "configs/adapt.json"]
    settings = {"source_dir": str(finished_run), "num_images": 3, "epochs": 1}
    run_bundle("adapt", tmp_path / "run", configs, **settings, dataset_dir=str(tmp_path / "data"))
    state = torch.load(tmp_path / "run" / "checkpoints" / "segmenter.pt", weights_only=True)["network"]
    kept = torch.load(tmp_path / "run" / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())
    table = (tmp_path / "run" / "scores" / "adaptation.csv").read_text().splitlines()
    assert len(table) > 1 and all(row.startswith("test,") for row in table[1:])
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "was not scored on val" in report and "<h3>test, after the adaptation: 2 images</h3>" in report


@pytest.mark.e2e
@pytest.mark.parametrize("method", ["esfan", "ibdr"])
def test_paper_networks_train_two_steps_per_stage(run_bundle, tmp_path, method):
    settings = {"classifier_epochs": 1, "epochs": 1, "backbone_weights": "$None", "encoder_weights": "$None"}
    settings |= {"classifier_batch_size": 4, "batch_size": 4}
    configs = ["configs/train.json", f"configs/method_{method}.json", "configs/dataset_demo.json"]
    run_bundle("training", tmp_path, configs, **settings)
    record = json.loads((tmp_path / "run.json").read_text())
    assert list(record["stages"]) == ["train_classifier", "generate_pseudo_masks", "train_segmenter"]
    classifier = torch.load(tmp_path / "models" / "classifier" / "model.pt", weights_only=True)
    last = {"esfan": "fusion_conv", "ibdr": "out_conv"}[method]
    assert classifier[f"fusion.{last}.weight"].shape == (2048, 2048, 3, 3)
    assert classifier["deep_head.weight"].shape == (3, 4096, 1, 1)
    for name in ("classifier", "segmenter"):
        state = torch.load(tmp_path / "checkpoints" / f"{name}.pt", weights_only=True, mmap=True)
        assert state["trainer"]["epoch_length"] == 2 and state["lr_scheduler"]["last_epoch"] == 2
    segmenter = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert any(name.endswith("encoder.model.layer2.23.conv3.weight") for name in segmenter)


def test_missing_backbone_weights_are_an_error(run_bundle, tmp_path):
    configs = ["configs/train.json", "configs/dataset_demo.json"]
    with pytest.raises(RuntimeError) as error:
        run_bundle("training", tmp_path, configs, **{"classifier_batch_size": 4})
    assert "resnet38d_imagenet.pt must hold the pretrained weights of 'backbone'" in str(plain_cause(error.value))


@pytest.mark.e2e
def test_two_processes_train_one_model(demo_dir, tmp_path):
    settings = {**TINY, "classifier_batch_size": 2, "batch_size": 2, "classifier_epochs": 1}
    settings |= {"epochs": 1, "dataset_dir": demo_dir, "output_dir": tmp_path, "device": "$torch.device('cpu')"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "monai.bundle", "run"]
    command += ["training", "--config_file", str([*LITE, "configs/multi_gpu_train.json"])]
    command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=BUNDLE, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    record = json.loads((tmp_path / "run.json").read_text())
    assert list(record["stages"]) == ["train_classifier", "generate_pseudo_masks", "train_segmenter"]
    state = torch.load(tmp_path / "checkpoints" / "classifier.pt", weights_only=True)
    assert state["trainer"]["epoch_length"] == 2  # 8 patches, 2 processes, 2 patches each
    saved, inference = (json.loads((tmp_path / "configs" / f"{n}.json").read_text()) for n in ("train", "inference"))
    assert saved["device"] == inference["device"] == load("train.json")["device"]
    assert (tmp_path / "report.html").exists()


def masks_of_processes(finished_run, demo_dir, output_dir, number):
    """Pseudo masks by ``number`` processes of one thread each, with the classifier of a finished run."""
    shutil.copytree(finished_run / "models", output_dir / "models")
    configs = [*LITE, "configs/multi_gpu_train.json"]
    settings = {**TINY, "dataset_dir": demo_dir, "output_dir": output_dir, "device": "$torch.device('cpu')"}
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={number}", "-m", "monai.bundle"]
    command += ["run", "generate_pseudo_masks", "--config_file", str(configs)]
    command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=BUNDLE, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return {path.name: path.read_bytes() for path in (output_dir / "pseudo_masks").iterdir()}


@pytest.mark.e2e
def test_two_processes_write_the_masks_of_one_to_the_byte(finished_run, demo_dir, tmp_path):
    one, two = (masks_of_processes(finished_run, demo_dir, tmp_path / str(number), number) for number in (1, 2))
    assert len(one) == 9 and "manifest.json" in one  # 8 masks
    assert two == one


def monai_command(*arguments):
    result = subprocess.run(
        [sys.executable, "-m", "monai.bundle", *arguments], cwd=BUNDLE, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.e2e
def test_network_shapes_pass_monais_check():
    files = ["--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"]
    monai_command("verify_net_in_out", "network_def", *files)


def test_metadata_passes_monais_check(tmp_path):
    schema = os.environ.get("METADATA_SCHEMA")
    if schema is None:
        pytest.skip("METADATA_SCHEMA names no file with MONAI's schema of 2024-07-25")
    shutil.copy(schema, tmp_path / "schema.json")
    md5 = "06954cad2cc5d3784e72077ac76f0fc8"
    files = ["--meta_file", "configs/metadata.json", "--filepath", str(tmp_path / "schema.json"), "--hash_val", md5]
    monai_command("verify_metadata", *files)
