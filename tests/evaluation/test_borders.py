import math

import numpy as np
import pytest

from scripts.evaluation.borders import (
    DISTANCES_PX,
    REGION_SIZES_PX,
    BorderScores,
    border_of,
    count_regions,
    digest,
    distance_to_border,
)

NAMES = ["background", "tumor", "stroma"]


def square(size, top, left, side, value=1):
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[top : top + side, left : left + side] = value
    return mask


def scores_of(*pairs, exclude_background=False, names=NAMES, mpp=None):
    scores = BorderScores(names, exclude_background, mpp)
    for number, (pred, true) in enumerate(pairs):
        scores.add(f"{number}.png", pred, true)
    return scores.summary()


# --- boundary IoU


@pytest.mark.parametrize("shift", [0, 1, 3, 8])
def test_boundary_iou_of_a_shifted_square(shift):
    size, side, width = 100, 40, 3  # 2 % of the diagonal of 141 px
    pair = square(size, 30, 30 + shift, side), square(size, 30, 30, side)
    ring = side**2 - (side - 2 * width) ** 2
    bars = 2 * width * (side - shift)  # what the rings' upper and lower bars share
    posts = 2 * max(0, width - shift) * (side - 2 * width)  # and the posts between them
    expected = (bars + posts) / (2 * ring - bars - posts)
    assert scores_of(pair)["classes"]["tumor"]["boundary_iou"] == pytest.approx(expected, abs=1e-6)


def test_boundary_iou_agrees_with_a_slow_computation():
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 3, (6, 9)).repeat(9, axis=0).repeat(8, axis=1).astype(np.uint8) for _ in range(2)]
    pred, true = coarse
    true[10:15, 20:30] = 255
    result = scores_of((pred, true))
    width = round(0.02 * math.hypot(*true.shape))
    assert width == 2
    for value, name in enumerate(NAMES):
        borders = []
        for mask, known in ((true, true != 255), (pred, np.ones(true.shape, bool))):
            border = set()
            for y, x in np.argwhere(mask == value):
                near = [
                    (v, u)
                    for v in range(max(0, y - width), min(mask.shape[0], y + width + 1))
                    for u in range(max(0, x - width), min(mask.shape[1], x + width + 1))
                ]
                if any(known[place] and mask[place] != value for place in near) and true[y, x] != 255:
                    border.add((y, x))
            borders.append(border)
        expected = len(borders[0] & borders[1]) / len(borders[0] | borders[1])
        assert result["classes"][name]["boundary_iou"] == pytest.approx(expected, abs=1e-6)
    classes = [scores["boundary_iou"] for scores in result["classes"].values()]
    assert result["boundary_iou"] == pytest.approx(np.mean(classes), abs=1e-6)


def test_the_edge_of_an_image_is_no_border():
    everywhere = np.ones((30, 40), dtype=bool)
    assert not border_of(everywhere, everywhere, 3).any()
    half = everywhere.copy()
    half[:, 20:] = False
    border = border_of(half, everywhere, 3)
    assert border.sum() == 3 * 30 and border[:, 17:20].all()


# --- distance to the border


def test_distance_is_that_to_the_nearest_pixel_of_another_value():
    rng = np.random.default_rng(1)
    true = rng.integers(0, 3, (4, 5)).repeat(4, axis=0).repeat(3, axis=1).astype(np.uint8)
    known = rng.random(true.shape) > 0.2
    distance = distance_to_border(true, known)
    for y, x in np.argwhere(known):
        others = np.argwhere(known & (true != true[y, x]))
        assert distance[y, x] == pytest.approx(min(math.hypot(v - y, u - x) for v, u in others))


def test_a_mask_of_one_value_has_no_border():
    assert np.isinf(distance_to_border(np.ones((5, 6), np.uint8), np.ones((5, 6), bool))).all()


@pytest.mark.parametrize("shift", [1, 2, 4, 7])
def test_a_shifted_half_plane_is_wrong_only_near_the_border(shift):
    true = np.zeros((40, 200), dtype=np.uint8)
    true[:, 100:] = 1
    pred = np.zeros_like(true)
    pred[:, 100 + shift :] = 1
    tumor = scores_of((pred, true))["classes"]["tumor"]
    start = 0
    for end, accuracy, pixels in zip((*DISTANCES_PX, 100), tumor["accuracy"], tumor["pixels"], strict=True):
        assert pixels == 40 * (end - start)  # columns of distance start + 1 .. end
        assert accuracy == pytest.approx(1 - max(0, min(shift, end) - start) / (end - start), abs=1e-6)
        start = end


def test_all_pools_the_pixels_of_classes_and_images():
    true, pred = square(60, 10, 10, 20, 1) + square(60, 35, 35, 20, 2), square(60, 10, 12, 20, 1)
    pairs = [(pred, true), (true, true)]
    result = scores_of(*pairs, exclude_background=True)
    assert list(result["classes"]) == ["tumor", "stroma"]
    pixels = np.sum([scores["pixels"] for scores in result["classes"].values()], axis=0)
    assert result["all"]["pixels"] == pixels.tolist() and pixels.sum() == 2 * 2 * 20**2
    right = sum(
        round(a * n) for s in result["classes"].values() for a, n in zip(s["accuracy"], s["pixels"]) if a is not None
    )
    assert right == sum(int(((p == t) & (t > 0)).sum()) for p, t in pairs)


# --- regions


def test_regions_are_counted_by_size_and_found_if_half_of_them_is_hit():
    regions = np.zeros((300, 300), dtype=bool)
    regions[0:10, 0:10] = True  # 100 px, half hit
    regions[20:30, 0:10] = True  # 100 px, less than half hit
    regions[0:30, 50:90] = True  # 1200 px, hit
    regions[100:200, 0:100] = True  # 10000 px, not hit
    regions[210, 210] = regions[211, 211] = True  # one region of 2 px: corners touch
    hits = np.zeros_like(regions)
    hits[0:5, 0:10] = True
    hits[20:24, 0:10] = True
    hits[0:30, 50:90] = True
    assert REGION_SIZES_PX == (500, 2000, 10000)
    assert count_regions(regions, hits).tolist() == [[1, 3], [1, 1], [0, 0], [0, 1]]


def test_recall_counts_true_regions_and_precision_predicted_ones():
    true = square(100, 10, 10, 10) + square(100, 60, 60, 30)
    pred = square(100, 60, 65, 30) + square(100, 40, 5, 10) + square(100, 10, 80, 8)
    tumor = scores_of((pred, true))["classes"]["tumor"]
    assert tumor["true_regions"] == [1, 1, 0, 0] and tumor["recall"] == [0, 1, None, None]
    assert tumor["predicted_regions"] == [2, 1, 0, 0] and tumor["precision"] == [0, 1, None, None]


# --- the worst regions


def test_the_worst_regions_are_the_largest_wrong_ones_one_from_each_image():
    right = square(60, 10, 10, 20)
    missed = square(60, 10, 10, 12, 2) * 0
    partly = right.copy()
    partly[10:14, 10:30] = 2  # 80 px taken for stroma
    partly[28:30, 10:20] = 0  # 20 px missed
    worst = scores_of((right, right), (partly, right), (missed, right))["worst_regions"]
    assert worst == [
        {"image": "2.png", "pixels": 400, "truth": "tumor", "prediction": "background"}
        | {"rows": [10, 30], "columns": [10, 30]},
        {"image": "1.png", "pixels": 80, "truth": "tumor", "prediction": "stroma"}
        | {"rows": [10, 14], "columns": [10, 30]},
    ]


def test_only_six_of_the_worst_regions_are_kept():
    pairs = [(square(60, 0, 0, side) * 0, square(60, 0, 0, side)) for side in range(2, 12)]
    assert [region["pixels"] for region in scores_of(*pairs)["worst_regions"]] == [s**2 for s in range(11, 5, -1)]


# --- in short


def test_the_digest_pools_the_bands_and_sizes_of_the_chosen_classes():
    rng = np.random.default_rng(2)
    pred, true = (rng.integers(0, 3, (12, 9)).repeat(9, axis=0).repeat(8, axis=1).astype(np.uint8) for _ in range(2))
    true[:60, :50], pred[4:60, 3:50] = 1, 1
    result = scores_of((pred, true), mpp=0.5)
    assert result["distances_um"] == [px / 2 for px in DISTANCES_PX]
    near = distance_to_border(true, np.ones(true.shape, bool)) <= 5
    for classes, chosen in ((None, true >= 0), (["tumor", "stroma"], true > 0)):
        numbers = digest(result, classes)
        assert numbers["near_border"] == pytest.approx((pred == true)[chosen & near].mean(), abs=1e-5)
        assert numbers["inside"] == pytest.approx((pred == true)[chosen & ~near].mean(), abs=1e-5)
        counts = sum(count_regions(true == v, pred == v) for v in range(classes is not None, 3))
        assert numbers["small_found"] == pytest.approx(counts[:2, 0].sum() / counts[:2, 1].sum(), abs=1e-5)
        assert numbers["large_found"] == pytest.approx(counts[2:, 0].sum() / counts[2:, 1].sum(), abs=1e-5)
        counts = sum(count_regions(pred == v, true == v) for v in range(classes is not None, 3))
        assert numbers["small_right"] == pytest.approx(counts[:2, 0].sum() / counts[:2, 1].sum(), abs=1e-5)
    assert digest(scores_of((pred * 0, pred * 0), exclude_background=True))["near_border"] is None


# --- what is not scored


def test_published_leaves_out_background_which_still_borders_on_tissue():
    true, pred = square(60, 20, 20, 20), np.ones((60, 60), dtype=np.uint8)
    published, whole = (scores_of((pred, true), exclude_background=flag) for flag in (True, False))
    assert published["classes"]["tumor"]["pixels"] == whole["classes"]["tumor"]["pixels"]
    assert published["classes"]["tumor"]["pixels"][0] == 20**2 - 16**2
    assert published["all"]["precision"][0] == 1 and whole["classes"]["tumor"]["precision"][2] == 0


def test_ignored_pixels_are_not_scored_and_make_no_border():
    true = square(60, 20, 20, 20)
    true[:, 30:] = 255
    tumor = scores_of((np.where(true == 255, 2, true), true))["classes"]["tumor"]
    assert sum(tumor["pixels"]) == 20 * 10
    inner = [(y, x) for y in range(20, 40) for x in range(20, 30) if min(y - 19, 40 - y, x - 19) > 2]
    assert tumor["pixels"][0] == 20 * 10 - len(inner)
    assert scores_of((np.where(true == 255, 2, true), true))["classes"]["stroma"]["predicted_regions"] == [0, 0, 0, 0]


def test_without_anything_to_score_there_are_no_scores():
    empty = np.zeros((8, 8), dtype=np.uint8)
    result = scores_of((empty, empty), exclude_background=True)
    assert result["boundary_iou"] is None and result["all"]["accuracy"] == [None] * 6
