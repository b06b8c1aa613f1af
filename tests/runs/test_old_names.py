import json
import logging
from pydoc import locate

from conftest import BUNDLE, LITE, TINY

from scripts.runs import old_names
from scripts.runs.old_names import MOVED, current_names, read_configs

TRAIN = BUNDLE / "configs" / "train.json"


def test_what_has_moved_is_where_the_table_says():
    for new in MOVED.values():
        assert locate(f"scripts.{new}") is not None, new


def test_names_are_told_apart_and_said_once(caplog):
    old_names._say.cache_clear()
    config = {
        "a": {"_target_": "scripts.handlers.LossHandler", "b": [{"_target_": "scripts.handlers.ResumeHandler"}]},
        "c": "$scripts.data.patch_size(@d) + scripts.data.RGBReader",
        "e": ["scripts.networks.PadAndCrop", "transcripts.data.patch_size", 1, None],
        "f": {"_target_": "scripts.slides.reading.Slide"},
    }
    expected = {
        "a": {
            "_target_": "scripts.training.handlers.LossHandler",
            "b": [{"_target_": "scripts.training.checkpoints.ResumeHandler"}],
        },
        "c": "$scripts.data.items.patch_size(@d) + scripts.data.images.RGBReader",
        "e": ["scripts.networks.PadAndCrop", "transcripts.data.patch_size", 1, None],
        "f": {"_target_": "scripts.slides.reading.slide.Slide"},
    }
    caplog.set_level(logging.WARNING)
    assert current_names(config) == expected and current_names(expected) == expected
    assert current_names(config) == expected
    assert len(caplog.records) == 1 and "and 3 more" in caplog.text
    assert "scripts.data.RGBReader is now scripts.data.images.RGBReader, scripts.data.patch_s" in caplog.text


def test_names_of_today_of_others_and_of_files_stay():
    config = {
        "a": {"_target_": "mylab.scripts.transforms.Foo"},
        "b": "/data/scripts.data",
        "c": "$x(@d, '/srv/my-scripts.weights/x.pt')",
        "d": "$import scripts.data.transforms",
        "e": "$scripts.slides.reading.slide.Slide",
        "f": "$import scripts.inference.segmenter",
    }
    assert current_names(config) == config


def test_the_bundle_s_own_configs_have_today_s_names():
    for path in (BUNDLE / "configs").glob("*.json"):
        config = json.loads(path.read_text())
        assert current_names(config) == config, path.name
    assert read_configs(TRAIN).get() == json.loads(TRAIN.read_text()) | {"_meta_": {}}


def test_an_overlay_with_old_names_trains(tmp_path, run_bundle, finished_run):
    overlay = {
        "train#prepare_batch": {
            "_target_": "scripts.transforms.PrepareBatch",
            "spatial": [{"_target_": "scripts.transforms.RandomFlip", "horizontal": 0.5, "vertical": 0.0}],
        },
        "load_image": {"_target_": "scripts.data.image_loading"},
    }
    (tmp_path / "old.json").write_text(json.dumps(overlay))
    settings = {**TINY, "classifier_path": str(finished_run / "models" / "classifier" / "model.pt"), "epochs": 1}
    run_bundle("segmentation", tmp_path / "run", [*LITE, str(tmp_path / "old.json")], **settings)
    saved = json.loads((tmp_path / "run" / "configs" / "train.json").read_text())
    assert saved["train"]["prepare_batch"]["_target_"] == "scripts.training.augmentation.PrepareBatch"
    assert (tmp_path / "run" / "models" / "model.pt").exists()
