import csv
import json
import re

import numpy as np
import pytest
from conftest import BUNDLE
from PIL import Image
from synthetic_slide import tissue_tile, write_slide

from scripts.data.items import labelled_images
from scripts.data.labels import read_label_file
from scripts.errors import BundleError
from scripts.slides.tiling.cut_slides import cut_slides, format_report
from scripts.slides.tiling.slide_labels import read_slide_labels, split_slides

CLASSES = ["tumor", "stroma", "lymphocytes"]
DEMO = str(BUNDLE / "configs" / "dataset_demo.json")  # 1 um per pixel
GLASS = 245


def write_table(path, rows, header=("slide", *CLASSES)):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Two slides of 512 x 768 px, whose first 512 columns are tissue; the second does not say its resolution."""
    folder = tmp_path_factory.mktemp("slides")
    pixels = {}
    for index, (name, mpp) in enumerate({"a.tif": 1.0, "b.tif": None}.items()):
        tiles = [[tissue_tile(10 * index + 2 * row + column) for column in range(2)] for row in range(2)]
        image = np.hstack([np.vstack([np.hstack(row) for row in tiles]), np.full((512, 256, 3), GLASS, np.uint8)])
        pixels[name] = image
        write_slide(folder / name, image, mpp=mpp)
    return folder, pixels


def test_tissue_patches_are_cut_at_the_resolution_with_their_slides_labels(slides, tmp_path):
    folder, pixels = slides
    rows = [["a.tif", 1, 0, 1, "", "p1"], ["b.tif", 0, 1, 0, "0,5", "p2"]]
    table = write_table(folder / "cut.csv", rows, ("slide", *CLASSES, "mpp", "patient"))
    report = cut_slides(table, tmp_path / "out", DEMO, patch_size=128)
    names = {path.name for path in (tmp_path / "out" / "train" / "img").iterdir()}
    places = {(x, y) for x in range(0, 512, 128) for y in range(0, 512, 128)}
    expected = {f"a_x{x}_y{y}[1 0 1].png" for x, y in places}
    expected |= {f"b_x{x}_y{y}[0 1 0].png" for x in (0, 128) for y in (0, 128)}  # half as many pixels per side
    assert names == expected
    halved = pixels["b.tif"].reshape(256, 2, 384, 2, 3).mean(axis=(1, 3))
    for name in names:
        slide, x, y = re.match(r"(\w)_x(\d+)_y(\d+)", name).groups()
        truth = pixels["a.tif"] if slide == "a" else halved
        with Image.open(tmp_path / "out" / "train" / "img" / name) as patch:
            part = truth[int(y) : int(y) + 128, int(x) : int(x) + 128]
            assert np.abs(np.asarray(patch).astype(float) - part).max() <= 1
    assert {tuple(item["label"]) for item in labelled_images(tmp_path / "out", CLASSES)} == {(1, 0, 1), (0, 1, 0)}
    labels = read_label_file(tmp_path / "out" / "labels.csv", CLASSES)
    assert labels == {name: [1, 0, 1] if name[0] == "a" else [0, 1, 0] for name in names}
    with open(tmp_path / "out" / "labels.csv", encoding="utf-8") as file:
        assert {(row["slide"], row["patient"]) for row in csv.DictReader(file)} == {("a", "p1"), ("b", "p2")}
    assert report["train"]["patches"] == 20 and report["train"]["per_class"]["tumor"] == 16
    assert (
        "noisy" in format_report(report) and "noisy" in json.loads((tmp_path / "out/prepare.json").read_text())["note"]
    )


def test_the_table_s_pixel_size_rules_over_the_file_s(slides, tmp_path):
    """As it does where slides are segmented: a.tif states 1 um per pixel, by which it would have 4 x 4 patches."""
    table = write_table(slides[0] / "mpp.csv", [["a.tif", 1, 0, 1, 0.5]], ("slide", *CLASSES, "mpp"))
    assert cut_slides(table, tmp_path / "out", DEMO, patch_size=128)["train"]["patches"] == 2 * 2


def test_no_more_patches_than_asked_for_and_val_by_patient(slides, tmp_path):
    folder, _ = slides
    table = write_table(
        folder / "val.csv", [["a.tif", 1, 0, 1, ""], ["b.tif", 0, "", 0, 1]], ("slide", *CLASSES, "mpp")
    )
    report = cut_slides(table, tmp_path / "out", DEMO, patch_size=128, most=3, val_share=0.5)
    images = {split: [p.name for p in (tmp_path / "out" / split / "img").iterdir()] for split in ("train", "val")}
    assert {split: len(names) for split, names in images.items()} == {"train": 3, "val": 3}
    assert {name[0] for name in images["train"]}.isdisjoint({name[0] for name in images["val"]})
    unknown = [name for names in images.values() for name in names if name[0] == "b"]
    assert all("[" not in name for name in unknown)  # an unknown label is in no name
    assert report["val"]["slides"] == 1 and not (tmp_path / "out" / "val" / "mask").exists()


def test_groups_stay_together(slides):
    folder, _ = slides
    rows = [["a.tif", 1, 0, 0, "p"], ["b.tif", 1, 0, 0, "p"]]
    found = read_slide_labels(write_table(folder / "groups.csv", rows, ("slide", *CLASSES, "group")), CLASSES)
    assert [slide.group for slide in found] == ["p", "p"] and split_slides(found, 0) == {"train": found}
    with pytest.raises(BundleError, match=r"two or more patients or groups, got \['p'\]"):
        split_slides(found, 0.5)
    with pytest.raises(BundleError, match=r"`val_share` must be in \[0, 1\), got 20"):
        split_slides(found, 20)
    many = [found[0].__class__(found[0].path, [1], f"p{index // 3}", None) for index in range(30)]
    parts = split_slides(many, 0.2)
    groups = {split: {slide.group for slide in part} for split, part in parts.items()}
    assert groups["train"].isdisjoint(groups["val"]) and len(parts["val"]) == 6 and len(parts["train"]) == 24


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["a.tif", 1, 2, 0], r"row 2: the label of 'a.tif' must be 0, 1 or empty .* got \['1', '2', '0'\]"),
        (["c.tif", 1, 0, 0], "row 2: `slide` must be a file, got 'c.tif', but .* does not exist; write paths"),
    ],
)
def test_a_wrong_row_is_named(slides, row, message):
    with pytest.raises((BundleError, FileNotFoundError), match=message):
        read_slide_labels(write_table(slides[0] / "wrong.csv", [row]), CLASSES)


def test_tables_and_slides_that_give_nothing_are_refused(slides, tmp_path):
    folder, _ = slides
    with pytest.raises(BundleError, match=r"got \['a'\] more than once"):
        read_slide_labels(write_table(folder / "twice.csv", [["a.tif", 1, 0, 0]] * 2), CLASSES)
    with pytest.raises(BundleError, match="got none"):
        read_slide_labels(write_table(folder / "none.csv", []), CLASSES)
    write_slide(tmp_path / "glass.tif", np.full((512, 512, 3), GLASS, np.uint8))
    table = write_table(tmp_path / "glass.csv", [["glass.tif", 1, 0, 0]])
    with pytest.raises(BundleError, match=r"no patch of 128 px was found in \['glass.tif'\]"):
        cut_slides(table, tmp_path / "out", DEMO, patch_size=128)
    assert not (tmp_path / "out").exists()
    overlay = json.loads((BUNDLE / "configs" / "dataset_demo.json").read_text()) | {"model_mpp": None}
    (tmp_path / "dataset_x.json").write_text(json.dumps(overlay))
    with pytest.raises(BundleError, match="`mpp` must be the patches' micrometres per pixel"):
        cut_slides(table, tmp_path / "out", str(tmp_path / "dataset_x.json"))
