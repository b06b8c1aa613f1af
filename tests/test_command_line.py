import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.command_line import unknown_options

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


@pytest.mark.parametrize(
    ("config", "option", "sentence"),
    [
        ("train.json", "--thresold", "--thresold must be a key of the configs, and is none; did you mean --threshold?"),
        ("train.json", "--epochs=3", "--epochs must be a key of the configs, and is none; "),
        ("inference.json", "--datasetdir", "did you mean --dataset_dir?"),
        ("inference_slides.json", "--slide", "did you mean --slides?"),
    ],
)
def test_a_mistyped_option_stops_the_command(tmp_path, config, option, sentence):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", f"configs/{config}", option]
    command += ["0.3"] * ("=" not in option) + ["--output_dir", str(tmp_path / "run")]
    result = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True)
    assert result.returncode == 1 and sentence in result.stderr.splitlines()[-1], result.stderr[-2000:]
    assert not (tmp_path / "run").exists()
