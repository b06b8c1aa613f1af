import pytest
from conftest import method_configs

SETTINGS = {"classification#batch_size": 2, "train#batch_size": 2}  # four steps an epoch


@pytest.mark.parametrize("trainer", ["classification#trainer", "train#trainer"])
@pytest.mark.parametrize("method", ["esfan", "ibdr"])
def test_a_training_step_does_not_wait_for_the_device(
    device_process, finished_run, demo_dir, tmp_path, method, trainer
):
    settings = {**SETTINGS, "dataset_dir": demo_dir, "output_dir": tmp_path, "mask_dir": finished_run / "pseudo_masks"}
    configs = method_configs(method)
    result = device_process.call("device_tasks.waits_of_steps", trainer=trainer, config_file=configs, **settings)
    assert result["steps"] == 3
    assert result["waits"] == [], "\n".join(["the host waits for the device:", *result["waits"]])
