import json
import subprocess
import sys

import device_checks
import pytest
from conftest import BUNDLE, LITE, TINY
from device_process import DEVICE, TESTS, DeviceError

SCORING = [*LITE, "configs/evaluate.json"]
CHECKS = [name for name in vars(device_checks) if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda name: name.removeprefix("check_"))
def test_pretend_device(device_process, check):
    device_process.call(f"device_checks.{check}")


def test_the_command_line_is_monais(device_process, demo_dir, tmp_path):
    settings = {"dataset_dir": demo_dir, "output_dir": tmp_path / "run", "device": DEVICE, "classification#epoch": 1}
    command = [sys.executable, "-W", "ignore", str(TESTS / "pretend_device.py"), "run", "training"]
    command += ["--config_file", str(LITE), "--sed", "1"]
    command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    result = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("Stopped: --sed must be a key of the configs")
    assert "Traceback" not in result.stderr


def scoring(finished_run, demo_dir, output_dir):
    """Settings to score a finished run's segmentation network in another folder."""
    weights = {"segmenter_path": finished_run / "models" / "model.pt", "eval_batch_size": TINY["eval_batch_size"]}
    return {**weights, "dataset_dir": demo_dir, "output_dir": output_dir}


def test_scores_on_the_device_are_the_cpus(device_process, finished_run, demo_dir, tmp_path):
    device_process.run_bundle("run", SCORING, **scoring(finished_run, demo_dir, tmp_path))
    for split in ("val", "test"):
        file = f"scores/segmenter_{split}.json"
        assert json.loads((tmp_path / file).read_text()) == json.loads((finished_run / file).read_text())


@pytest.mark.parametrize("results", ["masks", "matrices"])
def test_results_that_stay_on_the_device_stop_a_scoring(device_process, finished_run, demo_dir, tmp_path, results):
    task, settings = "device_tasks.score_with_results_on_the_device", scoring(finished_run, demo_dir, tmp_path)
    with pytest.raises(
        DeviceError, match="TypeError: can't convert pretend:0|RuntimeError: Expected all tensors to be"
    ):
        device_process.call(task, results=results, config_file=SCORING, **settings)
