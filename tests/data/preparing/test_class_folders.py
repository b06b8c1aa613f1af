import json
import os
import re

import numpy as np
import pytest
from conftest import BUNDLE
from PIL import Image
from typer.testing import CliRunner

from scripts.commands.app import app
from scripts.data.items import labelled_images
from scripts.data.preparing.prepare import format_report, prepare
from scripts.errors import BundleError

DEMO = str(BUNDLE / "configs" / "dataset_demo.json")
CLASSES = ["tumor", "stroma", "lymphocytes"]


def write_patches(folder, count, mode="RGB"):
    """Patches of 8 px, each of a colour of its own."""
    folder.mkdir(parents=True)
    for index in range(count):
        colour = tuple(np.random.default_rng([len(str(folder)), index]).integers(0, 256, len(mode)).tolist())
        Image.new(mode, (8, 8), colour).save(folder / f"{index}.png")


def test_each_patch_has_the_label_of_its_folder(tmp_path):
    for name, count in {"Tumor": 3, "stroma": 2, "lymphocytes": 1}.items():
        write_patches(tmp_path / "source" / name, count)
    report = prepare(str(tmp_path / "source"), str(tmp_path / "out"), DEMO)
    items = labelled_images(tmp_path / "out", CLASSES)
    assert sorted(item["label"] for item in items) == sorted([[1, 0, 0]] * 3 + [[0, 1, 0]] * 2 + [[0, 0, 1]])
    for item in items:
        folder, name = re.match(r"(\w+?)_(\d+)", item["name"]).groups()
        assert [int(folder.lower() == one) for one in CLASSES] == item["label"]
        assert os.path.samefile(item["image"], tmp_path / "source" / folder / f"{name}.png")  # no pixels were copied
    assert report["train"]["per_class"] == {"tumor": 3, "stroma": 2, "lymphocytes": 1}
    assert "train: 6 patches, each labelled with the class of its folder" in format_report(report)
    note = json.loads((tmp_path / "out" / "prepare.json").read_text())["note"]
    assert "showing no other class" in note and note in format_report(report)


def test_patches_in_subfolders_keep_them(tmp_path):
    for name in ("tumor", "tumor/slide0", "tumor/slide1"):
        write_patches(tmp_path / "source" / name, 1)
    assert prepare(str(tmp_path / "source"), str(tmp_path / "out"), DEMO)["train"]["images"] == 3
    names = [item["name"] for item in labelled_images(tmp_path / "out", CLASSES)]
    assert sorted(names) == [f"{folder}tumor_0[1 0 0].png" for folder in ("slide0/", "slide1/", "")]


def test_two_folders_of_one_class_are_refused(tmp_path):
    for name in ("tumor", "Tumor"):
        (tmp_path / "source" / name).mkdir(parents=True, exist_ok=True)
    if len(list((tmp_path / "source").iterdir())) < 2:
        pytest.skip("the file system ignores case")
    with pytest.raises(BundleError, match="one folder for each class, ignoring case"):
        prepare(str(tmp_path / "source"), str(tmp_path / "out"), DEMO)


def test_splits_may_be_sorted_or_have_masks(tmp_path):
    for split in ("train", "val"):
        for name in CLASSES:
            write_patches(tmp_path / "source" / split / name, 1)
    write_patches(tmp_path / "source" / "test" / "img", 2)
    write_patches(tmp_path / "source" / "test" / "mask", 2, "L")
    for path in (tmp_path / "source" / "test" / "mask").iterdir():
        Image.new("L", (8, 8), 2).save(path)
    report = prepare(str(tmp_path / "source"), str(tmp_path / "out"), DEMO)
    assert report["train"]["images"] == report["val"]["images"] == 3 and report["test"] == {"images": 2}
    assert not (tmp_path / "out" / "val" / "mask").exists()
    assert len(list((tmp_path / "out" / "test" / "mask").iterdir())) == 2
    assert "val: 3 patches without masks\ntest: 2 images with masks" in format_report(report)


def test_without_links_patches_are_copied(tmp_path, monkeypatch):
    write_patches(tmp_path / "source" / "tumor", 1)
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    prepare(str(tmp_path / "source"), str(tmp_path / "out"), DEMO)
    (copy,) = (tmp_path / "out" / "train" / "img").iterdir()
    original = tmp_path / "source" / "tumor" / "0.png"
    assert copy.read_bytes() == original.read_bytes() and not os.path.samefile(copy, original)


def test_a_folder_that_is_no_class_or_patches_of_another_kind_are_refused(tmp_path):
    write_patches(tmp_path / "source" / "tumor", 1)
    write_patches(tmp_path / "source" / "fat", 1)
    with pytest.raises(BundleError, match=r"must be classes of the data set, .*, but \['fat'\] are not; add them"):
        prepare(str(tmp_path / "source"), str(tmp_path / "out"), DEMO)
    (tmp_path / "source" / "fat").rename(tmp_path / "source" / "stroma")
    Image.new("RGBA", (8, 8)).save(tmp_path / "source" / "stroma" / "1.png")
    with pytest.raises(BundleError, match="1.png .*RGB"):
        prepare(str(tmp_path / "source"), str(tmp_path / "out"), DEMO)
    assert not (tmp_path / "out").exists()


def test_the_command_takes_folders_or_slides(tmp_path):
    write_patches(tmp_path / "source" / "tumor", 1)
    words = ["prepare", "--output", str(tmp_path / "out"), "--dataset", DEMO]
    result = CliRunner().invoke(app, [*words, "--source", str(tmp_path / "source")])
    assert result.exit_code == 0 and "train: 1 patches" in result.output
    for more in ([], ["--source", "a", "--slides", "b.csv"]):
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 2 and "--slides TABLE" in result.output
