import numpy as np
import pytest
from conftest import BUNDLE

from scripts.data.classes import read_overlay
from scripts.inference.prediction import Area, Prediction, areas_of, counted


def prediction(mask, classes, **facts):
    image = np.full((*mask.shape, 3), 100, dtype=np.uint8)
    return Prediction(mask, np.zeros(mask.shape), None, classes, areas_of(counted(mask), classes, None), image, **facts)


def test_areas_are_shares_of_the_tissue_and_mm2_where_the_resolution_is_known():
    _, classes = read_overlay(BUNDLE / "configs" / "dataset_demo.json")
    mask = np.array([[0, 0, 1, 1], [0, 1, 3, 3]], dtype=np.uint8)
    assert areas_of(counted(mask), classes, (0.5, 2.0)) == {
        "tumor": Area(3, 0.6, pytest.approx(3e-6)),
        "stroma": Area(0, 0.0, 0.0),
        "lymphocytes": Area(2, 0.4, pytest.approx(2e-6)),
    }
    assert areas_of(counted(0 * mask), classes, None) == dict.fromkeys(classes.class_names, Area(0, None, None))


def test_classes_without_background_are_all_drawn_and_what_lies_outside_is_not():
    _, classes = read_overlay(BUNDLE / "configs" / "dataset_glas.json")  # 0 rest, 1 gland; outside is 2
    mask = np.zeros((60, 90), dtype=np.uint8)
    mask[:, 30:60], mask[:, 60:] = 1, 2
    found = prediction(mask, classes)
    assert {name: area.pixels for name, area in found.areas.items()} == {"rest": 1800, "gland": 1800}
    plot = np.asarray(found.plot())
    rest, gland, outside = plot[100, 50], plot[100, 256], plot[100, 480]
    assert outside.tolist() == [100] * 3
    for colour, pixel in zip(classes.palette, (rest, gland)):
        assert np.abs(pixel - (75 + 0.25 * np.array(colour))).max() <= 0.51


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 3), (171, 512)), ((600, 700), (600, 700)), ((4000, 1000), (2048, 512))]
)
def test_plots_are_neither_too_small_nor_too_large(shape, size):
    _, classes = read_overlay(BUNDLE / "configs" / "dataset_demo.json")
    plot = prediction(np.ones(shape, dtype=np.uint8), classes).plot()
    assert plot.width == size[1] and size[0] < plot.height < size[0] + 100


def test_predictions_are_no_values_to_be_compared():
    _, classes = read_overlay(BUNDLE / "configs" / "dataset_demo.json")
    one, other = (prediction(np.ones((2, 2), dtype=np.uint8), classes) for _ in range(2))
    assert one == one and one != other and len({one, other}) == 2
