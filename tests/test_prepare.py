import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.check import check_dataset
from scripts.prepare import format_report, patch_label, patch_starts, prepare

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
OVERLAY = {
    "class_names": ["tumor", "stroma"],
    "classifier_values": [1, 2],
    "source_mask_values": {"0": 1, "1": 2, "3": 0},
    "mask_values": {"0": 0, "1": 1, "2": 2},
    "palette": [[255, 255, 255], [200, 0, 0], [0, 0, 200]],
}
OURS = np.array([1, 2, 99, 0])  # our value of each value in the source's masks, independently of the code under test
SIZES = {"train": [(40, 33), (24, 50), (15, 60)], "val": [(20, 31)], "test": [(9, 12)]}  # (H, W)


def stripes(rng, height, width):
    """A source mask of a few vertical bands."""
    values = rng.permutation(np.resize([0, 1, 3], width // 8 + 1))
    return np.repeat(np.repeat(values, 8)[None, :width], height, axis=0).astype(np.uint8)


@pytest.fixture
def source(tmp_path):
    """Images of noise, so that a patch is found at one place only, with masks in the source's values."""
    rng = np.random.default_rng(0)
    for split, sizes in SIZES.items():
        for kind in ("img", "mask"):
            (tmp_path / "source" / split / kind).mkdir(parents=True)
        for index, (height, width) in enumerate(sizes):
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "source" / split / "img" / f"s{index}.bmp")
            Image.fromarray(stripes(rng, height, width)).save(tmp_path / "source" / split / "mask" / f"s{index}.png")
    return tmp_path / "source"


def write_overlay(folder, **changes):
    path = folder / "dataset_x.json"
    path.write_text(json.dumps({key: value for key, value in (OVERLAY | changes).items() if value is not None}))
    return str(path)


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def check_patches(output, source, ours, patch_size, min_share, classes):
    """Compare every patch with its place in the source, its label with the shares there; give the covered pixels."""
    images = {path.stem: read(path) for path in (source / "train/img").iterdir()}
    masks = {path.stem: ours[read(path)] for path in (source / "train/mask").iterdir()}
    covered = {stem: np.zeros(mask.shape, dtype=bool) for stem, mask in masks.items()}
    for path in (output / "train/img").iterdir():
        stem, left, top, label = re.fullmatch(r"(.+)_x(\d+)_y(\d+)\[([01 ]+)\]\.png", path.name).groups()
        window = np.s_[int(top) : int(top) + patch_size, int(left) : int(left) + patch_size]
        patch = read(path)
        assert patch.shape == (patch_size, patch_size, 3)
        assert (patch == images[stem][window]).all()
        assert label == " ".join(str(int(np.mean(masks[stem][window] == value) >= min_share)) for value in classes)
        covered[stem][window] = True
    return covered


@pytest.mark.parametrize(("patch_size", "stride"), [(16, 8), (16, 16), (7, 5)])
@pytest.mark.parametrize("min_share", [0.05, 0.4])
def test_patches_are_the_source_and_labels_the_shares_there(source, tmp_path, patch_size, stride, min_share):
    output = tmp_path / "out"
    report = prepare(str(source), str(output), write_overlay(tmp_path), patch_size, stride, min_share)["train"]
    covered = check_patches(output, source, OURS, patch_size, min_share, [1, 2])
    small = [stem for stem, mask in covered.items() if min(mask.shape) < patch_size]
    assert report["images"] == 3 and report["images_smaller_than_patch"] == len(small)
    places = 0
    for stem, mask in covered.items():
        if stem in small:
            assert not mask.any()
            continue
        counts = [-(-(length - patch_size) // stride) + 1 for length in mask.shape]
        places += counts[0] * counts[1]
    assert report["patches"] + report["patches_without_class"] == places
    assert report["patches"] == len(list((output / "train/img").iterdir())) > 0


def test_every_pixel_is_covered_when_every_patch_shows_a_class(source, tmp_path):
    for path in (source / "train/mask").iterdir():
        Image.fromarray(read(path) % 3).save(path)  # glass (3) becomes tumor (0)
    report = prepare(str(source), str(tmp_path / "out"), write_overlay(tmp_path), patch_size=13, stride=11)
    assert report["train"]["patches_without_class"] == 0
    covered = check_patches(tmp_path / "out", source, OURS, 13, 0.05, [1, 2])
    assert len(covered) == 3 and all(mask.all() for mask in covered.values())


@pytest.mark.parametrize(("length", "expected"), [(7, []), (8, [0]), (9, [0, 1]), (14, [0, 6]), (15, [0, 6, 7])])
def test_last_patch_ends_at_the_border(length, expected):
    assert patch_starts(length, patch_size=8, stride=6) == expected


def test_label_counts_a_class_from_exactly_the_share_on():
    mask = np.zeros((10, 10), dtype=np.uint8)
    mask[0, :5] = 2
    mask[1, :4] = 1
    assert patch_label(mask, [1, 2], min_share=0.05) == [0, 1]
    assert patch_label(mask, [2, 1, 0], min_share=0.04) == [1, 1, 1]  # in label order, "rest" (0) can be a class


def test_report_counts_the_written_patches(source, tmp_path):
    output = tmp_path / "out"
    report = prepare(str(source), str(output), write_overlay(tmp_path), patch_size=8, stride=8, min_share=0.3)
    labels = [re.search(r"\[(.+)\]", path.name)[1] for path in (output / "train/img").iterdir()]
    assert report["train"]["per_combination"] == {label: labels.count(label) for label in set(labels)}
    assert report["train"]["per_class"] == {
        "tumor": sum(label[0] == "1" for label in labels),
        "stroma": sum(label[2] == "1" for label in labels),
    }
    assert json.loads((output / "prepare.json").read_text())["train"] == report["train"]
    text = format_report(report)
    assert f"train: {len(labels)} patches of 8 px from 3 images" in text
    assert f"{report['train']['patches_without_class']:7d}  left out: no class covers 30.0%" in text
    assert f"{labels.count('1 0'):7d}  [1 0] tumor\n" in text


def test_scored_images_keep_their_size_and_masks_get_our_values(source, tmp_path):
    prepare(str(source), str(tmp_path / "out"), write_overlay(tmp_path), patch_size=16, stride=16)
    for split in ("val", "test"):
        assert (read(tmp_path / "out" / split / "img/s0.png") == read(source / split / "img/s0.bmp")).all()
        with Image.open(tmp_path / "out" / split / "mask/s0.png") as picture:
            assert picture.mode == "P"
            expected = OURS[read(source / split / "mask/s0.png")]
            assert (np.asarray(picture) == expected).all()
            assert (np.asarray(picture.convert("RGB")) == np.array(OVERLAY["palette"])[expected]).all()
    assert not (tmp_path / "out/train/mask").exists()
    check_dataset(tmp_path / "out", OVERLAY["class_names"], OVERLAY["mask_values"])


def test_published_values_write_the_masks_as_the_source_has_them(source, tmp_path):
    overlay = write_overlay(tmp_path, source_mask_values=None, mask_values={"0": 1, "1": 2, "3": 0})
    prepare(str(source), str(tmp_path / "out"), overlay, patch_size=16, stride=16, published_values=True)
    with Image.open(tmp_path / "out/val/mask/s0.png") as picture:
        values = read(source / "val/mask/s0.png")
        assert (np.asarray(picture) == values).all()
        assert (np.asarray(picture.convert("RGB")) == np.array(OVERLAY["palette"])[OURS[values]]).all()


def test_published_values_of_a_range_are_its_highest(source, tmp_path):
    overlay = write_overlay(tmp_path, mask_values={"0": 0, "1-254": 1, "255": 2})
    prepare(str(source), str(tmp_path / "out"), overlay, patch_size=16, stride=16, published_values=True)
    expected = np.array([0, 254, 255])[OURS[read(source / "val/mask/s0.png")]]
    assert (read(tmp_path / "out/val/mask/s0.png") == expected).all()


def test_refuses_to_write_masks_that_the_overlay_misreads(source, tmp_path):
    overlay = write_overlay(tmp_path, source_mask_values=None, mask_values={"0": 1, "1": 2, "3": 0})
    with pytest.raises(ValueError, match=r"reads \{0: 1, 1: 2, 2: -1\}; give `published_values`"):
        prepare(str(source), str(tmp_path / "out"), overlay, patch_size=16, stride=16)


def test_prepares_the_splits_asked_for_and_found(source, tmp_path):
    overlay = write_overlay(tmp_path)
    prepare(str(source), str(tmp_path / "out"), overlay, splits="val")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["prepare.json", "val"]
    (source / "test").rename(tmp_path / "aside")
    report = prepare(str(source), str(tmp_path / "out2"), overlay, patch_size=16, stride=16)
    assert sorted(path.name for path in (tmp_path / "out2").iterdir()) == ["prepare.json", "train", "val"]
    assert "test" not in report
    (source / "train").rename(tmp_path / "aside2")
    with pytest.raises(FileNotFoundError, match="source must hold folders train/img"):
        prepare(str(source), str(tmp_path / "out3"), overlay)
    with pytest.raises(ValueError, match=r"some of train, val, test, got \['valid'\]"):
        prepare(str(source), str(tmp_path / "out3"), overlay, splits="valid")


def test_refuses_an_existing_output_and_leaves_none_after_an_error(source, tmp_path):
    overlay = write_overlay(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="`output` must be a new folder, got .*out; remove it"):
        prepare(str(source), str(tmp_path / "out"), overlay)
    Image.new("L", (12, 9)).save(source / "test/img/s0.bmp")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="test/img/s0.bmp must be an 8-bit RGB image, got L"):
        prepare(str(source), str(tmp_path / "out2"), overlay, patch_size=16, stride=16)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 0}, "`patch_size` must be a whole number"),
        ({"patch_size": 1.5}, "`patch_size` must be a whole number"),
        ({"stride": 0}, r"`stride` must lie in 1\.\.128"),
        ({"stride": 129}, r"`stride` must lie in 1\.\.128"),
        ({"min_share": 0}, r"`min_share` must lie in \(0, 1\]"),
        ({"min_share": 5}, "give a share, not a percentage"),
    ],
)
def test_refuses_settings_that_cannot_work(source, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(str(source), str(tmp_path / "out"), write_overlay(tmp_path), **options)


def test_refuses_unfit_sources(source, tmp_path):
    overlay = write_overlay(tmp_path)
    with pytest.raises(ValueError, match=r"train/mask/s0.png: .* got also \[3\]"):
        prepare(str(source), str(tmp_path / "out"), write_overlay(tmp_path, source_mask_values={"0-1": 1}))
    write_overlay(tmp_path)
    (source / "train/mask/s1.png").rename(tmp_path / "s1.png")
    with pytest.raises(FileNotFoundError, match="train/img/s1.bmp must have a mask of the same name"):
        prepare(str(source), str(tmp_path / "out"), overlay)
    (tmp_path / "s1.png").rename(source / "train/mask/s1.png")
    Image.new("RGB", (33, 40)).save(source / "train/img/s0.png")
    with pytest.raises(ValueError, match="train/img must have one image of a name, whatever its suffix; ..s0.."):
        prepare(str(source), str(tmp_path / "out"), overlay)


@pytest.mark.realdata
def test_prepares_real_images(tmp_path):
    if not os.environ.get("REALDATA_DIR"):
        pytest.skip("REALDATA_DIR must name the folder of real images")
    source, dataset = Path(os.environ["REALDATA_DIR"]) / "luad_tissue", CONFIGS / "dataset_luad_tissue.json"
    report = prepare(str(source), str(tmp_path / "out"), str(dataset))
    covered = check_patches(tmp_path / "out", source, np.array([1, 2, 3, 0]), 128, 0.05, [1, 2, 3])
    assert len(covered) == 46
    overlay = json.loads(dataset.read_text())
    checked = check_dataset(tmp_path / "out", overlay["class_names"], overlay["mask_values"])
    assert checked["train"]["per_combination"] == report["train"]["per_combination"]
    assert checked["train"]["sizes"] == {"128x128": report["train"]["patches"]}
    masks = np.concatenate([read(path).ravel() for path in (source / "val/mask").iterdir()])
    shares = [checked["val"]["shares"][str(ours)] for ours in (1, 2, 3, 0)]
    assert shares == pytest.approx((np.bincount(masks) / masks.size).tolist(), abs=1e-6)
