import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import BUNDLE, LITE, TINY
from PIL import Image

from scripts.runs.plain_errors import plain_cause
from scripts.runs.stages import merged_config, stage_settings
from scripts.weights.state_dicts import read_state_dict

STAGES = ["train_classifier", "generate_pseudo_masks", "train_segmenter"]


def read_json(path):
    return json.loads(path.read_text())


def training_command(demo_dir, output_dir, **overrides):
    settings = {**TINY, "dataset_dir": demo_dir, "output_dir": output_dir, "device": "cpu", **overrides}
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "training", "--config_file", str(LITE)]
    return command + [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def weights(output_dir):
    return [torch.load(output_dir / "models" / name, weights_only=True) for name in ("classifier/model.pt", "model.pt")]


def assert_same_weights(one, other):
    for first, second in zip(weights(one), weights(other)):
        assert first.keys() == second.keys()
        different = [name for name in first if not torch.equal(first[name], second[name])]
        assert different == []


def test_finished_run_has_a_record_of_every_stage(finished_run):
    record = read_json(finished_run / "run.json")
    assert list(record["stages"]) == STAGES
    for stage in ("train_classifier", "train_segmenter"):
        assert record["stages"][stage]["seed"] == 0
        assert record["stages"][stage]["versions"]["torch"] == torch.__version__.split("+")[0]
        for split in ("val", "test"):
            assert 0 <= record["stages"][stage]["scores"][split]["protocols"]["published"]["mean_iou"] <= 1


def test_pseudo_masks_show_only_labelled_tissues(finished_run, demo_dir):
    for path in (demo_dir / "train" / "img").iterdir():
        with Image.open(finished_run / "pseudo_masks" / path.name) as mask:
            assert mask.mode == "P" and mask.size == (64, 64)
            values = set(np.unique(np.asarray(mask)).tolist())
        label = [int(digit) for digit in path.name.split("[")[1].split("]")[0].split()]
        assert values <= {0} | {value for value, present in enumerate(label, start=1) if present}


def test_best_weights_give_the_recorded_score(finished_run, run_bundle, tmp_path):
    shutil.copytree(finished_run / "models", tmp_path / "models")
    run_bundle("run", tmp_path, [*LITE, "configs/evaluate.json"])
    for split in ("val", "test"):
        again = read_json(tmp_path / "scores" / f"segmenter_{split}.json")
        assert again == read_json(finished_run / "scores" / f"segmenter_{split}.json")


def test_finished_stages_are_not_done_again(finished_run, run_bundle):
    results = [path for path in finished_run.rglob("*") if path.suffix in (".pt", ".png")]
    results.remove(finished_run / "pictures" / "examples.png")  # goes with the report, which is written again
    before = {path: path.stat().st_mtime_ns for path in results}
    run_bundle("training", finished_run, **TINY)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_stage_without_its_result_is_done_again(finished_run, run_bundle, tmp_path):
    output_dir = tmp_path / "run"
    shutil.copytree(finished_run, output_dir)
    shutil.rmtree(output_dir / "pseudo_masks")
    run_bundle("training", output_dir, **TINY)
    for path in (finished_run / "pseudo_masks").iterdir():
        assert (output_dir / "pseudo_masks" / path.name).read_bytes() == path.read_bytes()


def test_fewer_patches_than_a_batch_are_refused(run_bundle, tmp_path):
    with pytest.raises(RuntimeError) as error:
        run_bundle("training", tmp_path / "run", **{**TINY, "classifier_batch_size": 9})
    assert "must hold at least one batch, 9 patches, got 8" in str(plain_cause(error.value))


def test_other_settings_in_the_same_folder_are_refused(finished_run, run_bundle):
    with pytest.raises(RuntimeError) as error:
        run_bundle("run", finished_run, **{**TINY, "seed": 1})
    assert "begun or finished, must stay, but these differ: seed: was 0, now 1. Restore" in str(error.value.__cause__)


def test_edited_masks_are_learnt_from_and_redo_sets_old_results_aside(finished_run, run_bundle, tmp_path):
    output_dir = tmp_path / "run"
    shutil.copytree(finished_run, output_dir)
    masks = sorted((output_dir / "pseudo_masks").glob("*.png"))
    with Image.open(masks[0]) as mask:
        edited = mask.copy()
    edited.paste(2, (0, 0, 64, 64))
    edited.save(masks[0])
    content = masks[0].read_bytes()
    run_bundle("training", output_dir, **TINY, redo="train_segmenter")
    assert masks[0].read_bytes() == content
    old, new = (torch.load(path / "models" / "model.pt") for path in (output_dir / "previous" / "1", output_dir))
    assert any(not torch.equal(old[name], new[name]) for name in new)
    assert (finished_run / "models" / "classifier" / "model.pt").read_bytes() == (
        output_dir / "models" / "classifier" / "model.pt"
    ).read_bytes()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"classifier_def#freeze_batch_norm": False},
            "settings of train_classifier, .* differ: classifier_def#freeze_batch_norm: was true, now false. Restore",
        ),
        ({"seed": 3}, "seed: was 0, now 3. Restore the old values, pass --redo train_classifier, or"),
        (
            {"cam_segmenter#threshold": 0.4},
            "settings of generate_pseudo_masks, .*#threshold: .* now 0.4. .* --redo gen",
        ),
    ],
)
def test_a_stage_alone_is_not_done_again_with_what_others_were_done_otherwise(
    finished_run, run_bundle, tmp_path, settings, sentence
):
    output_dir = tmp_path / "run"
    shutil.copytree(finished_run, output_dir)
    before = {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")}
    with pytest.raises(RuntimeError) as error:
        run_bundle("training", output_dir, **{**TINY, **settings}, redo="train_segmenter")
    assert re.search(sentence, str(plain_cause(error.value)))
    assert {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")} == before


def test_the_settings_of_a_stage_are_what_its_steps_refer_to():
    config = read_json(BUNDLE / "configs" / "train.json")
    classifier, masks, segmenter = (stage_settings(config, stage) for stage in STAGES)
    assert {"classifier_def", "classifier_lr", "seed"} <= set(classifier) and "epochs" not in classifier
    assert "classifier_def" not in segmenter and {"segmenter_def", "epochs", "lr", "mask_values"} <= set(segmenter)
    assert {"threshold", "level_weights", "mask_dir"} <= set(masks) and "lr" not in masks
    assert not any("num_workers" in one or "dataset_dir" in one for one in (classifier, masks, segmenter))


def test_bad_data_stops_with_one_clear_message_before_any_training(demo_dir, tmp_path):
    data_dir = tmp_path / "data"
    shutil.copytree(demo_dir, data_dir)
    patch = next((data_dir / "train" / "img").iterdir())
    patch.rename(patch.with_name("nameless.png"))
    command = training_command(data_dir, tmp_path / "run")
    result = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Stopped: ") and "nameless.png" in last
    assert "must have 3 labels such as '[1 0 0]' in its name, got []; rename it" in last
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def kill_when(command, condition, log):
    """Start a command, kill it as soon as ``condition`` holds, and say that it did not end before."""
    with open(log, "a") as file:
        process = subprocess.Popen(command, cwd=BUNDLE, stdout=file, stderr=file)
        while process.poll() is None and not condition():
            time.sleep(0.005)
        killed = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    return killed


@pytest.mark.e2e
def test_killed_training_resumes_to_the_same_weights(demo_dir, finished_run, tmp_path):
    output_dir = tmp_path / "run"
    command = training_command(demo_dir, output_dir)
    moments = [  # in stage 1 after an epoch, while masks are written, in stage 2 after an epoch
        (output_dir / "checkpoints" / "classifier.pt").exists,
        lambda: len(list((output_dir / "pseudo_masks").glob("*.png"))) >= 2,
        (output_dir / "checkpoints" / "segmenter.pt").exists,
    ]
    for number, condition in enumerate(moments):
        assert kill_when(command, condition, tmp_path / "log"), (tmp_path / "log").read_text()[-2000:]
        stages = read_json(output_dir / "run.json")["stages"] if (output_dir / "run.json").exists() else {}
        assert list(stages) == STAGES[:number]
    subprocess.run(command, cwd=BUNDLE, check=True, capture_output=True)
    assert_same_weights(output_dir, finished_run)
    assert list(output_dir.rglob("*.partial-*")) == []


def test_config_is_looked_up_only_within_a_bundle_run():
    with pytest.raises(RuntimeError, match="must be called from a bundle's config"):
        merged_config()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_training_on_a_gpu_with_mixed_precision_resumes(run_bundle, tmp_path):
    settings = {**TINY, "device": "$torch.device('cuda')", "amp": True}
    run_bundle("training", tmp_path, **settings)
    assert list(read_json(tmp_path / "run.json")["stages"]) == STAGES
    state = torch.load(tmp_path / "checkpoints" / "segmenter.pt", weights_only=True)
    assert state["scaler"]["scale"] > 0


def test_masks_that_monai_label_gives_are_learnt_from_the_runs_own_network(
    finished_run, run_bundle, few_shot_dir, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    settings, old = (run / "configs" / "train.json").read_bytes(), (run / "models" / "model.pt").read_bytes()
    images = sorted((few_shot_dir / "train" / "img").glob("*.png"))[:4]
    items = [{"image": str(path), "label": str(few_shot_dir / "train" / "mask" / path.name)} for path in images]
    given = {"train#dataset#data": items[:3], "validate#dataset#data": items[3:], "train#trainer#max_epochs": 1}
    rate = {"train#lr": 0.0, "train#optimizer#weight_decay": 0.0}  # so the weights stay what training begins with
    run_bundle("run", run, [str(run / "configs" / "train.json")], **given, **rate)
    assert (run / "configs" / "train.json").read_bytes() == settings
    assert (run / "previous" / "1" / "models" / "model.pt").read_bytes() == old
    before, after = (
        read_state_dict(path) for path in (run / "previous" / "1" / "models" / "model.pt", run / "models" / "model.pt")
    )
    learnt = [name for name in after if "running" not in name and "num_batches" not in name]
    distance = {name: (after[name] - before[name]).abs().max().item() for name in learnt}
    assert max(distance.values()) < 0.05  # but for a hundredth of what was averaged before the weights were loaded
    assert "Training the segmenter: 3 patches, 1 epochs" in (run / "run.log").read_text()


def test_new_settings_are_kept_only_when_old_results_are_out_of_the_way(finished_run, run_bundle, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    before = (run / "configs" / "train.json").read_bytes(), (run / "run.json").read_bytes()
    (tmp_path / "masks").mkdir()
    settings = {**TINY, "mask_dir": str(tmp_path / "masks"), "threshold": 0.4}
    with pytest.raises(RuntimeError) as error:
        run_bundle("training", run, **settings, redo="generate_pseudo_masks")
    assert "must be inside" in str(plain_cause(error.value))
    assert ((run / "configs" / "train.json").read_bytes(), (run / "run.json").read_bytes()) == before


def test_an_option_of_what_a_stage_replaces_is_known_in_all_stages(demo_dir, tmp_path):
    overlay = tmp_path / "adam.json"
    adam = {"_target_": "torch.optim.Adam", "params": "@train#parameters", "lr": "@train#lr"}
    overlay.write_text(json.dumps({"train#optimizer": adam}))
    command = training_command(demo_dir, tmp_path / "run", **{"train#optimizer#amsgrad": True, "lr": 0.002})
    command[command.index(str(LITE))] = str([*LITE, str(overlay)])
    result = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-1000:]


@pytest.mark.e2e
def test_numbers_that_yaml_takes_as_text_are_read_by_every_run(finished_run, run_bundle, tmp_path):
    (tmp_path / "mine.yaml").write_text("threshold: 2e-1\nlr: 1e-4\n")
    shutil.copytree(finished_run / "models", tmp_path / "models")
    configs = [*LITE, str(tmp_path / "mine.yaml")]
    run_bundle("write_masks", tmp_path, configs, mask_dir=str(tmp_path / "masks"))
    assert len(list((tmp_path / "masks").glob("*.png"))) == 8
    run_bundle("training", tmp_path / "run", configs, **TINY)
    assert read_json(tmp_path / "run" / "configs" / "train.json")["lr"] == 0.0001


def test_processes_that_have_not_found_one_another_are_refused(run_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError) as error:
        run_bundle("training", tmp_path / "run", **TINY)
    assert "add configs/multi_gpu_train.json" in str(plain_cause(error.value))
