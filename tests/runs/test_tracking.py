"""Experiment tracking by MONAI's ``--tracking mlflow``; skipped without MLflow, which no extra of ours installs."""

import json

import pytest
from conftest import TINY

from scripts.evaluation.report.curves import read_curves
from scripts.runs.run_folder import RunFolder
from scripts.training.handlers import LinearScheduleHandler


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
