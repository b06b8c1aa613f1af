"""A run without a second stage: its CAMs are its network, for everything that a network is for."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import BUNDLE, TINY, method_configs
from PIL import Image
from synthetic_slide import write_slide

from scripts.errors import BundleError
from scripts.inference.segmenter import load
from scripts.label_app.server.model import ModelStore
from scripts.label_app.server.options import Options
from scripts.runs.plain_errors import plain_cause
from scripts.runs.run_folder import RunFolder
from scripts.sharing.deploy import deploy, networks
from scripts.sharing.export import export

SSHR = method_configs("sshr")
STRENGTHS = {"cam_segmenter#scaled_levels": False, "cam_segmenter#class_strengths": "@class_strengths"}


def masks_of(folder):
    return {path.name: np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def stages_of(folder):
    return list(RunFolder(folder).stages)


def test_the_network_gives_the_masks_of_the_classifier(cam_run, exported_cams, demo_dir):
    assert stages_of(cam_run) == ["train_classifier", "make_cam_network"]
    expected = masks_of(cam_run / "predictions" / "classifier_val")
    assert len(np.unique(np.stack(list(expected.values())))) > 1
    for folder in (cam_run, exported_cams):
        for prediction in load(folder).predict(demo_dir / "val" / "img"):
            assert np.array_equal(prediction.mask, expected[prediction.path.name])
            assert np.isfinite(prediction.probabilities).all()
            winners = 1 + prediction.probabilities.argmax(axis=0)
            assert (winners == prediction.mask)[prediction.mask > 0].all()
    scores = [json.loads((cam_run / "scores" / f"{name}_val.json").read_text()) for name in ("classifier", "segmenter")]
    assert scores[0]["protocols"] == scores[1]["protocols"]


def test_images_larger_than_a_patch_are_scored_in_the_same_windows(cam_run, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (150, 100, 3), dtype=np.uint8)
    segmenter = load(cam_run)
    parser = segmenter._parser
    whole = parser.get_parsed_content("network").cam_segmenter
    whole.window = (64, 64)
    scores = whole(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0]
    whole.window = None
    best = scores.topk(2, dim=0).values
    sure = (best[0] - best[1] > 1e-5).numpy()
    assert sure.mean() > 0.9
    mask = segmenter.predict(image).mask
    same = mask == 1 + scores.argmax(dim=0).numpy()
    assert same[sure & (mask > 0)].all()


def test_it_segments_a_slide(cam_run, tmp_path, demo_dir):
    tiles = [np.array(Image.open(path)) for path in sorted((demo_dir / "val" / "img").glob("*.png"))]
    image = np.tile(np.concatenate(tiles, axis=1), (3, 1, 1))
    prediction = load(cam_run).predict(write_slide(tmp_path / "slide.tiff", image))
    assert prediction.mask.shape == image.shape[:2] and len(np.unique(prediction.mask)) > 1


@pytest.mark.e2e
def test_its_networks_are_deployed(exported_cams, tmp_path):
    differences = deploy(str(exported_cams), str(tmp_path))
    assert len(differences) == 6 and max(differences.values()) < 1e-4


def test_the_card_says_that_there_is_no_second_stage(exported_cams):
    card = (exported_cams / "docs" / "README.md").read_text("utf-8")
    assert "without a second stage" in card and "segmentation network: 2 epochs" not in card


def test_class_strengths_go_with_the_network(run_bundle, tmp_path, demo_dir):
    run_bundle("training", tmp_path / "run", config_file=SSHR, **TINY, **STRENGTHS)
    path = tmp_path / "run" / "models" / "classifier" / "class_strengths.json"
    strengths = json.loads(path.read_text())
    path.unlink()
    bundle = export("sshr", str(tmp_path / "run"), str(tmp_path / "dist"), preset="lite")
    shutil.rmtree(tmp_path / "run" / "configs")
    segmenter = load(bundle)
    network = segmenter._parser.get_parsed_content("network")
    assert network.cam_segmenter.class_strengths == strengths["class_strengths"]
    expected = masks_of(tmp_path / "run" / "predictions" / "classifier_val")
    for prediction in segmenter.predict(demo_dir / "val" / "img"):
        assert np.array_equal(prediction.mask, expected[prediction.path.name])


def test_a_network_for_deployment_computes_in_float32(cam_run, tmp_path):
    shutil.copytree(cam_run, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "configs" / "inference.json").read_text())
    (tmp_path / "run" / "configs" / "inference.json").write_text(json.dumps(config | {"precision": "bfloat16"}))
    assert networks(tmp_path / "run")["segmenter"].cam_segmenter.dtype is torch.float32


def test_the_stock_app_is_told_that_cams_are_not_trained_on_masks(exported_cams, run_bundle, tmp_path):
    shutil.copytree(exported_cams, tmp_path / "bundle")
    before = (tmp_path / "bundle" / "models" / "model.pt").read_bytes()
    with pytest.raises(Exception) as error:  # MONAI wraps the error
        data = {"train#dataset#data": [{"image": "x", "label": "y"}]}
        run_bundle("run", tmp_path / "bundle", config_file=SSHR, **data)
    assert "must be a run with a second stage" in str(plain_cause(error.value))
    assert (tmp_path / "bundle" / "models" / "model.pt").read_bytes() == before


def test_a_classifier_s_file_is_a_file_of_the_network(cam_run, demo_dir, tmp_path):
    shutil.copytree(cam_run, tmp_path / "run")
    shutil.copy(cam_run / "models" / "classifier" / "model.pt", tmp_path / "run" / "models" / "model.pt")
    mine, theirs = (list(load(run).predict(demo_dir / "val" / "img")) for run in (tmp_path / "run", cam_run))
    assert all(np.array_equal(one.mask, other.mask) for one, other in zip(mine, theirs, strict=True))


def test_a_second_stage_takes_its_place_and_back(cam_run, run_bundle, tmp_path, demo_dir):
    run = tmp_path / "run"
    shutil.copytree(cam_run, run)
    with pytest.raises(Exception) as error:  # MONAI wraps the error
        files = [*SSHR, "configs/adapt.json"]
        run_bundle("adapt", tmp_path / "adapted", config_file=files, source_dir=str(run), num_images=2)
    assert "must be a run with a second stage" in str(plain_cause(error.value))
    run_bundle("training", run, config_file=SSHR, second_stage=True, **{**TINY, "epochs": 1})  # epochs may change
    assert stages_of(run) == ["train_classifier", "generate_pseudo_masks", "train_segmenter"]
    assert load(run)._parser["network_def"] == "@segmenter_def"
    trained = torch.load(run / "models" / "model.pt", weights_only=True)
    run_bundle("training", run, config_file=SSHR, **{**TINY, "epochs": 1})
    assert stages_of(run) == ["train_classifier", "generate_pseudo_masks", "make_cam_network"]
    assert load(run)._parser["network_def"] == "@cam_network"
    kept = [torch.load(path, weights_only=True) for path in sorted(run.glob("previous/*/models/model.pt"))]
    assert any(weights.keys() == trained.keys() for weights in kept)


def test_what_an_interrupted_second_stage_left_is_set_aside(cam_run, run_bundle, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(cam_run, run)
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints" / "segmenter.pt").write_bytes(b"of epoch 1")
    (run / "models" / "model.pt").write_bytes(b"best of epoch 1")
    RunFolder(run).forget("make_cam_network")
    run_bundle("training", run, config_file=SSHR, **TINY)
    assert stages_of(run)[-1] == "make_cam_network" and not (run / "checkpoints" / "segmenter.pt").exists()
    kept = [
        path.read_bytes()
        for name in ("checkpoints/segmenter.pt", "models/model.pt")
        for path in run.glob(f"previous/*/{name}")
    ]
    assert kept == [b"of epoch 1", b"best of epoch 1"]


def test_a_stopped_second_stage_leaves_a_run_whose_network_is_its_cams(cam_run, run_bundle, tmp_path, demo_dir):
    run = tmp_path / "run"
    shutil.copytree(cam_run, run)
    train = json.loads((run / "configs" / "train.json").read_text())
    (run / "configs" / "train.json").write_text(json.dumps(train | {"second_stage": True}))
    assert not RunFolder(run).has_second_stage
    bundle = export("sshr", str(run), str(tmp_path / "dist"), preset="lite")
    image = min((demo_dir / "val" / "img").iterdir())
    assert np.array_equal(load(bundle).predict(image).mask, load(cam_run).predict(image).mask)
    run_bundle("run", run, config_file=[*SSHR, "configs/evaluate.json"], second_stage=True, eval_batch_size=3)


def test_a_training_that_stopped_after_the_classifier_goes_on(cam_run, run_bundle, tmp_path):
    run_bundle("train_classifier", tmp_path / "run", config_file=SSHR, **TINY)
    with pytest.raises(BundleError, match="whose network is not trained yet"):
        load(tmp_path / "run")
    run_bundle("training", tmp_path / "run", config_file=SSHR, **TINY)
    ours, theirs = (torch.load(run / "models" / "model.pt", weights_only=True) for run in (tmp_path / "run", cam_run))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_every_command_s_stages_are_those_of_the_config():
    from scripts.commands.training import Stage

    stages = json.loads((BUNDLE / "configs" / "train.json").read_text())["stages"]
    assert {stage.value for stage in Stage} == stages.keys() - {"train_on_annotations"}


def test_the_label_app_answers_with_the_cams(cam_run, demo_dir):
    image = min((demo_dir / "val" / "img").iterdir())
    answer = ModelStore(Options(bundle=cam_run, device="cpu")).get().predict(image)
    assert np.array_equal(answer.mask, masks_of(cam_run / "predictions" / "classifier_val")[image.name])
