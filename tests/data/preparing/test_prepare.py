import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scripts.data.check import check_dataset
from scripts.data.classes import Classes
from scripts.data.preparing.prepare import format_report, patch_label, patch_starts, prepare

CONFIGS = Path(__file__).parents[3] / "bundle" / "configs"
OVERLAY = {
    "class_names": ["tumor", "stroma"],
    "classifier_values": [1, 2],
    "segmenter_values": [1, 2],
    "source": {"mask_values": {"0": 1, "1": 2, "3": 0}},
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


def read_truth(source, ours, split="train"):
    """Images of a split in the published layout, and their masks in our values, by name."""
    images = {path.stem: read(path) for path in (source / split / "img").iterdir()}
    return images, {path.stem: ours[read(path)] for path in (source / split / "mask").iterdir()}


def check_patches(output, images, masks, patch_size, min_share, classes):
    """Compare every patch with its place in the source, its label with the shares there; give the covered pixels."""
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
    covered = check_patches(output, *read_truth(source, OURS), patch_size, min_share, [1, 2])
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
    covered = check_patches(tmp_path / "out", *read_truth(source, OURS), 13, 0.05, [1, 2])
    assert len(covered) == 3 and all(mask.all() for mask in covered.values())


@pytest.mark.parametrize(("length", "expected"), [(7, []), (8, [0]), (9, [0, 1]), (14, [0, 6]), (15, [0, 6, 7])])
def test_last_patch_ends_at_the_border(length, expected):
    assert patch_starts(length, patch_size=8, stride=6) == expected


@given(st.integers(1, 300), st.integers(1, 300), st.data())
def test_patches_of_any_size_and_stride_cover_each_pixel_and_lie_inside(length, patch_size, data):
    stride = data.draw(st.integers(1, patch_size))
    starts = patch_starts(length, patch_size, stride)
    if length < patch_size:
        assert starts == []
        return
    covered = np.zeros(length, dtype=bool)
    for start in starts:
        assert 0 <= start <= length - patch_size
        covered[start : start + patch_size] = True
    assert covered.all() and sorted(set(starts)) == starts
    assert len(starts) == math.ceil((length - patch_size) / stride) + 1


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_labels_of_any_mask_are_the_shares_of_its_pixels(num_values, height, width, percent, seed):
    mask = np.random.default_rng(seed).integers(0, num_values, (height, width), dtype=np.uint8)
    label = patch_label(mask, list(range(num_values)), percent / 100)
    pixels = [sum(value == wanted for value in mask.ravel().tolist()) for wanted in range(num_values)]
    assert label == [int(count >= percent / 100 * height * width) for count in pixels]


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
    assert f"{report['train']['patches_without_class']:7d}  patches skipped: no class covers 30.0%" in text
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
    check_dataset(tmp_path / "out", Classes.of(OVERLAY))


def test_published_values_write_the_masks_as_the_source_has_them(source, tmp_path):
    overlay = write_overlay(tmp_path, source=None, mask_values={"0": 1, "1": 2, "3": 0})
    prepare(str(source), str(tmp_path / "out"), overlay, patch_size=16, stride=16, published_values=True)
    with Image.open(tmp_path / "out/val/mask/s0.png") as picture:
        values = read(source / "val/mask/s0.png")
        assert (np.asarray(picture) == values).all()
        assert (np.asarray(picture.convert("RGB")) == np.array(OVERLAY["palette"])[OURS[values]]).all()


@pytest.mark.parametrize("published_values", [False, True])
def test_masks_of_training_patches_are_cut_with_them_on_request(source, tmp_path, published_values):
    overlay = write_overlay(
        tmp_path, mask_values={"0": 0, "1": 1, "2": 2} if not published_values else {"5": 0, "7": 1, "9": 2}
    )
    settings = {"patch_size": 16, "stride": 8, "published_values": published_values}
    prepare(str(source), str(tmp_path / "out"), overlay, **settings, train_masks=True)
    patches = sorted((tmp_path / "out/train/img").iterdir())
    assert [path.name for path in patches] == sorted(path.name for path in (tmp_path / "out/train/mask").iterdir())
    written = np.array([5, 7, 9] if published_values else [0, 1, 2])
    for path in patches:
        stem, left, top = re.fullmatch(r"(.+)_x(\d+)_y(\d+)\[.*", path.name).groups()
        window = np.s_[int(top) : int(top) + 16, int(left) : int(left) + 16]
        truth = OURS[read(source / "train/mask" / f"{stem}.png")][window]
        assert (read(tmp_path / "out/train/mask" / path.name) == written[truth]).all()
    prepare(str(source), str(tmp_path / "without"), overlay, **settings)
    assert not (tmp_path / "without/train/mask").exists()


def test_published_values_of_a_range_are_its_lowest(source, tmp_path):
    overlay = write_overlay(tmp_path, mask_values={"0": 0, "1-254": 1, "255": 2})
    prepare(str(source), str(tmp_path / "out"), overlay, patch_size=16, stride=16, published_values=True)
    expected = np.array([0, 1, 255])[OURS[read(source / "val/mask/s0.png")]]
    assert (read(tmp_path / "out/val/mask/s0.png") == expected).all()


def test_mask_values_that_were_edited_read_the_prepared_masks_too(source, tmp_path):
    mask_values = {"0": 1, "1": 2, "3": 0}  # what the values in the masks mean; 0 would be read as 1
    overlay = write_overlay(tmp_path, source=None, mask_values=mask_values)
    report = prepare(str(source), str(tmp_path / "out"), overlay, patch_size=16, stride=16, train_masks=True)
    assert {ours: report["written_values"][ours] for ours in range(3)} == {0: 3, 1: 0, 2: 1}
    for split, name in (("val", "s0"), ("test", "s0")):
        written = read(tmp_path / f"out/{split}/mask/{name}.png")
        assert (written == read(source / split / "mask" / f"{name}.png")).all()
    for path in (tmp_path / "out/train/mask").iterdir():
        shown = {mask_values[str(value)] for value in np.unique(read(path))}
        few = {int(digit) * value for digit, value in zip(re.findall(r"[01]", path.stem.split("[")[1]), (1, 2))} - {0}
        assert few <= shown  # the labels of the patches speak of the same tissues


def test_prepares_the_splits_asked_for_and_found(source, tmp_path):
    overlay = write_overlay(tmp_path)
    prepare(str(source), str(tmp_path / "out"), overlay, splits="val")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["prepare.json", "val"]
    (source / "test").rename(tmp_path / "aside")
    report = prepare(str(source), str(tmp_path / "out2"), overlay, patch_size=16, stride=16)
    assert sorted(path.name for path in (tmp_path / "out2").iterdir()) == ["prepare.json", "train", "val"]
    assert "test" not in report
    (source / "train").rename(tmp_path / "aside2")
    with pytest.raises(
        FileNotFoundError, match="source must contain train/img and .*, or images with .* `mask_suffix` in"
    ):
        prepare(str(source), str(tmp_path / "out3"), overlay)
    with pytest.raises(FileNotFoundError, match="nope must contain .*; it does not exist; check `source`"):
        prepare(str(source / "nope"), str(tmp_path / "out3"), overlay)
    with pytest.raises(ValueError, match=r"one or more of train, val, test, got \['valid'\]"):
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
        ({"stride": 0}, r"`stride` must be in 1\.\.128"),
        ({"stride": 129}, r"`stride` must be in 1\.\.128"),
        ({"min_share": 0}, r"`min_share` must be in \(0, 1\]"),
        ({"min_share": 5}, "use a fraction, not a percentage"),
        ({"min_share": "10%"}, r"`min_share` must be in \(0, 1\], got '10%'"),
    ],
)
def test_refuses_settings_that_cannot_work(source, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(str(source), str(tmp_path / "out"), write_overlay(tmp_path), **options)


def test_refuses_unfit_sources(source, tmp_path):
    overlay = write_overlay(tmp_path)
    with pytest.raises(ValueError, match=r"train/mask/s0.png: .* also got \[3\]"):
        prepare(str(source), str(tmp_path / "out"), write_overlay(tmp_path, source={"mask_values": {"0-1": 1}}))
    write_overlay(tmp_path)
    (source / "train/mask/s1.png").rename(tmp_path / "s1.png")
    with pytest.raises(FileNotFoundError, match="train/img/s1.bmp must have a mask of the same name"):
        prepare(str(source), str(tmp_path / "out"), overlay)
    (tmp_path / "s1.png").rename(source / "train/mask/s1.png")
    Image.new("RGB", (33, 40)).save(source / "train/img/s0.png")
    with pytest.raises(
        ValueError, match="train/img must have only one image per name, ignoring suffixes, but repeats ..s0.."
    ):
        prepare(str(source), str(tmp_path / "out"), overlay)


@pytest.mark.parametrize(
    ("section", "options", "expected"),
    [
        ({}, {}, (128, 64, 0.05)),
        ({"patch_size": 15}, {}, (15, 7, 0.05)),
        ({"patch_size": 15}, {"patch_size": 12}, (12, 6, 0.05)),
        ({"patch_size": 15}, {"stride": 15}, (15, 15, 0.05)),
        ({"patch_size": 15, "stride": 9}, {}, (15, 9, 0.05)),
        ({"patch_size": 15, "stride": 9}, {"stride": 4}, (15, 4, 0.05)),
        ({"patch_size": 15, "stride": 15}, {"patch_size": 12}, (12, 6, 0.05)),  # half of a size that is given
        ({"patch_size": 15, "min_share": 0.3}, {}, (15, 7, 0.3)),
        ({"patch_size": 15, "min_share": 0.3}, {"min_share": 0.1}, (15, 7, 0.1)),
        ({}, {"patch_size": 1}, (1, 1, 0.05)),
    ],
)
def test_how_patches_are_cut_is_the_command_line_s_or_the_source_s(source, tmp_path, section, options, expected):
    overlay = write_overlay(tmp_path, source=OVERLAY["source"] | section)
    report = prepare(str(source), str(tmp_path / "out"), overlay, **options)
    assert (report["patch_size"], report["stride"], report["min_share"]) == expected
    assert "names" not in report  # the folders are the splits already
    covered = check_patches(tmp_path / "out", *read_truth(source, OURS), expected[0], expected[2], [1, 2])
    assert any(mask.any() for mask in covered.values()) == (expected[0] <= 33)


# --- releases in one folder


def discs(rng, height, width, count):
    """A mask of instances 1..count, 0 between them."""
    rows, columns = np.mgrid[:height, :width]
    mask = np.zeros((height, width), dtype=np.uint8)
    for instance in range(1, count + 1):
        top, left, radius = rng.integers(height), rng.integers(width), rng.integers(5, 12)
        mask[(rows - top) ** 2 + (columns - left) ** 2 < radius**2] = instance
    return mask


def write_mask(mask, path):
    Image.fromarray(mask).save(path)


def write_release(folder, names, suffix, mask_suffix, write_mask=write_mask):
    """Images of noise with masks beside them; gives images as they are read back, and masks of 0 and 1."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    images, masks = {}, {}
    for index, name in enumerate(names):
        height, width = 40 + index, 50 - index
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{name}{suffix}")
        images[name] = read(folder / f"{name}{suffix}")
        instances = discs(rng, height, width, index % 4)
        write_mask(instances, folder / f"{name}{mask_suffix}")
        masks[name] = (instances > 0).astype(np.uint8)
    return images, masks


def check_release(output, images, masks, splits, patch_size, min_share=0.05):
    """Compare all that is written with the release; classes are 1 and 0, as in ``classifier_values``."""
    of_split = {split: [{name: part[name] for name in splits[split]} for part in (images, masks)] for split in splits}
    covered = check_patches(output, *of_split.pop("train"), patch_size, min_share, [1, 0])
    assert all(mask.all() for mask in covered.values())  # every pixel has one of the two classes
    for split, (images, masks) in of_split.items():
        for kind, expected in (("img", images), ("mask", masks)):
            written = {path.name: read(path) for path in (output / split / kind).iterdir()}
            assert sorted(written) == sorted(f"{name}.png" for name in expected)
            assert all(np.array_equal(written[f"{name}.png"], expected[name]) for name in expected)


@pytest.mark.parametrize("suffix", [".bmp", ".png"])
def test_reads_the_release_of_glas(tmp_path, suffix):
    splits = {"train": [f"train_{n}" for n in range(1, 10)], "val": ["train_10", "train_11"]}
    splits["test"] = ["testA_1", "testA_2", "testB_1"]
    names = [name for split in ("test", "val", "train") for name in splits[split]]
    source, output, dataset = tmp_path / "source", tmp_path / "out", CONFIGS / "dataset_glas.json"
    truth = write_release(source, names, suffix, f"_anno{suffix}")
    (source / "Grade.csv").write_text("name, grade")
    report = prepare(str(source), str(output), str(dataset), patch_size=20)
    check_release(output, *truth, splits, 20, min_share=0.1)
    names = {split: [f"{name}{suffix}" for name in members] for split, members in splits.items()}
    assert report["names"] == names == json.loads((output / "prepare.json").read_text())["names"]
    assert report["train"]["images"] == 9 and report["val"] == {"images": 2} and report["test"] == {"images": 3}
    overlay = json.loads(dataset.read_text())
    checked = check_dataset(output, Classes.of(overlay))
    assert checked["train"]["per_combination"] == report["train"]["per_combination"]
    assert len(report["train"]["per_combination"]) > 1
    with Image.open(output / "val/mask/train_10.png") as picture:
        assert (np.asarray(picture.convert("RGB")) == np.array(overlay["palette"])[truth[1]["train_10"]]).all()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_reads_the_release_of_digestpath(tmp_path, mode):
    slides = {"18-00530A": 3, "18-00962B": 3, "18-04546A": 2, "18-10000A": 2}
    names = [
        f"{slide}_2019-05-07 23_56_{n}-lv1-34675-4128-4816" for slide, count in slides.items() for n in range(count)
    ]
    splits = {"train": names[:6], "val": names[6:8], "test": names[8:]}
    source, output, dataset = tmp_path / "source", tmp_path / "out", CONFIGS / "dataset_digestpath.json"

    def write_jpeg(mask, path):
        Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8)).convert(mode).save(path)
        with Image.open(path) as picture:
            assert picture.mode == mode

    truth = write_release(source, names, ".jpg", "_mask.jpg", write_jpeg)
    levels = np.unique(np.concatenate([read(path).ravel() for path in source.glob("*_mask.jpg")]))
    assert len(levels) > 2  # JPEG's values are only near 0 and 255
    report = prepare(str(source), str(output), str(dataset), patch_size=20)
    check_release(output, *truth, splits, 20)
    assert report["names"] == {split: [f"{name}.jpg" for name in members] for split, members in splits.items()}
    published = tmp_path / "published"
    prepare(str(source), str(published), str(dataset), splits="test", published_values=True)
    assert sorted(path.name for path in published.iterdir()) == ["prepare.json", "test"]
    written = read(published / "test/mask" / f"{names[9]}.png")
    assert np.array_equal(written, truth[1][names[9]]) and set(written.ravel()) == {0, 1}


@pytest.mark.parametrize(
    ("name", "mask_suffix", "cut", "places"),
    [
        ("glas", "_anno", (112, 112, 0.1), 2 * 3 * 2),  # it trains on 2 images
        ("digestpath", "_mask", (224, 112, 0.05), 1 * 2 * 1),  # it trains on 1 slide of 3
    ],
)
def test_patches_are_cut_as_suits_the_release(tmp_path, name, mask_suffix, cut, places):
    for index in range(1, 4):
        for stem, mode in ((f"train_{index}", "RGB"), (f"train_{index}{mask_suffix}", "L")):
            stem = stem if name == "glas" else stem.replace("train_", f"slide{index}_")
            Image.new(mode, (225, 224)).save(tmp_path / f"{stem}.png")
    report = prepare(str(tmp_path), str(tmp_path / "out"), str(CONFIGS / f"dataset_{name}.json"))
    assert (report["patch_size"], report["stride"], report["min_share"]) == cut
    assert report["train"]["per_combination"] == {"0 1": places}


def test_a_flat_folder_needs_a_mask_suffix_and_no_split_folders(source, tmp_path):
    flat = tmp_path / "flat"
    images, masks = write_release(flat, ["a", "b"], ".png", "_anno.png")  # with no and with one instance
    section = {"mask_values": {"0": 1, "1": 2, "3": 0}}
    with pytest.raises(FileNotFoundError, match="flat must contain .*, or images .* `mask_suffix` in .* `source`"):
        prepare(str(flat), str(tmp_path / "out"), write_overlay(tmp_path, source=section))
    overlay = write_overlay(tmp_path, source=section | {"mask_suffix": "_anno", "patch_size": 20})
    with pytest.raises(FileNotFoundError, match="nowhere must contain .*, or images with their masks"):
        prepare(str(tmp_path / "nowhere"), str(tmp_path / "out"), overlay)
    with pytest.raises(
        FileNotFoundError, match="flat must contain images of val or test, but has none; check `source` or `splits`"
    ):
        prepare(str(flat), str(tmp_path / "out"), overlay, splits=["val", "test"])
    prepare(str(flat), str(tmp_path / "out"), overlay)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["prepare.json", "train"]
    masks = {name: OURS[mask] for name, mask in masks.items()}
    check_patches(tmp_path / "out", images, masks, 20, 0.05, [1, 2])
    report = prepare(str(source), str(tmp_path / "out2"), overlay)  # split folders, in spite of the suffix
    assert report["val"] == report["test"] == {"images": 1} and "names" not in report


def test_refuses_flat_folders_that_are_incomplete_or_unreadable(tmp_path):
    flat, overlay = tmp_path / "flat", str(CONFIGS / "dataset_glas.json")
    write_release(flat, [f"train_{n}" for n in range(1, 6)], ".bmp", "_anno.bmp")
    before = sorted(tmp_path.iterdir())

    def refuse(error, message):
        with pytest.raises(error, match=message):
            prepare(str(flat), str(tmp_path / "out"), overlay, patch_size=20)
        assert sorted(tmp_path.iterdir()) == before

    (flat / "train_2_anno.bmp").rename(flat / "aside")
    refuse(FileNotFoundError, r"flat must have a mask beside it .*, but \['train_2.bmp'\] have none")
    (flat / "aside").rename(flat / "train_2_anno.bmp")
    (flat / "train_3.bmp").rename(flat / "aside")
    refuse(FileNotFoundError, r"flat must have an image beside it .*, but \['train_3_anno.bmp'\] have none")
    (flat / "aside").rename(flat / "train_3.bmp")
    red = Image.new("RGB", (50, 40), (255, 0, 0))
    red.save(flat / "train_1_anno.bmp")
    refuse(ValueError, "train_1_anno.bmp must be a mask .* got mode RGB with different channels; save it as")
    for path in flat.iterdir():
        path.rename(path.with_name(path.name.replace("train", "gland")))
    refuse(ValueError, r"`splits` must match images to train on, got 'train_\*', which matches none of \['gland_1'")


@pytest.mark.realdata
def test_prepares_real_images(tmp_path):
    if not os.environ.get("REALDATA_DIR"):
        pytest.skip("REALDATA_DIR must name the folder of real images")
    source, dataset = Path(os.environ["REALDATA_DIR"]) / "luad_tissue", CONFIGS / "dataset_luad_tissue.json"
    report = prepare(str(source), str(tmp_path / "out"), str(dataset))
    covered = check_patches(tmp_path / "out", *read_truth(source, np.array([1, 2, 3, 0])), 128, 0.05, [1, 2, 3])
    assert len(covered) == 46
    overlay = json.loads(dataset.read_text())
    checked = check_dataset(tmp_path / "out", Classes.of(overlay))
    assert checked["train"]["per_combination"] == report["train"]["per_combination"]
    assert checked["train"]["sizes"] == {"128x128": report["train"]["patches"]}
    masks = np.concatenate([read(path).ravel() for path in (source / "val/mask").iterdir()])
    shares = [checked["val"]["shares"][str(ours)] for ours in (1, 2, 3, 0)]
    assert shares == pytest.approx((np.bincount(masks) / masks.size).tolist(), abs=1e-6)


@pytest.mark.realdata
def test_prepares_the_release_of_glas(tmp_path):
    if not os.environ.get("REALDATA_DIR"):
        pytest.skip("REALDATA_DIR must name the folder of real images")
    source, output, dataset = Path(os.environ["REALDATA_DIR"]) / "glas", tmp_path / "out", CONFIGS / "dataset_glas.json"
    report = prepare(str(source), str(output), str(dataset))
    names = [f"train_{n}" for n in range(1, 86)]
    splits = {"train": names[:68], "val": names[68:]}
    assert report["names"] == {split: [f"{name}.png" for name in members] for split, members in splits.items()}
    images = {name: read(source / f"{name}.png") for name in names}
    masks = {name: (read(source / f"{name}_anno.png") > 0).astype(np.uint8) for name in names}
    check_release(output, images, masks, splits, 112)
    overlay = json.loads(dataset.read_text())
    checked = check_dataset(output, Classes.of(overlay))
    assert checked["train"]["images"] == 7751 and checked["val"]["images"] == 17
    gland = np.concatenate([masks[name].ravel() for name in splits["val"]]).mean()
    assert checked["val"]["shares"] == pytest.approx({"0": 1 - gland, "1": gland}, abs=1e-6)
