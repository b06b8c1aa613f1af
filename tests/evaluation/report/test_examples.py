import base64
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from some_classes import some_classes

from scripts.evaluation.report.examples import ValExamples, best_median_worst, embedded
from scripts.files.pictures import write_mask

PALETTE = [[255, 255, 255], [200, 0, 0], [0, 100, 0]]
CLASSES = some_classes(["a", "b"], mask_values={"9": 1}, palette=PALETTE)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"a": 0.5, "b": 0.9, "c": 0.1, "d": 0.6, "e": 0.2}, {"best": "b", "median": "a", "worst": "c"}),
        ({"a": 0.5, "b": 0.9, "c": 0.1, "d": 0.6}, {"best": "b", "median": "a", "worst": "c"}),
        ({"b": 0.5, "a": 0.5, "c": 0.5}, {"best": "a", "median": "b", "worst": "c"}),
        ({"a": 0.1, "b": 0.9}, {"best": "b", "worst": "a"}),
        ({"a": 0.1}, {"best": "a"}),
        ({}, {}),
    ],
)
def test_best_median_and_worst_are_chosen_by_score_and_none_twice(scores, expected):
    assert best_median_worst(scores) == expected


@pytest.fixture
def folders(tmp_path):
    """A run folder and a data set with a val image ``a.png`` of 6x4 px, grey; file value 9 is our tissue 1."""
    for kind in ("img", "mask"):
        (tmp_path / "data" / "val" / kind).mkdir(parents=True)
    Image.new("RGB", (6, 4), (100, 100, 100)).save(tmp_path / "data" / "val" / "img" / "a.png")
    Image.new("L", (6, 4), 9).save(tmp_path / "data" / "val" / "mask" / "a.png")
    write_mask(tmp_path / "run/predictions/segmenter_val/a.png", np.full((4, 6), 2), PALETTE)
    write_mask(tmp_path / "run/predictions/classifier_val/a.png", np.zeros((4, 6), int), PALETTE)
    return tmp_path / "run", tmp_path / "data"


def test_a_row_shows_what_each_stage_saw(folders):
    row = ValExamples(*folders, CLASSES).row("a.png")
    assert list(row) == ["image", "pseudo mask", "prediction", "truth"]
    colours = {text: picture.getpixel((5, 3)) for text, picture in row.items()}
    assert colours["image"] == colours["pseudo mask"] == (100, 100, 100)  # value 0 is left clear
    assert colours["prediction"] == (50, 100, 50) and colours["truth"] == (150, 50, 50)


def test_heat_maps_are_of_the_classes_that_a_mask_shows_and_of_the_same_channel(folders):
    def cams(image):  # class a left, class b right
        assert image.shape == (1, 3, 4, 6) and image.mean() == pytest.approx(100 / 255)
        left = torch.zeros(1, 2, 4, 6)
        left[:, 0, :, :3], left[:, 1, :, 3:] = 1, 1
        return left

    row = ValExamples(*folders, CLASSES, cams).row("a.png")  # a in the truth, b in the prediction
    assert list(row)[1:3] == ["heat map of a", "heat map of b"]
    blue, red = (50, 50, 114), (114, 50, 50)
    assert [row[f"heat map of {name}"].getpixel(place) for name in "ab" for place in ((0, 0), (5, 3))] == [
        *(red, blue),
        *(blue, red),
    ]
    (folders[0] / "predictions/segmenter_val/a.png").unlink()
    assert "heat map of b" not in ValExamples(*folders, CLASSES, cams).row("a.png")


def test_an_image_or_data_set_that_is_gone_is_an_error(folders):
    with pytest.raises(FileNotFoundError, match="b.png is no longer among the val images"):
        ValExamples(*folders, CLASSES).row("b.png")
    with pytest.raises(FileNotFoundError, match="elsewhere/val does not exist"):
        ValExamples(folders[0], "elsewhere", CLASSES)


@pytest.mark.parametrize(("size", "shown"), [((1280, 320), (640, 160)), ((200, 1600), (80, 640)), ((64, 64), (64, 64))])
def test_pictures_carry_their_data_and_are_small(size, shown):
    picture = Image.new("RGB", size, (10, 120, 200))
    element = embedded(picture)
    with Image.open(BytesIO(base64.b64decode(element["src"].removeprefix("data:image/jpeg;base64,")))) as found:
        assert found.size == shown == (element["width"], element["height"])
        assert found.getpixel((3, 3)) == pytest.approx((10, 120, 200), abs=3)
    assert picture.size == size
