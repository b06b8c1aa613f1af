"""Options, folders, locks, encodings, checkpoints and batch jobs, as people meet them."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import BUNDLE, LITE, TINY
from PIL import Image
from typer.testing import CliRunner

from scripts.commands.app import app
from scripts.errors import BundleError, command_here
from scripts.files.foreign_files import read_json
from scripts.files.job_lock import only_job
from scripts.inference.segmenter import load
from scripts.runs.old_names import read_configs
from scripts.runs.options import require_known_options
from scripts.runs.plain_errors import plain_cause
from scripts.runs.train import train


def said(words):
    """What our command line says to words that it refuses, on one line."""
    result = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
    assert result.exit_code != 0
    return " ".join((str(plain_cause(result.exception) or "") + result.output).replace("│", " ").split())


def refused(run_bundle, run_id, *arguments, **settings):
    """The sentence with which a MONAI run ends."""
    with pytest.raises(Exception) as error:  # MONAI wraps the error
        run_bundle(run_id, *arguments, **settings)
    return str(plain_cause(error.value))


def overlay(folder, content):
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# --- options


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("train#epoch", 7, "did you mean {}train#epochs"),
        ("classification#optimiser#lr", 0.1, "did you mean {}classification#optimizer"),
        ("train#epochs", 1.5, "`train#epochs` must be a whole number, got 1.5"),
    ],
)
def test_mistyped_keys_and_numbers_are_refused_wherever_they_are_given(
    key, value, sentence, run_bundle, tmp_path, monkeypatch
):
    """Line 6."""
    if "#epochs" not in key:
        assert sentence.format("--") in said(["train", "--dataset", "demo", f"--{key}", str(value), "--dry-run"])
    monkeypatch.setattr(sys, "argv", ["monai/bundle/__main__.py", "run", "training", f"--{key}", str(value)])
    if "optimiser#" not in key:  # MONAI itself refuses a key in a section that does not exist
        assert sentence.format("--") in refused(run_bundle, "training", tmp_path, **{key: value})
    with pytest.raises(BundleError) as error:
        train("demo", output_dir=tmp_path / "run", device="cpu", **{key: value})
    assert sentence.format("'").rstrip("s") in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path):
    """Line 6: ``1e-4`` has no point, so YAML takes it for text."""
    path = tmp_path / "mine.yaml"
    path.write_text("lr: 1e-4\nepochs: 2\n", encoding="utf-8")
    config = read_configs([BUNDLE / "configs" / "train.json", path]).get()
    from scripts.runs.settings import texts_as_numbers

    assert config["lr"] == "1e-4" and texts_as_numbers(config) == {"lr": 1e-4}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"train": {"epoch": 3}}, "replaces the whole section; set single values .* such as 'train#epochs'"),
        ({"train": [1, 2]}, r"`train` must be a section with keys of its own, got \[1, 2\]"),
        ({"class_names": "tumor,stroma"}, "`class_names` must be a list, got 'tumor,stroma'"),
        ({"trian#epochs": 3}, "mine.json must be in sections that exist, got 'trian'; did you mean 'train'"),
        (
            {"train#loss_schedule": {"start": {"alhpa": 1}}},
            "#alhpa must be .* did you mean train#loss_schedule#start#alpha",
        ),
        ({"dataset_name": 20240616}, "`dataset_name` must be text, got 20240616; put it in quotes"),
        (
            {"train#optimizer": {"_target_": "torch.optim.AdamW", "params": "@train#parameters", "momentum": 1}},
            "`train#optimizer` must have only parameters of torch.optim.AdamW, got 'momentum'",
        ),
        (
            {"segmenter_loss": {"_target_": "scripts.losses.AdaptiveNoiseAwareLos"}},
            "`segmenter_loss#_target_` must name .* did you mean 'scripts.losses.AdaptiveNoiseAwareLoss'",
        ),
    ],
)
def test_mistakes_in_an_overlay_are_named(content, sentence, tmp_path):
    """Line 6, in overlays."""
    with pytest.raises(BundleError, match=sentence):
        require_known_options(read_configs([*(BUNDLE / name for name in LITE), overlay(tmp_path, content)]).get())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [('{"epochs": 3,\n "lr": }', "mine.json must be JSON .* line 2 column 8"), ("[1]", "mine.json must be an object")],
)
def test_an_overlay_that_is_no_json_is_named_with_line_and_column(content, sentence, tmp_path):
    """Line 6."""
    path = str(overlay(tmp_path, content))
    with pytest.raises(BundleError, match=sentence):
        CliRunner().invoke(app, ["train", "--dataset", "demo", "--config", path, "--dry-run"], catch_exceptions=False)
    with pytest.raises(BundleError, match=sentence):
        train("demo", config=path)


def test_a_mistake_in_the_second_training_is_found_before_the_first(run_bundle, tmp_path):
    """Line 6: otherwise it is found an hour later."""
    loss = {"segmenter_loss": {"_target_": "torch.nn.CrossEntropyLoss"}}
    sentence = refused(run_bundle, "training", tmp_path / "run", **TINY, **loss)
    assert "attributes of CrossEntropyLoss" in sentence and "['alpha', 'beta', 'gamma', 'tau'] do not exist" in sentence
    missing = {"encoder_weights": str(tmp_path / "none.pt")}
    sentence = refused(run_bundle, "training", tmp_path / "run", **TINY, **missing)
    assert "none.pt must hold the pretrained weights" in sentence and "lite.json" in sentence
    assert not (tmp_path / "run").exists()


def test_settings_of_stages_to_come_may_change_but_not_those_of_finished_ones(finished_run, run_bundle, tmp_path):
    """Line 6."""
    run = tmp_path / "run"
    for part in ("configs", "models/classifier", "checkpoints"):
        shutil.copytree(finished_run / part, run / part)
    (run / "checkpoints" / "segmenter.pt").unlink()
    record = read_json(finished_run / "run.json")
    record["stages"] = {"train_classifier": record["stages"]["train_classifier"]}
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    sentence = refused(run_bundle, "training", run, **TINY | {"classifier_epochs": 3})
    assert "settings of train_classifier" in sentence and "classifier_epochs: was 2, now 3" in sentence
    classifier = (run / "models" / "classifier" / "model.pt").stat().st_mtime_ns
    run_bundle("training", run, **TINY | {"epochs": 1})
    assert (run / "models" / "classifier" / "model.pt").stat().st_mtime_ns == classifier
    assert read_json(run / "configs" / "train.json")["epochs"] == 1 and (run / "models" / "model.pt").is_file()
    log = (run / "run.log").read_text(encoding="utf-8")
    assert "  segmentation network on val: mean IoU 0." in log and log.rstrip().endswith(f"segment IMAGES --run {run}")


@pytest.mark.parametrize("name", ["2024_06_16", "1e3", "1_1", "007", "true", "null", "1.0"])
def test_names_that_look_like_numbers_are_text(name, tmp_path, monkeypatch):
    """Line 8: from our command line to MONAI's, and through a description of a data set."""
    from fire.parser import DefaultParseValue

    monkeypatch.chdir(tmp_path)
    (tmp_path / name / "train" / "img").mkdir(parents=True)
    described = tmp_path / "configs" / f"dataset_{name}.json"
    if "." in name:  # which no new data set may have
        described.parent.mkdir()
        described.write_text(json.dumps({"dataset_name": name}), encoding="utf-8")
    else:
        made = ["new-dataset", name, "--dataset-dir", name, "--class-names", "tumor,stroma"]
        CliRunner().invoke(app, made, catch_exceptions=False)
    assert read_json(described)["dataset_name"] == name
    words = ["train", "--dataset", name, "--output-dir", name, "--method_name", name, "--dry-run"]
    line = CliRunner().invoke(app, words, catch_exceptions=False).output.strip()
    code = f"for word in {line.replace('&&', '_')}; do printf '%s\\0' \"$word\"; done"
    parts = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split("\0")
    values = {option: DefaultParseValue(parts[parts.index(option) + 1]) for option in ("--output_dir", "--method_name")}
    assert values == {"--output_dir": str(tmp_path / name), "--method_name": name}


@pytest.mark.parametrize("given", [20240616, 1000.0, True])
def test_a_name_that_became_a_number_is_refused_by_monai_s_command(given, run_bundle, tmp_path, monkeypatch):
    """Line 8."""
    monkeypatch.setattr(sys, "argv", ["monai/bundle/__main__.py", "run", "training", "--dataset_name", str(given)])
    sentence = refused(run_bundle, "training", tmp_path, dataset_name=given)
    assert "--dataset_name must be a string, but MONAI's command line reads it as the value" in sentence


def test_options_of_the_other_kind_are_refused(finished_run, demo_dir, tmp_path):
    """Line 27."""
    words = ["segment", str(demo_dir / "val" / "img"), "--run", str(finished_run), "--dry-run"]
    for option in ("--mpp", "--model-mpp", "--overlap", "--budget-gb"):
        assert f"{option}: is an option of slides, but" in said([*words, option, "0.5"])
    assert "--published-values: is an option of images" in said([*words, "--as", "slides", "--published-values"])


def test_no_threads_and_no_gpu_are_one_sentence(finished_run, monkeypatch):
    """Line 27."""
    with pytest.raises(BundleError, match="`threads` must be at least 1, got 0"):
        load(finished_run, threads=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, sentence in (("cuda", "PyTorch .* sees no GPU besides the CPU: pass --device cpu"), ("gpu", "such as")):
        with pytest.raises(BundleError, match=sentence):
            load(finished_run, device=device)


def test_a_mistyped_option_in_a_notebook_is_refused(finished_run):
    """Line 28."""
    with pytest.raises(BundleError, match="'eval_batchsize' must be a key .* did you mean 'eval_batch_size'?"):
        load(finished_run, eval_batchsize=4)
    with pytest.raises(BundleError, match="'classifier_epoch' must be a key .* did you mean 'classifier_epochs'?"):
        train("demo", classifier_epoch=1)


def test_deploy_looks_for_its_packages_before_it_writes(finished_run, tmp_path, monkeypatch):
    """Line 28."""
    from scripts.sharing import deploy

    monkeypatch.setattr(deploy, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(BundleError, match="but onnxscript cannot be found; install them with `pip install onnxscript`"):
        deploy.deploy(str(finished_run), str(tmp_path / "deployed"))
    assert not (tmp_path / "deployed").exists()


def test_messages_name_a_command_that_works_in_the_current_folder(tmp_path, monkeypatch):
    """Siblings of line 27."""
    monkeypatch.chdir(tmp_path)
    assert command_here("check x") == "weakhisto check x"
    monkeypatch.chdir(BUNDLE)
    assert command_here("check x") == "python -m scripts check x"


def test_the_command_works_from_any_folder(tmp_path):
    """Siblings of line 27: ``python -m scripts`` works only in the bundle's folder."""
    environment = os.environ | {"PYTHONPATH": str(BUNDLE.parent)}
    command = [sys.executable, "-m", "weakhisto", "train", "--help"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and "--classifier-epochs" in result.stdout, result.stderr


def test_a_run_in_the_wrong_folder_says_which_one_is_meant(run_bundle, tmp_path):
    """Siblings of line 27."""
    with pytest.raises(SystemExit, match=f"^Stopped: `bundle_root` must be .*, got {tmp_path}; run the command in"):
        run_bundle("training", tmp_path / "run", bundle_root=str(tmp_path))


def test_an_adaptation_s_own_stages_can_be_done_again(finished_run):
    """Siblings of line 27."""
    words = ["adapt", str(finished_run), "--redo", "copy_pixel_masks", "--dry-run"]
    assert "--redo copy_pixel_masks" in CliRunner().invoke(app, words, catch_exceptions=False).output


# --- folders of images


def segment(run_bundle, run, source, output, **settings):
    """Segment images as ``python -m monai.bundle run`` does in a run's folder."""
    config = str(run / "configs" / "inference.json")
    run_bundle("run", output, config, bundle_root=str(run), dataset_dir=str(source), eval_batch_size=2, **settings)


@pytest.fixture()
def folder(tmp_path, demo_dir):
    """Images in subfolders with one name, bad files of six kinds, and what is no image of ours."""
    root = tmp_path / "images"
    first, second, third = sorted((demo_dir / "val" / "img").iterdir())
    for source, name in ((first, "a.png"), (second, "slide0/0_0.png"), (third, "slide1/0_0.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, root / name)
    with Image.open(first) as image:
        image.convert("RGBA").save(root / "alpha.png")
        image.convert("L").save(root / "grey.png")
        image.save(root / "short.bmp")
        image.save(root / "old_thumb.jpg")
    (root / "short.bmp").write_bytes((root / "short.bmp").read_bytes()[:5000])
    (root / "cut.png").write_bytes(first.read_bytes()[:2000])
    (root / "text.png").write_text("no image")
    (root / "empty.tif").touch()
    for name in (".hidden.png", "._a.png", "Thumbs.db", ".cache/a.png", "@eaDir/a.png"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(first, root / name)
    return root


GOOD = ["a.png", "slide0/0_0.png", "slide1/0_0.png"]
BAD = ["alpha.png", "cut.png", "empty.tif", "grey.png", "short.bmp", "text.png"]


def masks(output):
    return sorted(path.relative_to(output / "masks").as_posix() for path in (output / "masks").rglob("*.png"))


def test_bad_files_among_images_are_named_at_the_end_and_the_others_done(finished_run, run_bundle, folder):
    """Lines 5 and 18; results inside the folder are no images of it."""
    output = folder / "results"
    sentence = refused(lambda *_, **__: segment(run_bundle, finished_run, folder, output), "")
    assert sentence.startswith(f"6 images failed, the masks of the others are in {output}:")
    assert [line.strip().partition(": ")[0] for line in sentence.splitlines()[1:]] == BAD
    assert masks(output) == GOOD
    segmenter = load(finished_run, device="cpu")
    for name in GOOD:
        with Image.open(output / "masks" / name) as mask, Image.open(folder / name) as image:
            expected = segmenter.predict(image.copy()).mask
            assert mask.size == image.size and np.array_equal(np.asarray(mask), expected)
    before = {name: (output / "masks" / name).stat().st_mtime_ns for name in GOOD}
    refused(lambda *_, **__: segment(run_bundle, finished_run, folder, output), "")
    assert {name: (output / "masks" / name).stat().st_mtime_ns for name in GOOD} == before and masks(output) == GOOD


def test_masks_of_the_same_network_settings_and_image_are_kept_and_others_made_again(
    finished_run, run_bundle, demo_dir, tmp_path, capsys
):
    """Line 18: a folder goes on where it stopped."""
    images, output = tmp_path / "images", tmp_path / "out"
    shutil.copytree(demo_dir / "val" / "img", images)
    first, second, third = sorted(path.name for path in images.iterdir())

    def changed(**settings):
        before = {path.name: path.stat().st_mtime_ns for path in (output / "masks").glob("*")}
        segment(run_bundle, finished_run, images, output, **settings)
        after = {path.name: path.stat().st_mtime_ns for path in (output / "masks").glob("*")}
        return sorted(name for name in after if before.get(name) != after[name])

    assert changed() == [first, second, third]
    capsys.readouterr()
    assert changed() == []
    assert f"3 images, 3 of which already have masks in {output}" in capsys.readouterr().out
    (output / "masks" / first).unlink()
    (output / "masks" / second).write_bytes(b"damaged")
    assert changed() == [first, second] and "3 images, 1 of which" in capsys.readouterr().out
    shutil.copy(images / first, images / third)
    assert changed() == [third]
    assert changed(mirror_averaging=False) == [first, second, third]
    assert changed(num_workers=1, mirror_averaging=False) == []


def test_one_file_is_a_folder_s_worth(finished_run, run_bundle, demo_dir, tmp_path):
    """Line 18."""
    image = next((demo_dir / "val" / "img").iterdir())
    segment(run_bundle, finished_run, image, tmp_path)
    assert masks(tmp_path) == [image.name]
    assert "none.png must be an image or a folder of images; it does not exist" in refused(
        lambda *_, **__: segment(run_bundle, finished_run, tmp_path / "none.png", tmp_path), ""
    )


def test_pseudo_masks_of_a_folder_get_past_bad_files_too(finished_run, run_bundle, folder, tmp_path):
    """Line 18."""
    settings = {"pseudo_masks#image_dir": str(folder), "mask_dir": str(tmp_path / "masks")}
    classifier = str(finished_run / "models" / "classifier" / "model.pt")
    sentence = refused(run_bundle, "write_masks", tmp_path, **settings, classifier_path=classifier)
    assert [line.strip().partition(": ")[0] for line in sentence.splitlines()[1:]] == [
        str(name).replace(".tif", ".png").replace(".bmp", ".png") for name in BAD
    ]
    assert masks(tmp_path) == GOOD


# --- jobs


def test_a_second_job_on_one_folder_is_refused_by_each_kind_of_job(finished_run, run_bundle, demo_dir, tmp_path):
    """Line 19."""
    from scripts.data.preparing.prepare import prepare

    with only_job(tmp_path / "out"):
        for sentence in (
            refused(run_bundle, "training", tmp_path / "out", **TINY),
            refused(lambda *_, **__: segment(run_bundle, finished_run, demo_dir / "val" / "img", tmp_path / "out"), ""),
        ):
            assert "`output_dir` must not be in use by another job" in sentence
            assert f"{tmp_path / 'out'} is (this process)" in sentence
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".in_use"]
    with only_job(tmp_path / "new", beside=True), pytest.raises(BundleError, match="`output` must not be in use"):
        prepare(str(demo_dir), str(tmp_path / "new"), "demo", splits=["val", "test"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.e2e
def test_names_outside_the_locale_s_encoding_train_and_report(tmp_path, demo_dir):
    """Line 16: where Python knows only ASCII; MONAI's own command needs ``PYTHONUTF8=1`` there."""
    data = tmp_path / "Größe ü"
    shutil.copytree(demo_dir, data)
    for split in ("train", "val", "test"):
        for path in sorted((data / split).rglob("*.png")):
            path.rename(path.with_name(f"Größe ü {path.name}"))
    names = ["Drüse", "Fettgewebe, weiß", "Entzündung"]
    config = overlay(tmp_path, json.dumps({"class_names": names}, ensure_ascii=False))
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = tmp_path / "Läufe"
    settings = TINY | {"dataset_dir": data, "output_dir": run, "device": "cpu"}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "scripts", "train", "--dataset", "demo", "--config", str(config), *words]
    result = subprocess.run(command, cwd=BUNDLE, env=ascii_only, capture_output=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert b"Logging error" not in result.stderr
    table = (run / "scores" / "segmenter_val_images.csv").read_text(encoding="utf-8-sig")
    assert "Größe ü demo-val" in table and "Drüse" in (run / "report.html").read_text(encoding="utf-8")
    assert "Entzündung" in (run / "run.log").read_text(encoding="utf-8")


def test_tables_for_spreadsheets_say_that_they_are_utf_8(tmp_path):
    """Line 16."""
    from scripts.files.atomic import write_csv

    write_csv(tmp_path / "a.csv", ["Größe"], [[os.fsdecode("ü".encode())]])
    assert (tmp_path / "a.csv").read_bytes() == "\ufeffGröße\r\nü\r\n".encode()


# --- checkpoints


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "network."])
@pytest.mark.parametrize("item", [None, "state_dict", "model"])
def test_checkpoints_of_other_programs_are_read(prefix, item, tmp_path):
    """Line 24."""
    from scripts.weights.state_dicts import load_backbone, load_weights

    torch.manual_seed(0)
    source, target, part = (torch.nn.ModuleDict({"network": torch.nn.Linear(2, 3)}) for _ in range(3))
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    torch.save(state if item is None else {item: state, "epoch": 3}, tmp_path / "model.pt")
    load_weights(target, tmp_path / "model.pt")
    assert torch.equal(target["network"].weight, source["network"].weight)
    load_backbone(part, "network", tmp_path / "model.pt")  # the part's own names lack `network.`
    assert torch.equal(part["network"].bias, source["network"].bias)


def test_foreign_weights_are_one_short_sentence(tmp_path):
    """Line 24."""
    from scripts.weights.state_dicts import load_weights

    network = torch.nn.ModuleList([torch.nn.Linear(2, 3) for _ in range(50)])
    torch.save({f"stem.{name}": tensor for name, tensor in network.state_dict().items()}, tmp_path / "model.pt")
    with pytest.raises(BundleError) as error:
        load_weights(network, tmp_path / "model.pt")
    sentence = str(error.value).removeprefix(str(tmp_path / "model.pt"))
    assert sentence == (
        " must match the network, which has 100 tensors: 100 are missing (0.weight, 0.bias, 1.weight, ...), 100 are "
        "not part of it (stem.0.bias, stem.0.weight, stem.1.bias, ...). Pass the configs it was trained with, or other "
        "weights."
    )
