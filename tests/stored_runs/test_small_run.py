"""The folder of a run that an earlier version made is still of use."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import BUNDLE
from PIL import Image

from scripts.errors import BundleError
from scripts.evaluation.report.report import report
from scripts.label_app.server.settings import bundle_settings
from scripts.runs.run_folder import RunFolder
from scripts.sharing.deploy import networks
from scripts.sharing.export import export

HERE = Path(__file__).parent


@pytest.fixture
def small_run(tmp_path):
    with zipfile.ZipFile(HERE / "small_run.zip") as archive:
        archive.extractall(tmp_path / "run")
    return tmp_path / "run"


def test_its_record_report_and_networks_open(small_run, few_shot_dir):
    assert all(map(RunFolder(small_run).is_complete, ("train_classifier", "generate_pseudo_masks", "train_segmenter")))
    (small_run / "report.html").unlink()
    page = report(str(small_run), str(few_shot_dir)).read_text()
    assert "MobileNet" in page or "mobilenetv3_small_050" in page
    assert set(networks(small_run)) == {"segmenter", "classifier"}
    assert bundle_settings(small_run).classes.class_names == ["tumor", "stroma", "lymphocytes"]


def test_an_export_of_its_training_is_refused_with_the_way_out(small_run, tmp_path):
    with pytest.raises(BundleError, match="from an earlier version; pass its file, .*model.pt, with --method"):
        export("esfan", str(small_run), str(tmp_path / "dist"), preset="small")


def commands(tmp_path, *words):
    """What a command that must work says."""
    environment = {**os.environ, "PYTHONPATH": str(BUNDLE)}
    command = [sys.executable, "-m", "scripts", *map(str, words)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout + result.stderr


@pytest.mark.e2e
def test_it_segments_with_its_own_code(small_run, few_shot_dir, tmp_path):
    images = few_shot_dir / "val" / "img"
    commands(tmp_path, "segment", images, "--run", small_run, "--output-dir", "masks", "--device", "cpu")
    for path in images.iterdir():
        assert Image.open(tmp_path / "masks" / "masks" / path.name).size == Image.open(path).size


@pytest.mark.e2e
def test_a_network_of_it_is_adapted_and_has_a_second_round(small_run, few_shot_dir, tmp_path):
    sys.path.insert(0, str(HERE))
    from make import SMALL

    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    own = ["--preset", "lite", "--config", "small.json", "--epochs", 1, "--device", "cpu"]
    data = ["--dataset", "demo", "--dataset-dir", few_shot_dir]
    log = commands(tmp_path, "adapt", small_run, *data, "--num-images", 4, *own, "--output-dir", "adapted")
    assert "Before" in log and RunFolder(tmp_path / "adapted").is_complete("train_segmenter")
    commands(tmp_path, "train", "--second-round-of", small_run, *data, *own, "--output-dir", "second")
    assert RunFolder(tmp_path / "second").is_complete("train_segmenter")
