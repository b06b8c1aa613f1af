import json

import pytest
from conftest import method_configs

SETTINGS = {"classifier_batch_size": 2, "batch_size": 2}  # four steps an epoch


STEPS = [(method, stage) for method in ("esfan", "ibdr") for stage in ("train_classifier", "train_segmenter")]


@pytest.mark.parametrize("method, stage", [*STEPS, ("sshr", "train_classifier")])
def test_a_training_step_does_not_wait_for_the_device(device_process, finished_run, demo_dir, tmp_path, method, stage):
    settings = {**SETTINGS, "dataset_dir": demo_dir, "output_dir": tmp_path, "mask_dir": finished_run / "pseudo_masks"}
    configs = method_configs(method)
    result = device_process.call("device_tasks.waits_of_steps", stage=stage, config_file=configs, **settings)
    assert result["steps"] == 3
    assert result["waits"] == [], "\n".join(["the host waits for the device:", *result["waits"]])


@pytest.mark.parametrize("overlay", [[], ["configs/dataset_luad_tissue.json"]])
def test_writing_pseudo_masks_waits_for_what_it_writes_alone(device_process, finished_run, demo_dir, tmp_path, overlay):
    settings = {"dataset_dir": demo_dir, "output_dir": tmp_path, "eval_batch_size": 3, "mask_dir": tmp_path / "masks"}
    settings["classifier_path"] = finished_run / "models" / "classifier" / "model.pt"
    if overlay:  # CAMs of balanced classes, with the strengths of the classifier's own file
        settings["class_names"] = ["tumor", "stroma", "lymphocytes"]
        strengths = {"class_strengths": [[0.5, 1.0, 2.0]] * 3}
        (tmp_path / "class_strengths.json").write_text(json.dumps(strengths), encoding="utf-8")
        settings["class_strengths#path"] = tmp_path / "class_strengths.json"
    waits = device_process.call(
        "device_tasks.waits_of_pseudo_masks", config_file=method_configs("esfan", *overlay), **settings
    )
    assert len(list((tmp_path / "masks").glob("*.png"))) == 8
    assert [wait for wait in waits if "Event.synchronize" not in wait] == []
