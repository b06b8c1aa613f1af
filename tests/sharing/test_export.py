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
from conftest import BUNDLE
from monai.bundle import ConfigParser

from scripts.sharing.export import default_config, export, shareable
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


def test_the_bundle_of_a_run_has_what_the_zoo_wants_and_no_overlays(exported_bundle):
    files = contents(exported_bundle)
    assert exported_bundle.name == "esfan_histopathology_segmentation"
    names = {"train", "inference", "evaluate", "multi_gpu_train", "metadata"}
    assert {name for name in files if name.startswith("configs/")} == {
        "configs/logging.conf",
        *(f"configs/{name}.json" for name in names),
    }
    wanted = {"LICENSE", "CITATION.cff", "README.md", "docs/README.md", "docs/data_license.txt", "models/model.pt"}
    wanted |= {"models/classifier/model.pt", "unit_tests/test_esfan_histopathology_segmentation.py"}
    assert wanted <= files.keys() and "large_files.yml" not in files
    assert "scripts/data/preparing/demo.py" in files
    beside = ("report.css", "report.jinja", "chart.jinja")
    assert {f"scripts/evaluation/report/{name}" for name in beside} <= files.keys()
    assert not any(name.startswith(("scripts/slides", "scripts/label_app", "scripts/sharing")) for name in files)


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
    assert {"timm", "segmentation_models_pytorch", "pytorch-ignite", "fire", "jsonschema"} <= pins.keys()
    assert not any("slide" in name for name in pins)
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
    assert "scripts/data/preparing/demo.py" not in contents(exported_file)
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


def test_an_unknown_method_or_preset_is_an_error():
    with pytest.raises(ValueError, match=r"`method` must be one of esfan, ibdr, got 'unet'"):
        default_config("unet", "lite", None)
    with pytest.raises(ValueError, match=r"`preset` must be one of lite, paper, got 'tiny'"):
        default_config("esfan", "tiny", None)


def test_weights_of_other_classes_are_an_error_and_leave_nothing(weights_file, tmp_path):
    with pytest.raises(ValueError, match="must match the network, which has"):
        export("esfan", str(weights_file), str(tmp_path), "lite", str(BUNDLE / "configs" / "dataset_glas.json"))
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_there_is_not_replaced(exported_bundle, finished_run):
    with pytest.raises(FileExistsError, match="must not contain esfan_histopathology_segmentation yet"):
        export("esfan", str(finished_run), str(exported_bundle.parent), "lite")


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
@pytest.mark.parametrize("fixture", ["exported_bundle", "exported_file"])
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
