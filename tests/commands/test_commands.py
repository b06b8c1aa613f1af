"""The command line: what it says, what it refuses, and what it hands to MONAI."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest
from conftest import BUNDLE, TINY
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from typer.main import get_command
from typer.testing import CliRunner

from scripts.commands.app import app
from scripts.commands.monai_run import MonaiRun, as_monai_reads
from scripts.errors import BundleError

COMMANDS = (
    "train adapt experiment segment evaluate report label new-dataset prepare check demo export deploy push weights"
).split()


def run(words, cwd=BUNDLE, **environment):
    """The result of ``python -m scripts`` with these words."""
    environment = {**os.environ, "PYTHONPATH": str(BUNDLE), "COLUMNS": "200", **environment}
    command = [sys.executable, "-m", "scripts", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def words_of(line):
    """The words of a line as bash reads them."""
    code = f"for word in {line.replace('&&', '_')}; do printf '%s\\0' \"$word\"; done"
    return subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]


def shown(words, monkeypatch, folder=BUNDLE):
    """The command that is shown for these words, its folder and its options by name."""
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, [*words, "--dry-run"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    parts = words_of(result.output.strip())
    root = parts[1] if parts[0] == "cd" else str(folder)
    parts = parts[parts.index("run") + 1 :]
    run_id = "run" if parts[0].startswith("--") else parts.pop(0)
    return root, run_id, dict(zip(parts[::2], parts[1::2], strict=True))


def test_help_comes_at_once_and_without_torch():
    code = "import sys; sys.argv = ['scripts', '--help']; from scripts.commands.app import app;"
    code += "app(standalone_mode=False); print('torch' in sys.modules)"
    since = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], cwd=BUNDLE, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.splitlines()[-1] == "False", result.stderr
    assert all(name in result.stdout for name in COMMANDS)
    assert time.monotonic() - since < 3  # 0.3 s where nothing else runs


def test_every_option_says_what_it_is():
    group = get_command(app)
    assert sorted(group.commands) == sorted(COMMANDS)
    commands = {**group.commands, **group.commands["weights"].commands}
    for name, command in commands.items():
        assert command.help or name == "weights", name
        for option in command.params:
            assert option.help or option.name in ("seed", "port", "help"), (name, option.name)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("segmnt x", "Did you mean 'segment'?"),
        ("check x --datset demo", "--dataset"),
        ("train --dataset demo --epoch 3", "did you mean --epochs?"),
        ("train --dataset demo --train#epoch 3", "did you mean --train#epochs?"),
        ("train --dataset demo --epochs 1.5", "'--epochs': Input should be a valid integer"),
        ("train --dataset demo --preset small", "'small' is not one of 'lite', 'paper'"),
        ("train", "--dataset: pass the name of a data set"),
        ("train --dataset demo stray", "'stray' belongs to no option; remove it"),
        ("train --dataset demo --threshold 0.4 0.5", "'0.5' belongs to no option"),
        ("train --dataset demo -foo 3", "'-foo' belongs to no option"),
        ("train --dataset demo --train::nosuch 3", "no such option or config key"),
        ("train --dataset demo --config_file configs/train.json", "MONAI's own, set by this command; pass overlays by"),
        ("train --dataset demo --metod ibdr", "did you mean --method?"),
        ("train --dataset demo --dry-rnu", "did you mean --dry-run?"),
        ("new-dataset x --dataset-dir . --class-names a,b --colors red", "must be a list of RGB colours"),
        ("prepare --slides a.csv --output x --dataset demo --stride 9", "it has no effect on --slides; leave it out"),
        ("prepare --source . --output x --dataset demo --val-share 0.2", "it has no effect on images; leave it out"),
        ("export", "pass the folder of a run, or --weights"),
        ("experiment plan.json --output-dir x --seeds a,b", "pass whole numbers, separated by commas"),
        ("experiment plan.json --output-dir x --settings epochs=3", "must be a dictionary in Python's notation"),
        ("experiment plan.json --output-dir x --settings [3]", "must be a dictionary in Python's notation"),
    ],
)
def test_a_mistyped_command_ends_with_status_2_and_does_nothing(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, shlex.split(words))
    assert result.exit_code == 2 and sentence in re.sub(r"[│\n]+ *", " ", result.output), result.output
    assert list(tmp_path.iterdir()) == []


def test_an_error_ends_in_a_sentence_with_status_1(tmp_path):
    result = run(["train", "--dataset", "demoo"], cwd=tmp_path)
    assert result.returncode == 1 and result.stderr.splitlines()[-1].endswith("got 'demoo'; did you mean 'demo'?")
    assert "Traceback" not in result.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["2024_06_16", "1e3", "None", "a,b", "[1]", "true", "x y", "demo", "a'b", '"q"', "0x1", "-"]
)
def test_names_stay_text(text):
    assert DefaultParseValue(as_monai_reads(text)) == text


def test_numbers_and_truth_values_stay_what_they_are():
    for value in (1, 0.5, True, False, 1e-4):
        assert DefaultParseValue(as_monai_reads(value)) == value


def test_train_shows_the_command_of_monai(monkeypatch):
    root, run_id, options = shown(
        "train --dataset demo --method ibdr --epochs 5 --batch_size 4 --threshold 0.4".split(), monkeypatch
    )
    files = "['configs/train.json','configs/method_ibdr.json','configs/lite.json','configs/dataset_demo.json']"
    assert (root, run_id) == (str(BUNDLE), "training")
    expected = {"--config_file": files, "--epochs": "5", "--batch_size": "4", "--threshold": "0.4"}
    assert options == expected


def test_results_of_another_folder_go_there(monkeypatch, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "dataset_mine.json").write_text((BUNDLE / "configs" / "dataset_glas.json").read_text())
    words = "train --dataset mine --stage train_classifier --label-file labels.csv".split()
    root, run_id, options = shown(words, monkeypatch, tmp_path)
    assert (root, run_id) == (str(BUNDLE), "train_classifier")
    assert f"{tmp_path}/configs/dataset_mine.json" in options["--config_file"]
    assert options["--label_file"] == f"{tmp_path}/labels.csv"
    assert options["--dataset_dir"] == f"$'{tmp_path}' + '/data/' + @dataset_name"
    assert options["--output_dir"].startswith(f"$'{tmp_path}' + '/output/'")


def test_a_shown_command_is_read_back_by_a_shell(capsys, monkeypatch):
    odd = {"a": "$'x' + `y`", "b": "it's", "c": 'say "hi"', "d": "a\\b", "e": "wow!'"}
    monai = MonaiRun(BUNDLE, "run", [BUNDLE / "configs" / "train.json"], odd)
    monkeypatch.chdir(BUNDLE)
    monai.show()
    assert words_of(capsys.readouterr().out.strip())[1:] == monai.command[1:]
    assert monai.command[5:] == ["configs/train.json"] + [
        w for k, v in odd.items() for w in (f"--{k}", as_monai_reads(v))
    ]


def test_what_goes_on_from_a_run_takes_its_names(finished_run, monkeypatch, tmp_path):
    root, run_id, options = shown(
        ["adapt", str(finished_run), "--dataset", "demo_lab_b", "--num-images", "4"], monkeypatch
    )
    files = "train.json method_esfan.json lite.json dataset_demo_lab_b.json adapt.json".split()
    assert run_id == "adapt" and ast.literal_eval(options["--config_file"]) == [f"configs/{name}" for name in files]
    assert options["--source_dir"] == str(finished_run) and options["--num_images"] == "4"
    _, run_id, options = shown(["train", "--second-round-of", str(finished_run)], monkeypatch)
    assert run_id == "segmentation" and "dataset_demo.json','configs/second_round.json" in options["--config_file"]
    result = run(
        ["adapt", str(finished_run), "--dataset", "glas", "--config", str(BUNDLE / "configs" / "method_ibdr.json")]
    )
    assert result.returncode == 1 and "the configs must build the networks of" in result.stderr


def test_evaluate_and_segment_work_in_the_run_s_folder(finished_run, monkeypatch, tmp_path):
    root, run_id, options = shown(["evaluate", str(finished_run), "--stage", "classifier"], monkeypatch, tmp_path)
    assert (root, run_id) == (str(finished_run), "score_classifier")
    assert options == {"--config_file": "['configs/train.json','configs/evaluate.json']"}
    (tmp_path / "images").mkdir()
    words = ["segment", "images", "--run", str(finished_run), "--precision", "float32"]
    root, run_id, options = shown(words, monkeypatch, tmp_path)
    expected = {"--config_file": "configs/inference.json", "--dataset_dir": f"{tmp_path}/images"}
    assert (root, run_id) == (str(finished_run), "run")
    assert options == expected | {"--output_dir": f"{tmp_path}/results", "--precision": "float32"}
    (tmp_path / "images" / "a.svs").touch()
    _, _, options = shown([*words, "--mpp", "0.5"], monkeypatch, tmp_path)
    assert options["--config_file"] == "configs/inference_slides.json" and options["--mpp"] == "0.5"
    assert options["--slides"] == f"{tmp_path}/images"


def test_segment_takes_slides_by_pattern_list_and_table(finished_run, monkeypatch, tmp_path):
    for name in ("a.svs", "b.svs", "slides.csv"):
        (tmp_path / name).touch()
    place = str(tmp_path)
    for words, slides in (
        (["*.svs"], f"{place}/*.svs"),
        (["a.svs", "b.svs"], f"['{place}/a.svs', '{place}/b.svs']"),
        (["a.svs,b.svs"], f"['{place}/a.svs', '{place}/b.svs']"),
        (["slides.csv"], f"{place}/slides.csv"),
        (["--slides", "slides.csv"], f"{place}/slides.csv"),
        (["--slides", "*.svs"], f"{place}/*.svs"),
    ):
        _, _, options = shown(["segment", *words, "--run", str(finished_run)], monkeypatch, tmp_path)
        assert options["--slides"] == slides and options["--config_file"] == "configs/inference_slides.json"
    words = "--mpp 0.5 --overrule-mpp --tissue-saturation 0.03 --backends tifffile,openslide --threads 2".split()
    _, _, options = shown(["segment", "a.svs", *words, "--run", str(finished_run)], monkeypatch, tmp_path)
    assert (options["--mpp"], options["--overrule_mpp"], options["--tissue_saturation"]) == ("0.5", "True", "0.03")
    assert (options["--backends"], options["--threads"]) == ("['tifffile', 'openslide']", "2")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("a.svs --slides b.svs", "pass images or slides as INPUT, or slides by --slides"),
        ("", "pass images or slides as INPUT, or slides by --slides"),
        ("a.png b.png", "pass one image, or the folder of several"),
        ("a.svs --overrule-mpp", "--overrule-mpp: it needs the right size; add --mpp"),
        ("a.svs --threads 0", "Input should be greater than or equal to 1"),
        ("a.svs --tissue-saturation 5", "Input should be less than or equal to 1"),
    ],
)
def test_segment_refuses_what_cannot_be_meant(words, sentence, finished_run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("a.svs", "a.png", "b.png"):
        (tmp_path / name).touch()
    result = CliRunner().invoke(app, ["segment", *shlex.split(words), "--run", str(finished_run)])
    assert result.exit_code == 2 and re.search(sentence, re.sub(r"[│\n]+ *", " ", result.output)), result.output


def test_segment_refuses_unknown_readers(finished_run, tmp_path):
    (tmp_path / "a.svs").touch()
    result = run(["segment", "a.svs", "--run", str(finished_run), "--backends", "nonsense"], cwd=tmp_path)
    assert result.returncode == 1 and result.stderr.splitlines()[-1].startswith("Stopped: `backends` must be some of")


@pytest.mark.e2e
def test_a_training_by_name_in_a_folder_whose_name_looks_like_a_number(demo_dir, tmp_path):
    settings = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]
    words = [
        "train",
        "--dataset",
        "demo",
        "--dataset-dir",
        str(demo_dir),
        "--output-dir",
        "2024_06_16",
        "--device",
        "cpu",
    ]
    result = run([*words, *settings, "--stage", "train_classifier"], cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    record = json.loads((tmp_path / "2024_06_16" / "run.json").read_text())
    assert list(record["stages"]) == ["train_classifier"]
    assert result.stdout.startswith(f"cd {BUNDLE} && python -m monai.bundle run train_classifier --config_file ")


@pytest.mark.e2e
@pytest.mark.parametrize("source", ["folder", "file"])
def test_images_are_segmented_from_anywhere(finished_run, demo_dir, tmp_path, source):
    images = sorted((demo_dir / "val" / "img").iterdir())
    given = images[0].parent if source == "folder" else images[0]
    result = run(["segment", str(given), "--run", str(finished_run), "--device", "cpu"], cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    made = sorted(path.name for path in (tmp_path / "results" / "masks").iterdir())
    assert made == [path.name for path in (images if source == "folder" else images[:1])]


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("--pixel_masks False --freeze_encoder True", "--pixel_masks False --freeze_encoder True"),
        ("--pixel-masks=True --freeze-encoder False", "--pixel_masks True"),
        ("--image-labels", "--pixel_masks False"),
    ],
)
def test_flags_may_be_spelled_as_monai_s(finished_run, words, flags):
    command = f"adapt {finished_run} --dataset demo_lab_b --seed 2 --dry-run {words}"
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 0 and f"--source_dir {finished_run} {flags} --output_dir" in result.output, result.output
    assert result.output.count("--freeze_encoder") == flags.count("--freeze_encoder")


def test_settings_that_are_not_given_are_left_to_the_configs_and_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        app, shlex.split("train --dataset demo --mask_dir masks --classifier_path=x.pt --dry-run")
    )
    assert "--seed" not in result.output
    assert f"--mask_dir {tmp_path}/masks --classifier_path={tmp_path}/x.pt" in result.output


def test_options_of_monai_and_values_that_are_no_paths_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split("--tracking mlflow --backbone_weights None --mask_dir '$@output_dir'")
    result = CliRunner().invoke(app, [*"train --dataset demo --dry-run".split(), *words])
    shown = shlex.split(result.output.replace("\\$", "$"))
    assert result.exit_code == 0 and shown[-len(words) :] == words, result.output


def test_a_working_directory_may_have_any_name(tmp_path, monkeypatch):
    folder = tmp_path / "x@seed"
    folder.mkdir()
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, ["train", "--dataset", "luad", "--dry-run"])
    words = shlex.split(result.output)
    value = words[words.index("--dataset_dir") + 1].removeprefix("\\")
    parser = ConfigParser({"dataset_name": "luad", "seed": 3, "dataset_dir": value})
    assert parser.get_parsed_content("dataset_dir") == f"{folder}/data/luad"


def test_a_run_from_before_a_parameter_of_its_networks_goes_on(finished_run, tmp_path):
    """`num_levels` has the value then that it has now; another one builds another network."""
    shutil.copytree(finished_run / "configs", tmp_path / "run" / "configs")
    path = tmp_path / "run" / "configs" / "train.json"
    saved = json.loads(path.read_text())
    del saved["classifier_def"]["backbone"]["num_levels"]
    path.write_text(json.dumps(saved))
    words = ["adapt", str(tmp_path / "run"), "--dataset", "demo_lab_b", "--num-images", "4", "--dry-run"]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    (tmp_path / "four.json").write_text('{"num_levels": 4}')
    with pytest.raises(BundleError, match=r"\['classifier_def#backbone#num_levels'\] differ"):
        CliRunner().invoke(app, [*words, "--config", str(tmp_path / "four.json")], catch_exceptions=False)


def test_a_second_round_tells_which_settings_of_the_run_do_not_carry_over(finished_run, tmp_path):
    shutil.copytree(finished_run / "configs", tmp_path / "run" / "configs")
    path = tmp_path / "run" / "configs" / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threshold": 0.45}))
    command = f"train --second-round-of {tmp_path / 'run'} --dry-run"
    assert "to keep them, pass --threshold 0.45" in CliRunner().invoke(app, shlex.split(command)).output
    assert "pass --threshold" not in CliRunner().invoke(app, shlex.split(f"{command} --threshold 0.4")).output
