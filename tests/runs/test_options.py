import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from scripts.errors import BundleError
from scripts.runs import settings
from scripts.runs.old_names import read_configs
from scripts.runs.options import options, require_known_keys, require_known_options, stray_words, unknown_options
from scripts.runs.settings import at, keys_of, nearest, texts_as_numbers, usual_values

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
TRAIN = json.loads((BUNDLE / "configs" / "train.json").read_text())


@pytest.mark.parametrize(
    "arguments",
    [
        ["training", "--config_file", "x.json", "--seed", "1"],
        ["training", "--config-file=x.json", "--train#lr=0.1", "--logging_file", "$None"],
        ["--dataset_dir", "--", "-x", "seed"],
    ],
)
def test_keys_of_configs_and_parameters_of_the_command_are_known(arguments):
    assert unknown_options(arguments, TRAIN) == []


def test_a_key_of_ones_own_is_known_where_it_is_used():
    assert unknown_options(["--mine", "3"], TRAIN | {"mine": 3}) == ["mine"]
    assert unknown_options(["--mine", "3"], TRAIN | {"mine": 3, "threshold": "$@mine / 10"}) == []


def test_settings_from_python_are_keys_of_the_config():
    require_known_keys(["seed", "train#lr", "stages#train_segmenter#steps", "mine"], TRAIN | {"mine": 1})
    for name, near in (("sede", "'seed'"), ("train#trainer#max_epoch", "'train#trainer#max_epochs'")):
        with pytest.raises(BundleError, match=f"^'{name}' must be a key .* but is not; did you mean {near}?"):
            require_known_keys(["seed", name], TRAIN)
    with pytest.raises(BundleError, match="'qqqq' must be .*; docs/train.md lists"):
        require_known_keys(["qqqq"], TRAIN)


def with_option(name, value=1):
    parser = ConfigParser(copy.deepcopy(TRAIN))
    parser[name] = value
    return parser.get()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("train#epoch", "train#epochs"),
        ("train#optimizer#momentm", "train#optimizer#momentum"),
        ("train#sampler#sede", "train#sampler#seed"),
        ("train#sampler#drop_lst", "train#sampler#drop_last"),  # an argument that no config sets
        ("classifier_def#backbone#checkpoint", "classifier_def#backbone#checkpointing"),
        ("trian", "train"),
    ],
)
def test_a_mistyped_part_of_a_key_is_answered_with_the_nearest_of_its_section(name, meant):
    config = with_option(name)
    assert unknown_options([f"--{name}", "1"], config) == [name]
    assert nearest(name, config) == meant


@pytest.mark.parametrize(
    "name",
    ["train#epochs", "train#optimizer#nesterov", "train#lr_scheduler#last_epoch", "validate#inferer#overlap"]
    + [
        "train#averaging#momentum",
        "train#handlers#0#seed",
        "classifier_def#backbone#checkpointing",
        "cam_segmenter#scales",
    ],
)
def test_keys_on_any_level_and_arguments_of_components_are_known(name):
    assert unknown_options([f"--{name}", "1"], with_option(name)) == []


def test_keys_of_the_users_own_configs_are_known(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"train#optimizer": {"mine": 1}, "+train#handlers": [{"theirs": 2}]}))
    assert list(keys_of(json.loads(path.read_text())))[:3] == ["train", "train#optimizer", "train#optimizer#mine"]
    config = with_option("train#optimizer#mine")
    for files in (str(path), str(["configs/train.json", str(path)])):
        assert unknown_options(["training", "--config_file", files, "--train#optimizer#mine", "3"], config) == []
        assert unknown_options(["training", f"--config_file={files}", "--train#optimizer#mine=3"], config) == []


@pytest.mark.parametrize(
    ("config", "option", "sentence"),
    [
        ("train.json", "--thresold", "--thresold must be a key of the configs, but is not; did you mean --threshold?"),
        ("train.json", "--epoch=3", "--epoch must be a key of the configs, but is not; did you mean --epochs?"),
        ("train.json", "--train#epoch=3", "did you mean --train#epochs?"),
        ("inference.json", "--datasetdir", "did you mean --dataset_dir?"),
        ("inference_slides.json", "--slide", "did you mean --slides?"),
        (
            "train.json",
            "--num_images=5",
            "--num_images must be a key of the configs; add configs/adapt.json, which defines it",
        ),
        ("inference_slides.json", "--eval_batch_size=no", "got the string 'no'; pass --eval_batch_size False."),
        ("train.json", "--cudnn_benchmark=false", "got the string 'false'; pass --cudnn_benchmark False."),
        ("train.json", "--pseudo_masks#image_dir=null", "the string 'null'; pass --pseudo_masks#image_dir \"$None\"."),
        ("inference.json", "--mirror_averaging=Yes", "got the string 'Yes'; pass --mirror_averaging True."),
        ("train.json", "--dataset_dir=2024_06_16", "--dataset_dir must be a string, but MONAI's command line reads it"),
        ("train.json", "--dataset_name=1e3", "as the value 1000.0; quote it twice, --dataset_name '\"…\"'"),
        ("inference.json", "--segmenter_path=12", "--segmenter_path must be a string"),
    ],
)
def test_a_mistyped_option_is_refused(monkeypatch, config, option, sentence):
    name, _, text = option.removeprefix("--").partition("=")
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / config))
    parser[name] = DefaultParseValue(text or "0.3")
    monkeypatch.setattr(sys, "argv", ["monai/bundle/__main__.py", "run", "--config_file", f"configs/{config}", option])
    with pytest.raises(BundleError, match=re.escape(sentence)):
        require_known_options(parser.get())


@pytest.mark.parametrize(
    "words", ["training --epochs 2 stray", "training -foo 3", "training --x 1 2", "training --", "-lr 1"]
)
def test_words_that_are_no_options_are_refused(monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["monai/bundle/__main__.py", "run", *words.split()])
    with pytest.raises(BundleError, match="the command line must consist of a run ID and of --key value, but has '"):
        require_known_options(copy.deepcopy(TRAIN))


def test_words_of_a_usual_command_are_not_refused():
    assert stray_words(["--config_file", "['a b.json']", "--seed=3", "--lr", "-1", "--redo", "--x", "$None"]) == []
    assert options(["--train::lr", "1", "--train#optimizer-x=3"]) == ["train#lr", "train#optimizer_x"]


def test_a_mistyped_option_stops_the_command(tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/train.json", "--epoch", "3"]
    result = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "run")], cwd=BUNDLE, capture_output=True, text=True
    )
    assert result.returncode == 1 and result.stderr.splitlines()[-1].endswith("did you mean --epochs?")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epochs": 1.5}, "`epochs` must be a whole number, got 1.5; configs/train.json has 20."),
        ({"train": {"epochs": 1.5}}, "`train#epochs` must be a whole number, got 1.5"),  # @epochs there
        ({"seed": True}, "`seed` must be a whole number, got True"),
        ({"amp": "flase"}, "`amp` must be True or False, got 'flase'"),
        ({"lr": "fast"}, "`lr` must be a number, got 'fast'"),
        ({"epoch": 3}, "epoch must be a key of the configs, but is not; did you mean epochs?"),
        ({"classification": {"epoch": 3}}, "classification#epoch must be .* did you mean classification#epochs?"),
        ({"train#optimizer": {"weigth_decay": 0.1}}, "train#optimizer#weigth_decay must .* train#optimizer#weight_d"),
        ({"classifier_def#fusion": {"reducton": 4}}, "classifier_def#fusion#reducton must be a key of the configs"),
        ({"num_images": 5}, "num_images must be read by the configs; add configs/adapt.json, which reads it."),
        ({"slides": "/tmp/x"}, "slides must be read by the configs; add configs/inference_slides.json"),
        ({"epochs": 0}, "`epochs` must be at least 1, got 0; see configs/train.json."),
        ({"classifier_lr": -0.1}, "`classifier_lr` must be at least 0, got -0.1"),
        ({"train#accumulation_steps": 0}, "`train#accumulation_steps` must be at least 1, got 0"),
    ],
)
def test_settings_are_checked_from_python_too(settings, sentence):
    parser = ConfigParser(copy.deepcopy(TRAIN))
    for section, values in settings.items():
        for key, value in values.items() if isinstance(values, dict) else [(None, values)]:
            parser[section if key is None else f"{section}#{key}"] = value
    with pytest.raises(BundleError, match=sentence):
        require_known_options(parser.get())


def test_a_section_that_lost_its_parts_is_refused():
    with pytest.raises(BundleError, match="classifier_def must have a `_target_`, got .* as classifier_def#fusion."):
        require_known_options(TRAIN | {"classifier_def": {"fusion": {"reduction": 4}}})


def test_flat_keys_of_overlays_count_as_nested_ones():
    overlay = {"cam_segmenter#flips": True, "a": {"b#c": [{"d": 1}]}}
    assert at(overlay, "cam_segmenter#flips") is True and at(overlay, "a#b#c#0#d") == 1 and at(overlay, "a#c") is None
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / name) for name in ("train.json", "lite.json")])
    usual = usual_values(parser.get())
    assert type(usual["cam_segmenter#flips"]) is bool and type(usual["segmenter_def#divisor"]) is int
    parser["cam_segmenter#flips"] = "Flase"
    with pytest.raises(BundleError, match="`cam_segmenter#flips` must be True or False, got 'Flase'; configs"):
        require_known_options(parser.get())


def test_a_number_that_yaml_takes_as_text_is_read(tmp_path):
    (tmp_path / "mine.yaml").write_text("lr: 1e-4\nclassification#lr: 2e-3\nclass_names: [1e-4, b]\n")
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / "train.json"), str(tmp_path / "mine.yaml")])
    assert parser["lr"] == "1e-4"
    assert texts_as_numbers(parser.get()) == {"lr": 0.0001, "classification#lr": 0.002}
    assert texts_as_numbers(TRAIN) == {}


@pytest.mark.parametrize(
    ("option", "overlay", "sentence"),
    [
        (
            "level_weights",
            "lite.json",
            r"cam_segmenter#level_weights, which .*, to \[0.1, 0.8, 0.1\]; pass --cam_segmenter#lev",
        ),
        ("epochs", {"train#epochs": 3}, "train#epochs, which usually follows it, to 3; pass --train#epochs instead."),
    ],
)
def test_an_option_that_an_overlay_has_fixed_is_refused(monkeypatch, option, overlay, sentence):
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.json"))
    overlay = json.loads((BUNDLE / "configs" / overlay).read_text()) if isinstance(overlay, str) else overlay
    parser.update(overlay)
    monkeypatch.setattr(sys, "argv", ["monai/bundle/__main__.py", "run", f"--{option}", "1"])
    with pytest.raises(BundleError, match=f"--{option} must be read by the configs.*{sentence}"):
        require_known_options(parser.get())


@pytest.mark.parametrize(
    "files",
    [
        ["train.json", "lite.json", "adapt.json"],
        ["train.json", "lite.json", "adapt.json", "annotations.json"],
        ["train.json", "lite.json", "adapt.json", "annotations.json", "annotations_image_level.json"],
        ["train.json", "method_ibdr.json", "second_round.json"],
        ["train.json", "dataset_luad.json", "evaluate.json"],
        ["inference.json", "method_ibdr.json", "dataset_glas.json", "inference_slides.json"],
    ],
)
def test_the_bundle_s_own_configs_pass(files):
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / file) for file in files])
    require_known_options(parser.get())


@pytest.fixture
def configs_with(tmp_path, monkeypatch):
    """A copy of the bundle's configs with a user's overlay of a data set among them, as ``new-dataset`` writes it."""

    def copy(text):
        shutil.copytree(BUNDLE / "configs", tmp_path / "configs")
        (tmp_path / "configs" / "dataset_mine.json").write_text(text, encoding="utf-8")
        monkeypatch.setattr(settings, "TRAIN", tmp_path / "configs" / "train.json")
        settings.own_configs.cache_clear()
        parser = ConfigParser()
        parser.read_config([str(tmp_path / "configs" / name) for name in ("train.json", "lite.json")])
        return parser.get()

    yield copy
    settings.own_configs.cache_clear()


@pytest.mark.parametrize("text", ['{"model_mpp": "0.5", "threshold": "0.5", "seed": true}', "{,}", "", "[1]"])
def test_an_overlay_of_another_data_set_changes_nothing(configs_with, text):
    require_known_options(configs_with(text))


def test_a_mistyped_key_in_an_overlay_among_the_configs_is_refused(configs_with):
    config = configs_with('{"class_namez": ["a"], "model_mpp": 0.5}')
    with pytest.raises(ValueError, match="class_namez must be a key of the configs, but is not; did you mean class_na"):
        require_known_options(config | {"class_namez": ["a"]})


@pytest.mark.parametrize("value", [0, -1, -0.5])
def test_a_pixel_size_is_positive(configs_with, value):
    config = configs_with("{}") | {"model_mpp": value}
    with pytest.raises(
        ValueError, match=f"`model_mpp` must be a positive number of micrometres per pixel, got {value}"
    ):
        require_known_options(config)


def test_an_overlay_with_a_byte_order_mark_is_one_sentence(tmp_path):
    (tmp_path / "a.json").write_text('{"seed": 1}', encoding="utf-8-sig")
    with pytest.raises(ValueError, match="a.json must be UTF-8 without a byte order mark"):
        read_configs(tmp_path / "a.json")
