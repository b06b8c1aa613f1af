"""Experiment tracking by MONAI's ``--tracking mlflow``; no extra of ours installs MLflow: its test may be skipped."""

import json

import pytest
from conftest import BUNDLE, TINY
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

from scripts.evaluation.report.curves import read_curves
from scripts.runs.run_folder import RunFolder, portable
from scripts.runs.stages import stage_config
from scripts.training.handlers import LinearScheduleHandler


@pytest.fixture
def tracked(tmp_path):
    """The config that MONAI makes of ours for ``--tracking mlflow``."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.json"))
    parser["output_dir"] = str(tmp_path / "run")
    ConfigWorkflow.patch_bundle_tracking(parser, DEFAULT_EXP_MGMT_SETTINGS["mlflow"])
    return parser.get()


@pytest.mark.parametrize("stage", ["train_classifier", "train_segmenter"])
def test_each_stage_has_the_handlers_that_track(tracked, stage):
    config = stage_config(tracked, stage)
    assert [handler["_target_"] for handler in config["train"]["handlers"]][1:] == ["MLFlowHandler"]
    assert config["run_name"] is None and config["tracking_uri"].startswith("$monai")


def test_a_run_folder_keeps_its_settings_without_those_of_tracking(tracked, tmp_path):
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.json"))
    parser.get_parsed_content("seed")  # which spells references as MONAI does
    kept = portable(tracked, tmp_path, None)
    assert kept == portable(parser.get(), tmp_path, None)
    own = {"_target_": "scripts.training.handlers.StageSizeHandler", "name": "a", "network": "@network"}
    tracked["train"]["handlers"].append(own)
    assert portable(tracked, tmp_path, None)["train"]["handlers"] == [*kept["train"]["handlers"], own]


@pytest.mark.e2e
def test_mlflow_follows_both_stages_and_a_resumed_one(run_bundle, tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking")
    folder = tmp_path / "run"

    def cut(handler, engine):
        if engine.state.epoch == 2 and "generate_pseudo_masks" in RunFolder(folder).stages:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LinearScheduleHandler, "__call__", cut)
        run_bundle("training", folder, tracking="mlflow", **TINY)
    run_bundle("training", folder, tracking="mlflow", **TINY)

    client = tracking.MlflowClient(f"sqlite:///{folder}/mlruns.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "monai_experiment"]
    runs = {run.info.run_name: run for run in client.search_runs(experiment.experiment_id)}
    assert {name: run.info.status for name, run in runs.items()} == {
        "train_classifier": "FINISHED",
        "train_segmenter": "FINISHED",
    }
    curves = read_curves(folder / "tensorboard")
    for stage, curve in (("train_classifier", "classifier_loss"), ("train_segmenter", "segmenter_loss")):
        losses = client.get_metric_history(runs[stage].info.run_id, "train_loss")
        assert [(loss.step, pytest.approx(loss.value)) for loss in losses] == curves[curve], stage
    scores = client.get_metric_history(runs["train_segmenter"].info.run_id, "val_mean_iou")
    assert [pytest.approx(score.value) for score in scores] == [value for _, value in curves["val_mean_iou"]]

    saved = json.loads((folder / "configs" / "train.json").read_text(encoding="utf-8"))
    assert "MLFlowHandler" not in json.dumps(saved) and "tracking_uri" not in saved.keys()
    run_bundle("training", folder, **TINY)  # complete, with the same settings
