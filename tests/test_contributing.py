"""The steps of CONTRIBUTING.md, run as they stand, in a copy of the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from conftest import BUNDLE

from scripts.networks import TimmBackbone
from scripts.weights.state_dicts import load_backbone

ROOT = BUNDLE.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
STEPS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
BLOCK = re.compile(r"(?:`([^`\n]+)`:\n\n)?^( *)```(\w+)\n(.*?)^\2```$", flags=re.DOTALL | re.MULTILINE)


def blocks(section):
    """Each block of a section: the file that the words before it name, or ``None``, its language and its text."""
    (text,) = [part for part in STEPS if part.startswith(section)]
    return [(name or None, language, textwrap.dedent(body)) for name, _, language, body in BLOCK.findall(text)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The folder ``bundle`` of a copy of the repository, in which the sections are followed one after the other."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    leave = shutil.ignore_patterns("__pycache__", "stored_runs", "bin", "lib", "logs", "model")
    for name in ("bundle/configs", "bundle/docs", "bundle/scripts", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=leave)
    return root / "bundle"


def follow(section, bundle):
    """Write the files of a section and run its commands; give what they print."""
    said = ""
    for name, language, text in blocks(section):
        if language == "bash":
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
            environment = {**os.environ, "PATH": path, "PYTEST_ADDOPTS": "-p no:cacheprovider"}
            result = subprocess.run(
                ["bash", "-euc", text],
                cwd=bundle,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert result.returncode == 0, result.stdout
            said += result.stdout
        else:
            assert name, f"{section}: no file is named before\n{text}"
            (bundle / name).parent.mkdir(parents=True, exist_ok=True)
            (bundle / name).write_text(text, encoding="utf-8")
    return said


def stages(folder):
    return json.loads((folder / "run.json").read_text())["stages"]


@pytest.mark.e2e
def test_the_steps_of_a_data_set_a_method_and_a_backbone_run_as_they_stand(bundle):
    said = follow("A data set", bundle)
    assert "32 train, 4 val, 4 test patches of 64 px" in said and re.search(r"\d passed", said)
    trained = stages(bundle / "output" / "toy_esfan_lite")
    assert list(trained) == ["train_classifier", "generate_pseudo_masks", "train_segmenter"]
    classes = trained["train_segmenter"]["scores"]["test"]["protocols"]["published"]["classes"]
    assert set(classes) == {"tumor", "stroma", "lymphocytes"}

    said = follow("A method", bundle)
    assert re.search(r"\d\d passed", said)
    assert list(stages(bundle / "output" / "toy_smoothed_lite")) == ["train_classifier"]

    said = follow("A backbone", bundle)
    assert "(16, 24, 288) ['conv_stem', 'bn1', 'act1', 'blocks']" in said and "1 passed" in said
    run = bundle / "output" / "toy_esfan_mobilenet"
    assert list(stages(run)) == ["train_classifier"]
    classifier = torch.load(run / "models" / "classifier" / "model.pt", weights_only=True)
    pretrained = torch.load(bundle / "models" / "pretrained" / "mobilenetv3_small_050.pt", weights_only=True)
    changed = {
        name: not torch.equal(tensor, classifier[f"backbone.model.{name}"])
        for name, tensor in pretrained.items()
        if name.endswith("conv_stem.weight") or re.match(r"blocks\.[05].*conv.*weight", name)
    }
    frozen = {name for name in changed if name.startswith(("conv_stem", "blocks.0"))}
    assert frozen and frozen < set(changed) and {name for name in changed if not changed[name]} == frozen


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto"])
def test_weights_of_a_folder_from_the_hub_fit_the_backbone(name, tmp_path):
    model = timm.create_model(name)
    config = {"architecture": name, "num_classes": 1000, "pretrained_cfg": {"num_classes": 1000}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    said = {"features_only": True, "out_indices": (-3, -2, -1)}  # as on the page
    weights = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **said).state_dict()
    assert "features_only=True, out_indices=(-3, -2, -1)" in PAGE
    image = torch.rand(1, 3, 64, 64)
    backbone = load_backbone(torch.nn.ModuleDict({"backbone": TimmBackbone(name, 16)}), "backbone.model", weights)
    levels = [level.detach() for level in backbone["backbone"].eval().levels(image)]
    assert all(torch.equal(backbone["backbone"].model.state_dict()[key], weights[key]) for key in weights)
    first = next(iter(model.state_dict().values()))
    assert torch.equal(next(iter(weights.values())), first) and len(levels) == 3


def test_the_page_runs_the_tests_as_the_gate_does():
    (_, _, text), _ = blocks("Tests")
    usual, whole_runs = (line.split("#")[0].strip() for line in text.splitlines()[:2])
    assert f"&& {usual}\n" in (ROOT / "README.md").read_text()
    assert f"\n{whole_runs}\n" in (ROOT / ".ci" / "run").read_text()


def test_the_floors_of_the_page_are_those_of_the_test():
    from test_rooms import FLOORS

    rows = re.findall(r"^\| (\d) \| (.*?):", PAGE, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == [6, 5, 4, 3, 2, 1]
    rooms = [sorted(re.findall(r"`(\w+)`", names)) for _, names in reversed(rows)]
    assert rooms == [sorted(floor) for floor in FLOORS[:6]]
