import itertools
import json
import math
import random
import re
from fractions import Fraction

import pytest
from conftest import BUNDLE
from PIL import Image

from scripts.data.mask_values import lookup_table
from scripts.data.preparing.releases import Release, natural_key, read_flat_folder, read_release, split_names

OVERLAYS = sorted((BUNDLE / "configs").glob("dataset_*.json"))


def release(**section):
    return read_release({"mask_values": {"0": 0}, "source": section})


def shuffled(names):
    return random.Random(0).sample(names, len(names))


# --- the overlay's section


def test_without_a_section_the_overlay_s_mask_values_hold():
    assert read_release({"mask_values": {"7": 1}}) == Release(mask_values={"7": 1})
    assert release(patch_size=64) == Release({"0": 0}, 64, None, 0.05, None, {"train": "*"}, 0, 0, None)
    assert release(mask_values={"3": 0}).mask_values == {"3": 0}


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_masks_of_every_release_are_read_in_the_values_of_the_data_set(path):
    overlay = json.loads(path.read_text())
    source = lookup_table(read_release(overlay).mask_values)
    assert set(source[source >= 0]) == set(overlay["mask_values"].values())


KEYS = "mask_values, patch_size, stride, min_share, mask_suffix, splits, val_share, test_share, group, ignore_value"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"suffix": "_anno", "val_share": 0.2}, rf"`source` .* keys among {KEYS}, got \['suffix'\]; rename"),
        ("/data/glas", f"`source` .* keys among {KEYS}, got '/data/glas'"),
        ({"mask_suffix": ""}, "`mask_suffix` must be a string such as .*, got ''"),
        ({"mask_suffix": 1}, "`mask_suffix` must be a string such as .*, got 1;"),
        ({"splits": {"val": "a*"}}, r"`splits` must have a pattern for train, .*, got \{'val': 'a\*'\}; write"),
        (
            {"splits": {"train": "*", "valid": "a*"}},
            "`splits` must have a pattern for train, and may have one for val and test, .*'valid'",
        ),
        (
            {"splits": {"train": ["a", "b"]}},
            r"`splits` must have a pattern for train, .*'train': \['a', 'b'\]\}; write it as",
        ),
        ({"splits": "train_*"}, r"`splits` must have a pattern for train, .*, got train_\*;"),
        ({"val_share": 20}, r"`val_share` must be in \[0, 1\), got 20; use a fraction, not a percentage"),
        ({"val_share": -0.1}, r"`val_share` must be in \[0, 1\), got -0.1"),
        ({"test_share": 1.0}, r"`test_share` must be in \[0, 1\), got 1.0"),
        ({"test_share": "0.2"}, r"`test_share` must be in \[0, 1\), got '0.2'"),
        ({"val_share": True}, r"`val_share` must be in \[0, 1\), got True"),
        (
            {"val_share": 0.7, "test_share": 0.3},
            r"must leave images for train, so their sum must be below 1, got 0.7 \+ 0.3; lower",
        ),
        ({"group": "(a"}, r"`group` must be a regular expression, got '\(a': .*; fix the pattern"),
        ({"group": 3}, "`group` must be a regular expression, got 3"),
    ],
)
def test_refuses_sections_that_cannot_be_meant(source, message):
    with pytest.raises(ValueError, match=message):
        read_release({"mask_values": {"0": 0}, "source": source})


# --- splits


def test_natural_order_counts():
    names = ["a", "a1", "a2", "a2b", "a10", "a10_2", "a10_10", "b", "b1"]
    assert sorted(shuffled(names), key=natural_key) == names
    assert sorted(["10", "9a", "x", "9"], key=natural_key) == ["9", "9a", "10", "x"]


def test_the_last_fifth_of_glas_validates():
    source = json.loads((BUNDLE / "configs" / "dataset_glas.json").read_text())["source"]
    names = [f"train_{n}" for n in range(1, 86)] + [f"testA_{n}" for n in range(1, 61)]
    names += [f"testB_{n}" for n in range(1, 21)]
    assert split_names(shuffled(names), release(**source)) == {
        "train": [f"train_{n}" for n in range(1, 69)],
        "val": [f"train_{n}" for n in range(69, 86)],
        "test": [f"testA_{n}" for n in range(1, 61)] + [f"testB_{n}" for n in range(1, 21)],
    }


@pytest.mark.parametrize(
    "pattern", ["{}_2019-05-07 23_56_2{}-lv1-34675", "20_{}_1-3_2019-02-25 21_45_0{}-lv1-3", "{}-lv1-{}"]
)
def test_slides_of_digestpath_stay_whole(pattern):
    source = json.loads((BUNDLE / "configs" / "dataset_digestpath.json").read_text())["source"]
    sizes = {"17-1A": 4, "17-2B": 1, "18-9C": 2, "18-10D": 2, "19-1E": 3}  # 12 images: 2.4 to test, then 2.4 to val
    slides = {slide: [pattern.format(slide, n) for n in range(size)] for slide, size in sizes.items()}
    assert split_names(shuffled(sum(slides.values(), [])), release(**source)) == {
        "train": slides["17-1A"] + slides["17-2B"] + slides["18-9C"],
        "val": slides["18-10D"],
        "test": slides["19-1E"],
    }


@pytest.mark.parametrize("share", ["0.01", "0.07", "0.2", "0.29", "0.3", "0.55", "0.57", "0.7", "0.99"])
def test_share_is_rounded_as_exact_numbers_are(share):
    for count in range(2, 300):
        names = [f"x{n}" for n in range(count)]
        val = math.ceil(Fraction(share) * count - Fraction(1, 2))  # to the nearest, halves down
        val = min(max(val, 1), count - 1)
        expected = {"train": names[: count - val], "val": names[count - val :], "test": []}
        assert split_names(names, release(val_share=float(share))) == expected


@pytest.mark.parametrize("seed", range(20))
def test_no_other_border_between_groups_is_nearer_to_the_shares(seed):
    rng = random.Random(seed)
    sizes = [rng.randint(1, 9) for _ in range(rng.randint(3, 12))]
    names = [[f"s{index}_{n}" for n in range(size)] for index, size in enumerate(sizes)]
    shares = {"val_share": rng.choice([0.05, 0.2, 0.4]), "test_share": rng.choice([0.05, 0.3, 0.55])}
    split = split_names(shuffled(sum(names, [])), release(group=r"^s\d+", **shares))
    borders = itertools.combinations(range(1, len(sizes)), 2)  # first group of val, first group of test

    def distances(border):  # test is served first; of two that are equally near the smaller one is taken
        val, test = sum(sizes[border[0] : border[1]]), sum(sizes[border[1] :])
        wanted = {name: Fraction(str(share)) * sum(sizes) for name, share in shares.items()}
        return abs(test - wanted["test_share"]), test, abs(val - wanted["val_share"]), val

    val, test = min(borders, key=distances)
    assert [split[name] for name in ("train", "val", "test")] == [
        sum(part, []) for part in (names[:val], names[val:test], names[test:])
    ]


def test_groups_are_in_the_order_of_their_first_image():
    names = ["1_b", "2_a", "3_b", "4_a", "5_c"]
    split = split_names(shuffled(names), release(val_share=0.1, group="[a-z]$"))
    assert split == {"train": ["1_b", "3_b", "2_a", "4_a"], "val": ["5_c"], "test": []}
    split = split_names(shuffled(names[:4]), release(val_share=0.1, group="[a-z]$"))
    assert split == {"train": ["1_b", "3_b"], "val": ["2_a", "4_a"], "test": []}


def test_a_pattern_takes_the_place_of_a_share():
    patterns = {"train": "t*", "val": "v*"}
    names = ["t1", "t2", "t3", "t4", "v1", "other"]
    split = split_names(names, release(splits=patterns, val_share=0.5, test_share=0.25))
    assert split == {"train": ["t1", "t2", "t3"], "val": ["v1"], "test": ["t4"]}


def test_patterns_tell_capitals_apart():
    patterns = {"train": "train_*", "test": "test[AB]_*"}
    split = split_names(["train_1", "Train_2", "testA_1", "testa_2", "testC_3"], release(splits=patterns))
    assert split == {"train": ["train_1"], "val": [], "test": ["testA_1"]}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"splits": {"train": "tr_*"}},
            r"got 'tr_\*', which matches none of \['a_1', 'a_2', 'a_3'\] …; fix the pattern",
        ),
        (
            {"splits": {"train": "*", "val": "b*"}},
            "each image, .* in one split, but 'b_1' of group 'b_1' is in train and val",
        ),
        ({"splits": {"train": "*_1", "test": "*_2"}, "group": "^.."}, "'a_2' of group 'a_' is in train and test"),
        (
            {"group": r"^[ab]\d"},
            r"`group` must match in .* every image, but '\^\[ab\]\\\\d' does not match 'a_1'; fix the pattern",
        ),
        (
            {"group": "^.", "val_share": 0.1, "test_share": 0.1},
            r"at least 3 groups, got 2, \['a', 'b'\]; set `test_share` and `val_share` to 0, or add images",
        ),
        ({"group": "_", "val_share": 0.1}, r"at least 2 groups, got 1, \['_'\]; set `val_share` to 0"),
    ],
)
def test_refuses_splits_that_cannot_be(section, message):
    with pytest.raises(ValueError, match=message):
        split_names(["b_1", "a_3", "a_2", "a_1"], release(**section))


# --- the folder


def write_images(folder, *names):
    for name in names:
        Image.new("RGB", (2, 2)).save(folder / name)


def test_pairs_files_of_any_image_format_and_ignores_others(tmp_path):
    write_images(tmp_path, "a_2.jpg", "a_2_anno.png", "a_10.bmp", "a_10_anno.tif", "b anno.png", "b anno_anno.BMP")
    (tmp_path / "Grade.csv").write_text("name, grade")
    (tmp_path / "more").mkdir()
    pairs = [("a_2.jpg", "a_2_anno.png"), ("a_10.bmp", "a_10_anno.tif"), ("b anno.png", "b anno_anno.BMP")]
    items = [{"image": str(tmp_path / image), "label": str(tmp_path / mask), "name": image} for image, mask in pairs]
    assert read_flat_folder(tmp_path, release(mask_suffix="_anno")) == {"train": items, "val": [], "test": []}


def test_names_images_without_mask_and_masks_without_image(tmp_path):
    write_images(tmp_path, "a.png", "b.png", "b_mask.png")
    message = r"must have a mask beside it \(`mask_suffix` is '_mask'\), but \['a.png'\] have none; add it"
    with pytest.raises(FileNotFoundError, match=f"{re.escape(str(tmp_path))} {message}"):
        read_flat_folder(tmp_path, release(mask_suffix="_mask"))
    (tmp_path / "a.png").rename(tmp_path / "c_mask.png")
    with pytest.raises(FileNotFoundError, match=r"must have an image beside it .*, but \['c_mask.png'\] have none"):
        read_flat_folder(tmp_path, release(mask_suffix="_mask"))


def test_refuses_two_images_or_masks_of_one_name(tmp_path):
    write_images(tmp_path, "a.png", "a.jpg", "a_mask.png")
    with pytest.raises(ValueError, match=r"one image per name, ignoring suffixes, but repeats \['a'\]; rename"):
        read_flat_folder(tmp_path, release(mask_suffix="_mask"))
    (tmp_path / "a.jpg").rename(tmp_path / "a_mask.jpg")
    with pytest.raises(ValueError, match=r"one image per name, ignoring suffixes, but repeats \['a_mask'\]; rename"):
        read_flat_folder(tmp_path, release(mask_suffix="_mask"))
