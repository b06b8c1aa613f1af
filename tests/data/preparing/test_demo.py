import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.data.preparing import demo
from scripts.data.preparing.demo import make_demo_data
from scripts.data.preparing.synthetic_tissue import CLASS_NAMES, PALETTE, STAINS

SETTINGS = {"seed": 3, "size_px": 64, "num_train": 8, "num_val": 3, "num_test": 2}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp("parent") / "demo", **SETTINGS)


def test_file_names_carry_the_labels_of_the_masks(data_dir):
    names = sorted(path.name for path in (data_dir / "train" / "img").iterdir())
    assert len(names) == SETTINGS["num_train"]
    for index, name in enumerate(names):
        image, mask = demo.draw_example(SETTINGS["seed"], "train", index, 64, STAINS["lab_a"])
        assert (np.asarray(Image.open(data_dir / "train" / "img" / name)) == image).all()
        shares = [(mask == value).mean() for value in (1, 2, 3)]
        assert all(share == 0 or share >= 0.05 for share in shares)
        label = [int(digit) for digit in re.search(r"\[([01]) ([01]) ([01])\]\.png$", name).groups()]
        assert label == [int(share > 0) for share in shares]
        assert any(label)


@pytest.mark.parametrize("split", ["val", "test"])
def test_masks_are_palette_images_of_their_patches(data_dir, split):
    images, masks = (sorted((data_dir / split / kind).iterdir()) for kind in ("img", "mask"))
    assert [path.name for path in images] == [path.name for path in masks]
    assert len(masks) == SETTINGS[f"num_{split}"]
    for index, path in enumerate(masks):
        mask = Image.open(path)
        assert mask.mode == "P"
        expected = demo.draw_example(SETTINGS["seed"], split, index, 64, STAINS["lab_a"])[1]
        assert (np.asarray(mask) == expected).all()
        assert (np.asarray(mask.convert("RGB")) == np.array(PALETTE)[expected]).all()
        assert Image.open(images[index]).size == mask.size == (64, 64)
    assert PALETTE[:2] == ((255, 255, 255), (205, 51, 51)) and len(PALETTE) == len(CLASS_NAMES) + 1


def test_patches_do_not_depend_on_the_counts(data_dir, tmp_path):
    fewer = make_demo_data(tmp_path / "fewer", **{**SETTINGS, "num_train": 2, "num_val": 1, "num_test": 1})
    written = [path.relative_to(fewer) for path in fewer.rglob("*.png")]
    assert len(written) == 2 + 2 + 2
    assert all((fewer / name).read_bytes() == (data_dir / name).read_bytes() for name in written)


def test_splits_and_seeds_differ():
    images = [demo.draw_example(seed, split, 0, 64, STAINS["lab_a"])[0] for seed in (0, 1) for split in demo.SPLITS]
    for i, image in enumerate(images):
        assert all((image != other).mean() > 0.5 for other in images[:i])


def test_patches_are_varied_and_balanced(monkeypatch):
    monkeypatch.setattr(demo, "make_patch", lambda rng, size_px, tissues, stain, glass: (tissues, glass))
    drawn = [demo.draw_example(0, "train", index, 64, STAINS["lab_a"]) for index in range(1000)]
    counts = np.bincount([len(tissues) for tissues, _ in drawn], minlength=4) / 1000
    assert 0.33 < counts[1] < 0.43 and counts[0] == 0 and counts[2] > 0.2 and counts[3] > 0.2
    shares = np.array([[value in tissues for value in (1, 2, 3)] for tissues, _ in drawn]).mean(0)
    assert np.ptp(shares) < 0.06
    assert 0.4 < np.mean([glass > 0 for _, glass in drawn]) < 0.6


def test_finished_data_is_left_untouched(tmp_path):
    settings = {**SETTINGS, "num_train": 1, "num_val": 0, "num_test": 0}
    folder = make_demo_data(tmp_path / "demo", **settings)
    (patch,) = (folder / "train" / "img").iterdir()
    patch.write_bytes(b"mine")
    assert make_demo_data(tmp_path / "demo", **settings) == folder
    assert patch.read_bytes() == b"mine"


def test_other_settings_are_refused(data_dir):
    with pytest.raises(ValueError, match=rf'"seed": 4.*got .*"seed": 3.*{re.escape(str(data_dir))}.*choose another'):
        make_demo_data(data_dir, **{**SETTINGS, "seed": 4})


def test_incomplete_data_is_refused(tmp_path):
    settings = {**SETTINGS, "num_train": 0, "num_val": 2, "num_test": 0}
    folder = make_demo_data(tmp_path / "demo", **settings)
    next((folder / "val" / "mask").iterdir()).unlink()
    with pytest.raises(FileExistsError, match="must be complete.*'val/mask': 2.*got.*'val/mask': 1.*remove this one"):
        make_demo_data(folder, **settings)


def test_foreign_folders_and_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(
            FileExistsError, match=rf"`output_dir` must be new.*got {re.escape(str(path))}; choose another"
        ):
            make_demo_data(path, **SETTINGS)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("notes.txt", "mine")]


def test_folder_appears_complete_or_not_at_all(tmp_path, monkeypatch):
    write_example = demo.write_example

    def fail_at_last(folder, split, index, image, mask):
        assert not (tmp_path / "demo").exists()
        if (split, index) == ("test", 1):
            raise OSError("disk full")
        write_example(folder, split, index, image, mask)

    monkeypatch.setattr(demo, "write_example", fail_at_last)
    with pytest.raises(OSError, match="disk full"):
        make_demo_data(tmp_path / "demo", **SETTINGS)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(demo, "write_example", write_example)
    (tmp_path / "demo").mkdir()  # an empty folder may stand there already
    make_demo_data(tmp_path / "demo", **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["counts"]["train/img"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "`seed` must be a whole number, got -1; use 0 or more"),
        ({"num_val": 2.5}, "`num_val` must be a whole number, got 2.5"),
        ({"size_px": 16}, "`size_px` must be a whole number, got 16; use 32 or more"),
        ({"stain": "lab_c"}, r"`stain` must be one of \['lab_a', 'lab_b'\], got 'lab_c'"),
    ],
)
def test_bad_settings_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_demo_data(tmp_path / "demo", **{**SETTINGS, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_command_prints_one_line(tmp_path):
    folder = tmp_path / "demo"
    counts = ["--num-train=2", "--num-val=1", "--num-test=0", "--size=32", "--seed=7", "--stain=lab_b"]
    command = [sys.executable, "-m", "scripts", "demo", str(folder), *counts]
    bundle = Path(demo.__file__).parents[3]
    result = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=True)
    assert result.stdout == f"{folder}: 2 train, 1 val, 0 test patches of 32 px, seed 7, lab_b\n"
    assert len(list(folder.rglob("*.png"))) == 4


def test_train_patches_have_masks_on_request_and_are_the_same(data_dir, tmp_path):
    with_masks = make_demo_data(tmp_path / "demo", **SETTINGS, train_masks=True)
    images = sorted((with_masks / "train" / "img").iterdir())
    for index, path in enumerate(images):
        assert path.read_bytes() == (data_dir / "train" / "img" / path.name).read_bytes()
        expected = demo.draw_example(SETTINGS["seed"], "train", index, 64, STAINS["lab_a"])[1]
        assert (np.asarray(Image.open(with_masks / "train" / "mask" / path.name)) == expected).all()
    assert not (data_dir / "train" / "mask").exists()
    assert make_demo_data(tmp_path / "demo", **SETTINGS, train_masks=True) == with_masks
    with pytest.raises(ValueError, match="must hold demo data of"):
        make_demo_data(tmp_path / "demo", **SETTINGS)
