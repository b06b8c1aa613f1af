import csv
import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image
from some_classes import some_classes

from scripts.data.few_shot import (
    draw_images,
    has_pixel_masks,
    require_same_classes,
    require_scored_split,
    source_file,
    write_pixel_masks,
)
from scripts.data.items import labelled_images
from scripts.evaluation.comparison import write_comparison
from scripts.files.atomic import write_json

CLASSES = ["gland", "rest"]


@pytest.fixture
def dataset_dir(tmp_path):
    """10 labelled training images; 6 of them have masks, of a file type of their own."""
    for kind in ("img", "mask"):
        (tmp_path / "data" / "train" / kind).mkdir(parents=True)
    for index in range(10):
        name = f"p{index}[{index % 2} 1]"
        Image.new("RGB", (7, 5), (index, 0, 0)).save(tmp_path / "data" / "train" / "img" / f"{name}.png")
        if index < 6:
            mask = np.full((5, 7), 0, dtype=np.uint8)
            mask[:, :index] = 40 * index
            Image.fromarray(mask).save(tmp_path / "data" / "train" / "mask" / f"{name}.bmp")
    return tmp_path / "data"


def draw(dataset_dir, num_images, seed=0, pixel_masks=True):
    return draw_images(dataset_dir, num_images, seed, pixel_masks, CLASSES)


@pytest.mark.parametrize("pixel_masks", [True, False])
def test_a_smaller_draw_is_the_beginning_of_a_larger_one(dataset_dir, pixel_masks):
    largest = draw(dataset_dir, 6, 0, pixel_masks)
    names = [item["name"] for item in largest]
    assert len(set(names)) == 6 and names != sorted(names)
    assert all(draw(dataset_dir, count, 0, pixel_masks) == largest[:count] for count in range(2, 6))
    assert draw(dataset_dir, 6, 1, pixel_masks) != largest


def test_only_images_with_masks_are_drawn_to_learn_from_pixels(dataset_dir):
    for item in draw(dataset_dir, 6):
        assert item["label"] == str(dataset_dir / "train" / "mask" / item["name"].replace(".png", ".bmp"))
    assert {item["name"][:2] for item in draw(dataset_dir, 6)} == {f"p{index}" for index in range(6)}


def test_labels_of_all_images_are_drawn_otherwise(dataset_dir):
    drawn = draw(dataset_dir, 10, pixel_masks=False)
    assert sorted(drawn, key=lambda item: item["name"]) == labelled_images(dataset_dir, CLASSES)


@pytest.mark.parametrize(
    ("num_images", "pixel_masks", "rule"),
    [
        (1, True, "2..6, the number of images in .* with a mask"),
        (7, True, "2..6"),
        (11, False, "2..10, .* image-level label"),
    ]
    + [(2.0, True, "2..6"), ("5", False, "2..10")],
)
def test_refuses_more_images_than_there_are(dataset_dir, num_images, pixel_masks, rule):
    with pytest.raises(ValueError, match=f"`num_images` must be in {rule}"):
        draw(dataset_dir, num_images, pixel_masks=pixel_masks)


def test_pixel_masks_are_found_where_they_are(dataset_dir, tmp_path):
    assert has_pixel_masks(dataset_dir) and not has_pixel_masks(tmp_path)
    (tmp_path / "train" / "mask").mkdir(parents=True)
    assert not has_pixel_masks(tmp_path)  # an empty folder


def test_images_of_two_sizes_are_an_error(dataset_dir):
    Image.new("RGB", (6, 5)).save(dataset_dir / "train" / "img" / "p3[1 1].png")
    with pytest.raises(ValueError, match="training images must have the same size, got .*'p3"):
        draw(dataset_dir, 6)


def test_something_must_be_there_to_score_on(tmp_path):
    with pytest.raises(ValueError, match="must have val or test"):
        require_scored_split(tmp_path)
    (tmp_path / "test" / "mask").mkdir(parents=True)
    Image.new("L", (1, 1)).save(tmp_path / "test" / "mask" / "a.png")
    require_scored_split(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"), [(["rest", "gland"], ""), (["rest", "lesion"], "gland → lesion"), (["gland", "rest"], None)]
)
def test_channels_must_mean_what_they_meant(tmp_path, caplog, names, message):
    caplog.set_level("INFO")
    source = some_classes(CLASSES, False, classifier_values=[1, 0])  # channels: rest, gland
    write_json(tmp_path / "configs" / "train.json", asdict(source))
    classes = some_classes(names, background=False)
    if message is None:
        with pytest.raises(ValueError, match=r"in the order of .*\['rest', 'gland'\], got \['gland', 'rest'\]"):
            require_same_classes(tmp_path, classes)
    else:
        require_same_classes(tmp_path, classes)
        assert message in caplog.text
    require_same_classes(None, classes)
    require_same_classes(tmp_path / "weights only", classes)


def test_pixel_masks_are_written_in_our_values_and_edited_ones_kept(dataset_dir, tmp_path):
    items = draw(dataset_dir, 6)
    classes = some_classes(["rest", "gland"], background=False, mask_values={"0": 0, "1-255": 1})
    write_pixel_masks(items[:2], tmp_path / "masks", classes)
    edited = tmp_path / "masks" / items[0]["name"]
    edited.write_bytes(b"edited")
    write_pixel_masks(items, tmp_path / "masks", classes)
    assert edited.read_bytes() == b"edited"
    for item in items[1:]:
        with Image.open(tmp_path / "masks" / item["name"]) as mask:
            assert mask.mode == "P"
            assert (np.asarray(mask) == (np.arange(7) < int(item["name"][1]))[None]).all()
    manifest = json.loads((tmp_path / "masks" / "manifest.json").read_text())
    assert manifest == {"masks": [item["name"] for item in items]}


def test_a_mask_value_without_a_meaning_is_an_error(dataset_dir, tmp_path):
    with pytest.raises(ValueError, match=r"p\d.* masks must only have values that `mask_values` lists"):
        write_pixel_masks(draw(dataset_dir, 6), tmp_path / "masks", some_classes(["rest", "gland"], background=False))


def test_the_source_must_be_a_finished_run(tmp_path):
    with pytest.raises(ValueError, match="`source_dir` must be the folder of the run to continue from, got null"):
        source_file(None, "models/model.pt")
    with pytest.raises(FileNotFoundError, match="models/model.pt is missing"):
        source_file(tmp_path, "models/model.pt")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").touch()
    assert source_file(str(tmp_path), "models/model.pt") == tmp_path / "models" / "model.pt"


def scores(gland_iou, rest_iou, mean_iou=0.25):
    classes = {"gland": {"iou": gland_iou, "dice": 0.5}, "rest": {"iou": rest_iou, "dice": None}}
    return {"protocols": {"published": {"classes": classes, "mean_iou": mean_iou, "mean_dice": 0.75}}}


@pytest.mark.parametrize(("before", "after", "warned"), [(0.5, 0.4, True), (0.4, 0.5, False), (None, 0.5, False)])
def test_an_adaptation_that_makes_it_worse_says_so(tmp_path, caplog, before, after, warned):
    for name, mean in {"source_val": before, "segmenter_val": after}.items():
        write_json(tmp_path / "scores" / f"{name}.json", scores(0.2, 0.3, mean))
    write_comparison(tmp_path, "source", "segmenter")
    assert ("The mean IoU fell (val, published: 0.500 → 0.400)." in caplog.text) == warned


def test_scores_before_and_after_stand_side_by_side(tmp_path, caplog):
    caplog.set_level("INFO")
    for name, content in {"source_val": scores(0.2, None), "segmenter_val": scores(0.6, 0.1)}.items():
        write_json(tmp_path / "scores" / f"{name}.json", content)
    rows = write_comparison(tmp_path, "source", "segmenter")
    assert rows == [
        ["val", "published", "gland", 0.2, 0.6, 0.5, 0.5],
        ["val", "published", "rest", None, 0.1, None, None],
        ["val", "published", "mean", 0.25, 0.25, 0.75, 0.75],
    ]
    with open(tmp_path / "scores" / "adaptation.csv", newline="", encoding="utf-8-sig") as file:
        table = list(csv.reader(file))
    assert table[1:] == [["" if cell is None else str(cell) for cell in row] for row in rows]
    assert table[0] == ["split", "protocol", "class", "iou_before", "iou_after", "dice_before", "dice_after"]
    assert "0.2000 →  0.6000" in caplog.text and "- →  0.1000" in caplog.text
