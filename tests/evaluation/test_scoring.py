import csv
import json
import logging
from functools import partial

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from PIL import Image
from some_classes import some_classes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from scripts.data.batches import SameSizeBatches
from scripts.evaluation.scoring import ScoreHandler, score_splits
from scripts.files.pictures import confusion_picture
from scripts.training.augmentation import PrepareBatch

NAMES = ["background", "tumor", "stroma", "necrosis", "fat"]
PALETTE = [[255, 255, 255], [200, 50, 60], [0, 250, 0], [60, 100, 220], [250, 160, 0]]
CLASSES = some_classes(NAMES[1:], palette=PALETTE)


def item(name, pred, label, pred_with_background=None, colour=(100, 60, 20), scores=(0.0, 0.0, 0.0, 0.0)):
    """An evaluator's item; masks as nested lists, the image of one colour and each score channel of one value."""
    pred, label = torch.tensor(pred)[None], torch.tensor(label)[None]
    size = pred.shape[1:]
    return {
        "name": name,
        "image": (torch.tensor(colour) / 255)[:, None, None].expand(3, *size),
        "label": label,
        "pred": pred,
        "pred_with_background": pred if pred_with_background is None else torch.tensor(pred_with_background)[None],
        "scores": torch.tensor(scores)[:, None, None].expand(-1, *size),
    }


def random_item(name, size, values, seed):
    """Necrosis, value 3, is never true but sometimes predicted; fat, value 4, is neither."""
    rng = np.random.default_rng(seed)
    label = rng.choice(values, size)
    pred = np.where(rng.random(size) < 0.6, label, rng.integers(1, 4, size))
    return item(name, pred.tolist(), label.tolist(), np.where(rng.random(size) < 0.3, 0, pred).tolist())


def run(handler, items, batch_size=2):
    engine = Engine(lambda engine, batch: batch)
    handler.attach(engine)
    engine.run([items[start : start + batch_size] for start in range(0, len(items), batch_size)])
    return handler


def score_handler(folder, title="segmenter_val", classes=CLASSES, **settings):
    return ScoreHandler(folder, title, classes, **settings)


def share(part, whole):
    return part / whole if whole else None


def slow_scores(items, key, names, exclude_background):
    """Scores from counting the pixels of all items; ``None`` where there is nothing to count."""
    pairs = [pair for i in items for pair in zip(i[key].flatten().tolist(), i["label"].flatten().tolist())]
    confusion = [[pairs.count((p, t)) for p in range(len(names))] for t in range(len(names))]
    pairs = [(p, t) for p, t in pairs if t != 0 or not exclude_background]
    classes, weighted = {}, 0.0
    for k in range(int(exclude_background), len(names)):
        hits, true, found = pairs.count((k, k)), sum(t == k for _, t in pairs), sum(p == k for p, _ in pairs)
        iou, dice, recall = share(hits, true + found - hits), share(2 * hits, true + found), share(hits, true)
        classes[names[k]] = {"iou": iou, "dice": dice, "recall": recall, "pixels": true}
        weighted += true * (iou or 0)

    def mean(key):
        values = [scores[key] for scores in classes.values() if scores[key] is not None]
        return share(sum(values), len(values))

    return {
        "mean_iou": mean("iou"),
        "mean_dice": mean("dice"),
        "frequency_weighted_iou": share(weighted, len(pairs)),
        "pixel_accuracy": share(sum(p == t for p, t in pairs), len(pairs)),
        "mean_accuracy": mean("recall"),
        "classes": classes,
        "confusion": confusion,
    }


def assert_border_scores(borders, classes):
    """By distance to the border, pixels and right ones add up to those of the class."""
    assert borders["classes"].keys() == classes.keys()
    for name, scores in classes.items():
        pixels, accuracy = borders["classes"][name]["pixels"], borders["classes"][name]["accuracy"]
        assert sum(pixels) == scores["pixels"]
        right = sum(share * count for share, count in zip(accuracy, pixels) if count)
        assert right == pytest.approx((scores["recall"] or 0) * scores["pixels"], abs=1e-3)


def assert_scores(found, expected):
    """Equal to six digits, as nested dictionaries of numbers, matrices and ``None``; scores at borders add up."""
    if "borders" in found:
        found = dict(found)
        assert_border_scores(found.pop("borders"), found["classes"])
    assert list(found) == list(expected)
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_scores(found[key], value)
        elif value is None:
            assert found[key] is None, key
        else:
            assert np.allclose(found[key], value, rtol=0, atol=1e-6), key


def read_table(path):
    """The header and the rows of a CSV file, numbers as numbers and empty cells as ``None``."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        header, *rows = csv.reader(file)

    def value(cell):
        return None if cell == "" else float(cell) if cell.replace(".", "").isdigit() else cell

    return header, [[value(cell) for cell in row] for row in rows]


def assert_rows(found, expected):
    """Equal to six digits, as rows of names, numbers and ``None``."""
    assert [[cell if isinstance(cell, str) else cell is None for cell in row] for row in found] == [
        [cell if isinstance(cell, str) else cell is None for cell in row] for row in expected
    ]
    for row, expected_row in zip(found, expected, strict=True):
        numbers = [(a, b) for a, b in zip(row, expected_row, strict=True) if isinstance(b, (int, float))]
        assert [a for a, _ in numbers] == pytest.approx([b for _, b in numbers], abs=1e-6)


PROTOCOLS = {"published": ("pred", True), "with_background": ("pred_with_background", False)}


@pytest.fixture(scope="module")
def items():
    """Images of several sizes; the last is background alone."""
    return [
        random_item("a.png", (6, 5), [0, 1, 2], seed=0),
        random_item("b.png", (4, 9), [0, 2], seed=1),
        random_item("c.png", (3, 3), [0], seed=2),
    ]


@pytest.fixture(scope="module")
def scored(items, tmp_path_factory):
    """The folder of a scored split, and what an independent computation says."""
    folder = tmp_path_factory.mktemp("scored")
    handler = run(score_handler(folder, picture_names=[]), items)
    expected = {name: slow_scores(items, key, NAMES, exclude) for name, (key, exclude) in PROTOCOLS.items()}
    return folder, handler.result, expected


# --- tables


def test_json_has_the_scores_of_both_protocols(scored):
    folder, result, expected = scored
    found = json.loads((folder / "scores" / "segmenter_val.json").read_text())
    assert found == result
    assert list(found) == ["title", "images", "protocols"]
    assert (found["title"], found["images"]) == ("segmenter_val", 3)
    assert_scores(found["protocols"], expected)
    assert expected["published"]["mean_iou"] != pytest.approx(expected["with_background"]["mean_iou"], abs=0.01)


def test_undefined_scores_are_null(scored):
    found = scored[1]["protocols"]["published"]["classes"]
    assert found["fat"] == {"iou": None, "dice": None, "recall": None, "pixels": 0.0}
    assert found["necrosis"] == {"iou": 0.0, "dice": 0.0, "recall": None, "pixels": 0.0}


def test_the_class_table_has_the_same_numbers(scored):
    folder, _, expected = scored
    header, rows = read_table(folder / "scores" / "segmenter_val.csv")
    assert header == ["protocol", "class", "iou", "dice", "recall", "pixels"]
    expected_rows = []
    for protocol, scores in expected.items():
        for name, of_class in scores["classes"].items():
            expected_rows.append([protocol, name, *of_class.values()])
        pixels = sum(of_class["pixels"] for of_class in scores["classes"].values())
        means = [scores[key] for key in ("mean_iou", "mean_dice", "mean_accuracy")]
        expected_rows.append([protocol, "mean", *means, pixels])
    assert_rows(rows, expected_rows)


def test_the_image_table_has_a_row_per_image(scored, items):
    header, rows = read_table(scored[0] / "scores" / "segmenter_val_images.csv")
    assert header == ["image", "mean_iou_published", "mean_iou_with_background"]
    expected = [
        [i["name"], *(slow_scores([i], key, NAMES, exclude)["mean_iou"] for key, exclude in PROTOCOLS.values())]
        for i in items
    ]
    assert expected[2][1] is None  # background alone: nothing to score
    assert_rows(rows, expected)


def test_a_split_of_background_alone_has_no_published_scores(tmp_path, items):
    result = run(score_handler(tmp_path), items[2:]).result["protocols"]
    assert_scores(result["published"], slow_scores(items[2:], "pred", NAMES, True))
    assert result["published"]["mean_iou"] is None and result["with_background"]["mean_iou"] is not None
    _, rows = read_table(tmp_path / "scores" / "segmenter_val.csv")
    assert [row for row in rows if row[:2] == ["published", "mean"]] == [["published", "mean", None, None, None, 0.0]]


def test_the_picture_of_confusion_has_the_rows_that_are_scored(tmp_path, items):
    result = run(score_handler(tmp_path), items).result["protocols"]
    for protocol, first in (("published", 1), ("with_background", 0)):
        expected = confusion_picture(np.array(result[protocol]["confusion"])[first:], NAMES)
        with Image.open(tmp_path / "scores" / f"segmenter_val_{protocol}_confusion.png") as found:
            assert found.size == expected.size and np.array_equal(np.asarray(found), np.asarray(expected))


def test_without_background_there_is_one_protocol_and_value_0_a_class(tmp_path):
    names = ["rest", "tumor", "stroma"]
    images = [item("a.png", [[0, 1, 1], [2, 0, 0]], [[0, 1, 0], [2, 2, 0]], scores=(0.0, 0.0, 0.0))]
    classes = some_classes(names, background=False)
    result = run(score_handler(tmp_path, classes=classes), images).result
    assert list(result["protocols"]) == ["published"]
    assert_scores(result["protocols"]["published"], slow_scores(images, "pred", names, False))
    assert result["protocols"]["published"]["classes"]["rest"]["iou"] == 0.5  # 2 hits, 1 miss, 1 false alarm
    assert read_table(tmp_path / "scores" / "segmenter_val_images.csv")[0] == ["image", "mean_iou_published"]
    pictures = sorted(path.name for path in (tmp_path / "scores").glob("*.png"))
    assert pictures == ["segmenter_val_published_confusion.png"]


def test_a_second_run_forgets_the_first(tmp_path, items):
    handler = run(score_handler(tmp_path), items)
    run(handler, items[1:2])
    assert handler.result["images"] == 1
    assert_scores(handler.result["protocols"]["published"], slow_scores(items[1:2], "pred", NAMES, True))
    run(handler, [square("d.png", 80)])
    assert [row[0] for row in centres(tmp_path / "pictures" / "segmenter_val.png")] == [(80, 80, 80)]


# --- predictions


def predictions(folder, title="segmenter_val"):
    """Mode, values and colours of each file of a title's folder, by name."""
    found = {}
    for path in (folder / "predictions" / title).iterdir():
        with Image.open(path) as picture:
            colours = np.asarray(picture.convert("RGB")).tolist()
            found[path.name] = (picture.mode, np.asarray(picture).tolist(), colours)
    return found


def test_predictions_are_palette_masks_with_background(scored, items):
    expected = {i["name"]: i["pred_with_background"][0] for i in items}
    assert predictions(scored[0]) == {
        name: ("P", mask.tolist(), np.asarray(PALETTE)[mask].tolist()) for name, mask in expected.items()
    }
    assert any((mask != i["pred"][0]).any() for mask, i in zip(expected.values(), items))


def test_predictions_are_those_of_the_last_scoring(tmp_path, items):
    run(score_handler(tmp_path), items)
    run(score_handler(tmp_path, title="segmenter_test"), items[:1])
    later = {**items[0], "name": "b.v2.tif"}
    run(score_handler(tmp_path), [later])
    assert list(predictions(tmp_path)) == ["b.v2.png"]
    assert list(predictions(tmp_path, "segmenter_test")) == ["a.png"]


# --- pictures


def centres(path, num_columns=7):
    """The colour in the middle of each picture of a sheet, 224 px each and 6 apart, by row and column."""
    with Image.open(path) as sheet:
        assert sheet.width == 6 + 230 * num_columns
        rows = (sheet.height - 22) // 230
        return [
            [sheet.getpixel((118 + 230 * column, 134 + 230 * row)) for column in range(num_columns)]
            for row in range(rows)
        ]


def square(name, shade):
    """An image of one shade: predicted as tumor, of which the whiteness rule makes stroma; fat in truth."""
    masks = ([[value] * 8] * 8 for value in (1, 4, 2))
    return item(name, *masks, colour=(shade, shade, shade), scores=(0.0, 1.0, 0.0, 1.0))


def mixed(shade, colour):
    return pytest.approx([shade / 2 + c / 2 for c in colour], abs=1)


def test_chosen_pictures_show_image_heat_maps_prediction_and_truth(tmp_path):
    images = [square(name, shade) for name, shade in (("a.png", 20), ("b.png", 80), ("c.png", 140), ("d.png", 200))]
    handler = score_handler(tmp_path, picture_names=["d.png", "b.png"], activation=lambda scores: 1 - scores)
    run(handler, images)
    dark_red, dark_blue = (127.5, 0, 0), (0, 0, 127.5)  # scores 1 and 0; the activation has exchanged them
    found = centres(tmp_path / "pictures" / "segmenter_val.png")
    assert len(found) == 2
    for shade, row in zip((80, 200), found):
        assert row[0] == (shade, shade, shade)
        heat = (dark_red, dark_blue, dark_red, dark_blue)
        assert row[1:] == [mixed(shade, colour) for colour in (*heat, PALETTE[2], PALETTE[4])]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["images"] == ["segmenter_val"]


def test_the_first_pictures_are_shown_unless_some_are_chosen(tmp_path):
    images = [square(name, shade) for name, shade in (("a.png", 20), ("b.png", 80), ("c.png", 140))]
    run(score_handler(tmp_path, num_pictures=2), images, batch_size=3)
    found = centres(tmp_path / "pictures" / "segmenter_val.png")
    assert [row[0] for row in found] == [(20, 20, 20), (80, 80, 80)]
    assert found[0][1] == mixed(20, (0, 0, 127.5))  # no activation: 0 is blue


def test_no_sheet_without_a_chosen_picture(scored):
    assert not (scored[0] / "pictures").exists() and (scored[0] / "scores").exists()


# --- splits


class RedOrGreen(nn.Module):
    def forward(self, image):
        return image[:, :2]  # (B, 2, H, W)


class CountingInferer(SimpleInferer):
    calls = 0

    def __call__(self, inputs, network, *args, **kwargs):
        self.calls += 1
        return super().__call__(inputs, network, *args, **kwargs)


def to_masks(output):
    pred = output["pred"].argmax(dim=0, keepdim=True) + 1
    white = (output["image"] > 0.8).all(dim=0, keepdim=True)
    return {**output, "scores": output["pred"], "pred": pred, "pred_with_background": pred.masked_fill(white, 0)}


def test_splits_with_images_are_scored_and_empty_ones_left_out(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="scripts.evaluation.scoring")
    rng = np.random.default_rng(0)
    pixels, label = rng.integers(0, 256, (3, 3, 6, 6), dtype=np.uint8), rng.integers(0, 3, (3, 1, 6, 6))
    pixels[:, :, :3, :2] = 250 - rng.integers(0, 9, (3, 3, 3, 2), dtype=np.uint8)
    data = [{"image": pixels[i], "label": label[i], "name": f"{i}.png"} for i in range(3)]
    names = ["background", "tumor", "stroma"]
    dataloaders = {"val": DataLoader([], batch_sampler=SameSizeBatches([], 2)), "test": DataLoader(data, batch_size=2)}
    evaluator = partial(SupervisedEvaluator, "cpu", prepare_batch=PrepareBatch(), postprocessing=to_masks)
    handler = partial(score_handler, tmp_path, classes=some_classes(names[1:]))
    inferer = CountingInferer()
    results = score_splits(RedOrGreen(), evaluator, dataloaders, handler, "segmenter", inferer)
    assert list(results) == ["test"] and inferer.calls == 2
    assert "The data set has no val images with masks; segmenter is not scored on them." in caplog.messages
    assert sorted(path.name for path in (tmp_path / "scores").glob("*.json")) == ["segmenter_test.json"]

    pred = np.where(pixels[:, :1] >= pixels[:, 1:2], 1, 2)
    white = (pixels > 0.8 * 255).all(axis=1, keepdims=True)
    expected = [
        {key: torch.tensor(values[i]) for key, values in (("pred", pred), ("label", label))}
        | {"pred_with_background": torch.tensor(np.where(white, 0, pred)[i])}
        for i in range(3)
    ]
    for protocol, (key, exclude) in PROTOCOLS.items():
        assert_scores(results["test"]["protocols"][protocol], slow_scores(expected, key, names, exclude))
    assert json.loads((tmp_path / "scores" / "segmenter_test.json").read_text()) == results["test"]
