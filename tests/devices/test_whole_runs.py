"""Whole runs on the pretend device, beside those of the CPU: ``pytest -m e2e tests/devices``."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import monai.bundle
import numpy as np
import pytest
import torch
from conftest import BUNDLE, TINY, method_configs
from device_process import DEVICE, ENVIRONMENT, TESTS
from PIL import Image

from scripts.label_app.server.model import ModelStore
from scripts.label_app.server.options import Options

pytestmark = pytest.mark.e2e
TWO = ["train_classifier", "generate_pseudo_masks", "train_segmenter"]
STAGES = {"esfan": TWO, "ibdr": TWO, "sshr": ["train_classifier", "make_cam_network"]}


def read_json(path):
    return json.loads(path.read_text())


def weights(run):
    """The tensors of both networks, by name, on the CPU."""
    files = {part: run / "models" / part / "model.pt" for part in ("classifier", ".")}
    states = {part: torch.load(path, map_location="cpu", weights_only=True) for part, path in files.items()}
    return {f"{part} {name}": tensor for part, state in states.items() for name, tensor in state.items()}


def pixels(folder):
    """The masks of a folder, (H, W) each, by name."""
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))}


def assert_same_masks(ours, others, share=0.99):
    """All but a few pixels of two folders of masks are the same: rounding may turn ties."""
    ours, others = pixels(ours), pixels(others)
    assert ours.keys() == others.keys() and len(ours) > 0
    same = {name: (mask == others[name]).mean() for name, mask in ours.items()}
    assert min(same.values()) >= share, same


def run_on_the_cpu(folder, config_file, **settings):
    """Do the run ``run`` of a bundle in its folder, in this process."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        monai.bundle.run(run_id="run", config_file=config_file, device="cpu", **settings)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("method", STAGES)
def test_training_goes_through_all_stages(device_runs, demo_dir, method):
    run = device_runs(method)
    record = read_json(run / "run.json")["stages"]
    assert list(record) == STAGES[method]
    for stage in (STAGES[method][0], STAGES[method][-1]):
        assert 0 <= record[stage]["scores"]["test"]["protocols"]["published"]["mean_iou"] <= 1
    if "generate_pseudo_masks" in record:
        assert len(pixels(run / "pseudo_masks")) == len(list((demo_dir / "train" / "img").iterdir()))
    assert (run / "report.html").exists()


def test_weights_are_read_on_a_machine_without_the_device(device_runs):
    for part in ("classifier", "."):
        torch.load(device_runs("esfan") / "models" / part / "model.pt", weights_only=True)


def test_training_comes_to_what_the_cpu_comes_to(device_runs, finished_run):
    ours, cpus = weights(device_runs("esfan")), weights(finished_run)
    assert ours.keys() == cpus.keys()
    distance = {name: (ours[name] - cpus[name]).double().abs().mean().item() for name in ours}
    assert max(distance.values()) < 1e-5, max(distance, key=distance.get)
    assert_same_masks(device_runs("esfan") / "pseudo_masks", finished_run / "pseudo_masks")
    assert_same_masks(device_runs("esfan") / "predictions", finished_run / "predictions")


def test_a_training_that_was_cut_goes_on_to_the_same_weights(device_process, device_runs, demo_dir, tmp_path):
    settings = {**TINY, "dataset_dir": demo_dir, "output_dir": tmp_path / "run"}
    configs, checkpoint = method_configs("esfan"), tmp_path / "run" / "checkpoints" / "classifier.pt"
    command = [sys.executable, "-W", "ignore", str(TESTS / "pretend_device.py"), "run", "training"]
    command += ["--config_file", str(configs), "--device", DEVICE]
    command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=BUNDLE, env=os.environ | ENVIRONMENT, stdout=log, stderr=log)
        while process.poll() is None and not checkpoint.exists():
            time.sleep(0.005)
        assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
        process.send_signal(signal.SIGKILL)
        process.wait()
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    assert state["trainer"]["iteration"] == 2 and not (tmp_path / "run" / "models").exists()
    device_process.run_bundle("training", configs, **settings)
    ours, whole = weights(tmp_path / "run"), weights(device_runs("esfan"))
    assert [name for name in whole if not torch.equal(ours[name], whole[name])] == []


def test_adaptation_to_pixel_masks(device_process, device_runs, few_shot_dir, tmp_path):
    configs = method_configs("esfan", "configs/adapt.json", dataset="demo_lab_b")
    settings = {"source_dir": device_runs("esfan"), "num_images": 3, "epochs": 1, "output_dir": tmp_path}
    device_process.run_bundle("adapt", configs, dataset_dir=few_shot_dir, **settings)
    assert list(read_json(tmp_path / "run.json")["stages"]) == ["score_source", "copy_pixel_masks", "train_segmenter"]
    before, after = weights_of_segmenter(device_runs("esfan")), weights_of_segmenter(tmp_path)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "scores" / "adaptation.csv").exists()


def weights_of_segmenter(run):
    return torch.load(run / "models" / "model.pt", map_location="cpu", weights_only=True)


def test_second_round(device_process, device_runs, demo_dir, tmp_path):
    settings = {"epochs": 1, "batch_size": 4, "source_dir": device_runs("ibdr"), "output_dir": tmp_path}
    configs = method_configs("ibdr", "configs/second_round.json")
    device_process.run_bundle("segmentation", configs, dataset_dir=demo_dir, **settings)
    assert list(read_json(tmp_path / "run.json")["stages"]) == TWO[1:]


def test_fitted_cams_are_the_cpus(device_process, device_runs, run_bundle, demo_dir, tmp_path):
    settings = {"classifier_path": str(device_runs("esfan") / "models" / "classifier" / "model.pt")}
    settings |= {"fit_cams#0#steps": 2, "fit_cams#0#thresholds": [0.2, 0.5]}
    run_bundle("fit_cams", tmp_path / "cpu", method_configs("esfan"), **settings)
    settings |= {"dataset_dir": demo_dir, "output_dir": tmp_path / "device"}
    device_process.run_bundle("fit_cams", method_configs("esfan"), **settings)
    ours, cpus = (read_json(tmp_path / name / "scores" / "cam_fit.json") for name in ("device", "cpu"))
    assert ours == cpus


def test_masks_of_any_folder_are_the_cpus(device_process, device_runs, run_bundle, demo_dir, tmp_path):
    settings = {"classifier_path": str(device_runs("esfan") / "models" / "classifier" / "model.pt")}
    settings |= {"pseudo_masks#image_dir": str(demo_dir / "val" / "img")}
    run_bundle("write_masks", tmp_path, method_configs("esfan"), **settings, mask_dir=str(tmp_path / "cpu"))
    settings |= {"dataset_dir": demo_dir, "output_dir": tmp_path, "mask_dir": tmp_path / "device"}
    device_process.run_bundle("write_masks", method_configs("esfan"), **settings)
    assert_same_masks(tmp_path / "device", tmp_path / "cpu")


@pytest.mark.parametrize("method", STAGES)
def test_scores_are_those_of_the_training(device_process, device_runs, demo_dir, tmp_path, method):
    shutil.copytree(device_runs(method) / "models", tmp_path / "models")
    settings = {"dataset_dir": demo_dir, "output_dir": tmp_path, "eval_batch_size": TINY["eval_batch_size"]}
    for run_id, network in (("run", "segmenter"), ("score_classifier", "classifier")):
        device_process.run_bundle(run_id, method_configs(method, "configs/evaluate.json"), **settings)
        file = f"scores/{network}_test.json"
        assert read_json(tmp_path / file) == read_json(device_runs(method) / file)


@pytest.mark.parametrize("method, precision", [("esfan", "float32"), ("esfan", "bfloat16"), ("sshr", "float32")])
def test_images_are_segmented_as_on_the_cpu(device_process, device_runs, demo_dir, tmp_path, method, precision):
    run, images = device_runs(method), demo_dir / "val" / "img"
    settings = {"dataset_dir": str(images), "precision": precision}
    device_process.run_bundle("run", ["configs/inference.json"], run, **settings, output_dir=tmp_path / "device")
    run_on_the_cpu(run, ["configs/inference.json"], **settings, output_dir=str(tmp_path / "cpu"))
    assert_same_masks(
        tmp_path / "device" / "masks", tmp_path / "cpu" / "masks", 0.99 if precision == "float32" else 0.9
    )


def test_slides_are_segmented_as_on_the_cpu(device_process, device_runs, studies, tmp_path):
    run, configs = device_runs("esfan"), ["configs/inference_slides.json"]
    settings = {"slides": str(studies / "images" / "slide.tif"), "overlap": 0.25, "mirror_averaging": False}
    device_process.run_bundle("run", configs, run, **settings, output_dir=tmp_path / "device")
    run_on_the_cpu(run, configs, **settings, output_dir=str(tmp_path / "cpu"))
    ours, cpus = (tmp_path / name / "slide" for name in ("device", "cpu"))
    names = {path.name for path in cpus.iterdir()}
    assert names == {path.name for path in ours.iterdir()} and len(names) > 2
    same = {name for name in names if (ours / name).read_bytes() == (cpus / name).read_bytes()}
    assert names - same == {"record.json"}
    assert [read_json(folder / "record.json")["device"] for folder in (ours, cpus)] == ["pretend:0", "cpu"]


def test_the_label_apps_network_says_what_it_says_on_the_cpu(device_process, device_runs, demo_dir, tmp_path):
    run, image = device_runs("esfan"), min((demo_dir / "val" / "img").iterdir())
    files = {"run": run, "image": image, "path": tmp_path / "result.npz"}
    device_process.call("device_tasks.segment_as_the_label_app", **files)
    cpus = ModelStore(Options(bundle=run, device="cpu")).get().predict(image)
    with np.load(tmp_path / "result.npz") as ours:
        assert (ours["mask"] == cpus.mask).mean() >= 0.99
        assert np.allclose(ours["entropy"], cpus.entropy, atol=1e-3)
