import csv
import json

import numpy as np
import pytest
from some_classes import some_classes

from scripts.slides.outputs.areas import AreaCounter

CLASSES = some_classes(["tumor", "stroma", "necrosis"])


def counted(classes, entropy, parts=3):
    counter = AreaCounter()
    for rows in zip(np.array_split(classes, parts), np.array_split(entropy, parts)):
        counter.add(*rows)
    return counter


def test_areas_shares_and_means_are_those_of_the_pixels():
    rng = np.random.default_rng(0)
    classes, entropy = rng.integers(0, 3, (50, 40), dtype=np.uint8), rng.integers(0, 256, (50, 40), dtype=np.uint8)
    table = counted(classes, entropy).table(CLASSES, (0.5, 0.25))
    tissue = (classes > 0).sum()
    for row, value in zip(table, (1, 2)):
        pixels = (classes == value).sum()
        assert row[:3] == [CLASSES.value_names[value], value, pixels]
        assert row[3:] == pytest.approx([pixels * 0.125e-6, pixels / tissue, entropy[classes == value].mean() / 255])
    assert table[2] == ["necrosis", 3, 0, 0, 0, None]
    assert table[3][:3] == ["tissue", None, tissue]
    assert table[3][3:] == pytest.approx([tissue * 0.125e-6, 1, entropy[classes > 0].mean() / 255])


def test_without_background_the_rest_counts_as_tissue():
    counter = counted(np.array([[0, 0, 1, 2, 2]], dtype=np.uint8), np.zeros((1, 5), dtype=np.uint8), 1)
    table = counter.table(some_classes(["rest", "gland"], background=False), (1, 1))
    assert [row[:3] for row in table] == [["rest", 0, 2], ["gland", 1, 1], ["tissue", None, 3]]


def test_files_say_the_same_and_nothing_of_nothing(tmp_path):
    counted(np.zeros((4, 4), dtype=np.uint8), np.zeros((4, 4), dtype=np.uint8)).save(tmp_path, CLASSES, (0.5, 0.5))
    with open(tmp_path / "areas.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    content = json.loads((tmp_path / "areas.json").read_text())
    assert [row["class"] for row in rows] == ["tumor", "stroma", "necrosis", "tissue"]
    assert rows[-1]["pixels"] == "0" and rows[-1]["share_of_tissue"] == rows[0]["mean_uncertainty"] == ""
    assert content["tissue"]["share_of_tissue"] is None and content["mpp"] == {"y": 0.5, "x": 0.5}
    assert [entry["class"] for entry in content["classes"]] == ["tumor", "stroma", "necrosis"]
