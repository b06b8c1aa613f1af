import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from ignite.metrics import MetricsLambda

from scripts.evaluation.metrics import MaskConfusionMatrix, class_scores, confusion_matrix, mean_iou, summary

NUM_VALUES = 5
NAMES = ["background", "tumor", "stroma", "lymphocyte", "necrosis"]


def masks(size=(13, 11), values=range(NUM_VALUES), seed=0):
    """A true mask, and a prediction that agrees with it in about half of the pixels."""
    rng = np.random.default_rng(seed)
    true = rng.choice(list(values), size)
    pred = np.where(rng.random(size) < 0.5, true, rng.choice(list(values), size))
    return torch.tensor(pred), torch.tensor(true)


def slow_scores(pred, true, exclude_background):
    """Scores of each class by counting pixels; ``None`` where there is nothing to count."""
    pairs = list(zip(pred.flatten().tolist(), true.flatten().tolist()))
    if exclude_background:
        pairs = [(p, t) for p, t in pairs if t != 0]
    per_class, weighted, hits_of_all = {}, 0.0, 0
    for k in range(int(exclude_background), NUM_VALUES):
        hits = sum(p == k and t == k for p, t in pairs)
        false_alarms = sum(p == k and t != k for p, t in pairs)
        misses = sum(p != k and t == k for p, t in pairs)
        found, there = hits + false_alarms + misses > 0, hits + misses > 0
        iou = hits / (hits + false_alarms + misses) if found else None
        dice = 2 * hits / (2 * hits + false_alarms + misses) if found else None
        recall = hits / (hits + misses) if there else None
        per_class[NAMES[k]] = {"iou": iou, "dice": dice, "recall": recall, "pixels": hits + misses}
        weighted += (hits + misses) / len(pairs) * (iou or 0) if pairs else 0
        hits_of_all += hits

    def mean(key):
        values = [scores[key] for scores in per_class.values() if scores[key] is not None]
        return sum(values) / len(values) if values else None

    return {
        "mean_iou": mean("iou"),
        "mean_dice": mean("dice"),
        "frequency_weighted_iou": weighted if pairs else None,
        "pixel_accuracy": hits_of_all / len(pairs) if pairs else None,
        "mean_accuracy": mean("recall"),
        "classes": per_class,
    }


def close(found, expected):
    """Equal to six digits, as dictionaries of numbers and ``None``."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            close(found[key], value)
        else:
            assert found[key] == (None if value is None else pytest.approx(value, abs=1e-6)), key


def test_counts_pixels_with_the_truth_down_and_the_prediction_across():
    pred, true = masks()
    expected = np.zeros((NUM_VALUES, NUM_VALUES), dtype=int)
    for p, t in zip(pred.flatten().tolist(), true.flatten().tolist()):
        expected[t, p] += 1
    confusion = confusion_matrix(pred, true, NUM_VALUES)
    assert confusion.tolist() == expected.tolist() and not torch.is_floating_point(confusion)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_counts_masks_of_any_type_with_a_channel_axis(dtype):
    pred, true = masks()
    confusion = confusion_matrix(pred[None].to(dtype), true[None].to(dtype), NUM_VALUES)
    assert torch.equal(confusion, confusion_matrix(pred, true, NUM_VALUES))


def test_refuses_masks_of_two_shapes():
    with pytest.raises(ValueError, match=r"`pred` and `true` must have the same shape, got \(2, 3\) and \(3, 2\)"):
        confusion_matrix(torch.zeros(2, 3), torch.zeros(3, 2), NUM_VALUES)


@pytest.mark.parametrize("exclude_background", [True, False])
@pytest.mark.parametrize("values", [range(5), (0, 1, 3), (1, 2, 3, 4), (0, 2), (3,)])
def test_scores_are_those_of_counting_pixel_by_pixel(values, exclude_background):
    pred, true = masks(values=values)
    confusion = confusion_matrix(pred, true, NUM_VALUES)
    expected = slow_scores(pred, true, exclude_background)
    close(summary(confusion, NAMES, exclude_background), expected)
    assert mean_iou(confusion, exclude_background) == pytest.approx(expected["mean_iou"])


@pytest.mark.parametrize("exclude_background", [True, False])
def test_a_class_that_is_predicted_but_absent_has_iou_0_and_no_recall(exclude_background):
    true, pred = torch.tensor([1, 1, 1, 0]), torch.tensor([1, 1, 2, 0])
    confusion = confusion_matrix(pred, true, NUM_VALUES)
    close(summary(confusion, NAMES, exclude_background), slow_scores(pred, true, exclude_background))
    scores = class_scores(confusion, exclude_background)
    stroma = 1 if exclude_background else 2
    assert scores["iou"][stroma] == 0 and scores["recall"][stroma].isnan()
    assert scores["iou"][stroma + 1].isnan() and scores["dice"][stroma + 1].isnan()


def test_tissue_predicted_as_background_is_a_miss():
    true, pred = torch.tensor([1, 1, 1, 1]), torch.tensor([1, 1, 1, 0])
    scores = class_scores(confusion_matrix(pred, true, NUM_VALUES), exclude_background=True)
    assert scores["iou"][0] == 0.75 and scores["recall"][0] == 0.75
    assert scores["dice"][0] == pytest.approx(6 / 7)


def test_tissue_predicted_on_glass_costs_nothing_as_published():
    true, pred = torch.tensor([1, 1, 0, 0]), torch.tensor([1, 1, 1, 1])
    confusion = confusion_matrix(pred, true, NUM_VALUES)
    assert mean_iou(confusion, exclude_background=True) == 1
    assert mean_iou(confusion, exclude_background=False) == pytest.approx((0.5 + 0) / 2)


def test_one_tissue_called_another_is_a_false_alarm_of_it():
    true, pred = torch.tensor([1, 1, 2, 2]), torch.tensor([1, 1, 1, 2])
    scores = class_scores(confusion_matrix(pred, true, NUM_VALUES), exclude_background=True)
    assert scores["iou"][:2].tolist() == pytest.approx([2 / 3, 1 / 2])


def test_an_image_of_glass_has_nothing_to_score_as_published():
    confusion = confusion_matrix(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 0]), NUM_VALUES)
    with pytest.raises(ValueError, match="at least one class to be scored, but all pixels are background"):
        mean_iou(confusion, exclude_background=True)
    scores = summary(confusion, NAMES, exclude_background=True)
    assert all(scores[key] is None for key in scores if key != "classes")
    assert scores["classes"]["tumor"] == {"iou": None, "dice": None, "recall": None, "pixels": 0}


def test_scores_are_ready_for_json():
    scores = summary(confusion_matrix(*masks(values=(0, 1)), NUM_VALUES), NAMES, exclude_background=False)
    numbers = [value for value in scores.values() if not isinstance(value, dict)]
    numbers += [value for per_class in scores["classes"].values() for value in per_class.values()]
    assert all(value is None or (isinstance(value, float) and math.isfinite(value)) for value in numbers)


@pytest.mark.parametrize("pred_key", ["pred", "pred_with_background"])
def test_ignite_pools_the_pixels_of_images_of_any_size(pred_key):
    sizes = [[(3, 4), (3, 4)], [(7, 5)], [(1, 1), (2, 9), (6, 6)]]
    batches, confusion = [], torch.zeros(NUM_VALUES, NUM_VALUES)
    for b, batch in enumerate(sizes):
        items = []
        for i, size in enumerate(batch):
            pred, true = masks(size, seed=10 * b + i)
            confusion += confusion_matrix(pred, true, NUM_VALUES)
            items.append({pred_key: pred[None].float(), "label": true[None].to(torch.uint8), "other": 0})
        batches.append(items)
    metric = MaskConfusionMatrix(NUM_VALUES, pred_key)
    evaluator = Engine(lambda engine, batch: batch)
    MetricsLambda(mean_iou, metric, exclude_background=True).attach(evaluator, "mean_iou")
    metric.attach(evaluator, "confusion")
    metrics = evaluator.run(batches).metrics
    assert torch.equal(metrics["confusion"].float(), confusion)
    assert metrics["mean_iou"] == pytest.approx(mean_iou(confusion, exclude_background=True))
    # pooled, not the mean of the images' scores
    each = [mean_iou(confusion_matrix(i[pred_key], i["label"], NUM_VALUES), False) for b in batches for i in b]
    assert abs(np.mean(each) - mean_iou(confusion, False)) > 0.01


@pytest.mark.parametrize(("pred", "true", "name"), [([7, 1], [1, 2], "pred"), ([1, 2], [1, 9], "true")])
def test_values_that_no_class_has_are_refused(pred, true, name):
    with pytest.raises(ValueError, match=f"`{name}` must have mask values in 0..2"):
        confusion_matrix(torch.tensor(pred), torch.tensor(true), 3)
