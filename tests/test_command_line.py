import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from scripts.command_line import keys_of, nearest, unknown_options

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
TRAIN = json.loads((BUNDLE / "configs" / "train.json").read_text())


@pytest.mark.parametrize(
    "arguments",
    [
        ["training", "--config_file", "x.json", "--seed", "1"],
        ["training", "--config-file=x.json", "--train#lr=0.1", "--logging_file", "$None"],
        ["--dataset_dir", "--", "-x", "seed"],
        ["adapt", "--num_images", "5"],  # of another config of the bundle
    ],
)
def test_keys_of_configs_and_parameters_of_the_command_are_known(arguments):
    assert unknown_options(arguments, TRAIN) == []


def test_a_key_of_ones_own_is_known_where_it_is_used():
    assert unknown_options(["--mine", "3"], TRAIN | {"mine": 3}) == ["mine"]
    assert unknown_options(["--mine", "3"], TRAIN | {"mine": 3, "threshold": "$@mine / 10"}) == []


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
    + ["train#averaging#momentum", "train#handlers#0#seed", "classifier_def#backbone#checkpointing", "cam_segmenter#scales"],
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
        ("train.json", "--thresold", "--thresold must be a key of the configs, and is none; did you mean --threshold?"),
        ("train.json", "--epoch=3", "--epoch must be a key of the configs, and is none; did you mean --epochs?"),
        ("train.json", "--train#epoch=3", "did you mean --train#epochs?"),
        ("inference.json", "--datasetdir", "did you mean --dataset_dir?"),
        ("inference_slides.json", "--slide", "did you mean --slides?"),
        ("train.json", "--cudnn_benchmark=false", "got the text 'false'; give --cudnn_benchmark False."),
        ("train.json", "--pseudo_masks#image_dir=null", "the text 'null'; give --pseudo_masks#image_dir \"$None\"."),
        ("inference.json", "--mirror_averaging=Yes", "got the text 'Yes'; give --mirror_averaging True."),
    ],
)
def test_a_mistyped_option_stops_the_command(tmp_path, config, option, sentence):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", f"configs/{config}", option]
    command += ["0.3"] * ("=" not in option) + ["--output_dir", str(tmp_path / "run")]
    result = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True)
    assert result.returncode == 1 and sentence in result.stderr.splitlines()[-1], result.stderr[-2000:]
    assert not (tmp_path / "run").exists()
