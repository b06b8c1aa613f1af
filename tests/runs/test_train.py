import doctest
import shutil
import sys
from pathlib import Path

import monai.bundle
import pytest
from conftest import BUNDLE, TINY

import scripts.runs.train
from scripts.errors import BundleError
from scripts.runs.run_folder import read_record
from scripts.runs.train import train


@pytest.fixture()
def asked(monkeypatch, tmp_path):
    """What MONAI is asked to run, in place of a training, in a working directory of its own."""
    asked = {}
    monkeypatch.setattr(monai.bundle, "run", lambda run_id, **settings: asked.update(settings, run_id=run_id))
    monkeypatch.chdir(tmp_path)
    return asked


def test_data_and_runs_are_in_the_working_directory(asked, tmp_path):
    assert train("glas", "ibdr") == tmp_path / "output" / "glas_ibdr_lite"
    names = ["train", "method_ibdr", "lite", "dataset_glas"]
    assert asked["config_file"] == [str(BUNDLE / "configs" / f"{name}.json") for name in names]
    assert asked["run_id"] == "training" and asked["bundle_root"] == str(BUNDLE)
    assert asked["dataset_dir"] == f"${str(tmp_path)!r} + '/data/' + @dataset_name"


def test_what_is_given_is_handed_on(asked, tmp_path):
    (tmp_path / "configs").mkdir()
    shutil.copy(BUNDLE / "configs" / "dataset_glas.json", tmp_path / "configs" / "dataset_mine.json")
    (tmp_path / "more.json").write_text('{"epochs": 3}')
    settings = {"train#optimizer#weight_decay": 0.1, "lr": 0.5}
    folder = train(
        "mine", preset="paper", output_dir="runs/1", dataset_dir=Path("mine"), config=["more.json"], **settings
    )
    assert folder == tmp_path / "runs" / "1" and asked["output_dir"] == str(folder)
    assert asked["config_file"][-2:] == [str(tmp_path / "configs" / "dataset_mine.json"), str(tmp_path / "more.json")]
    assert asked["dataset_dir"] == str(tmp_path / "mine")
    assert {name: asked[name] for name in settings} == settings


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dataset": "gals"}, "`dataset` must be one of .*, got 'gals'; did you mean 'glas'?"),
        ({"method": "esfna"}, "`method` must be one of .*; did you mean 'esfan'?"),
        ({"preset": "light"}, "`preset` must be one of lite, paper, got 'light'"),
        ({"epoch": 3}, "'epoch' must be a key of the configs, but is not; did you mean 'epochs'?"),
        ({"config": ["none.json"]}, "`config` must name existing files, got none.json"),
    ],
)
def test_mistakes_are_answered_with_what_there_is(asked, arguments, words):
    with pytest.raises(BundleError, match=words):
        train(**{"dataset": "glas", **arguments})
    assert asked == {}


def test_errors_of_the_run_come_out_alone_and_leave_python_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sys.excepthook
    (tmp_path / "data" / "glas").mkdir(parents=True)
    with pytest.raises(BundleError, match="^.*glas.*must be a folder of images, but it does not exist"):
        train("glas", device="cpu")
    with pytest.raises(BundleError, match="`seed` must be a whole number, got 'one'"):
        train("glas", device="cpu", seed="one")
    assert sys.excepthook is before


def test_the_example_in_the_docstring_is_true():
    result = doctest.testmod(scripts.runs.train, optionflags=doctest.ELLIPSIS)
    assert result.attempted == 1 and result.failed == 0


@pytest.mark.e2e
def test_a_training_from_any_folder_is_one_that_load_opens(demo_dir, tmp_path, monkeypatch):
    from scripts.inference.segmenter import load

    monkeypatch.chdir(tmp_path)
    settings = {"dataset_dir": demo_dir, "device": "cpu", **TINY}
    folder = train("demo", **settings)
    assert folder == tmp_path / "output" / "demo_esfan_lite"
    assert list(tmp_path.iterdir()) == [tmp_path / "output"]
    record = read_record(folder)
    assert train("demo", **settings) == folder and read_record(folder) == record  # complete: nothing is done again
    assert len(list(load(folder, "cpu").predict(demo_dir / "val" / "img"))) == 3
