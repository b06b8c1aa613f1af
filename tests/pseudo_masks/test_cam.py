import math

import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map
from torch import nn
from torch.nn import functional as F

from scripts.data.background import white_background
from scripts.data.label_maps import label_map
from scripts.pseudo_masks.cam import CAMSegmenter, combine_cams, gate_and_normalize, present_classes


def slow_upsample(cam, height, width):
    """Bilinear, pixel areas aligned (``align_corners=False``): (K, h, w) -> (K, H, W), all NumPy."""
    result = np.zeros((cam.shape[0], height, width))
    for y, x in np.ndindex(height, width):
        v = min(max((y + 0.5) * cam.shape[1] / height - 0.5, 0), cam.shape[1] - 1)
        u = min(max((x + 0.5) * cam.shape[2] / width - 0.5, 0), cam.shape[2] - 1)
        top, left = int(v), int(u)
        bottom, right = min(top + 1, cam.shape[1] - 1), min(left + 1, cam.shape[2] - 1)
        upper = (1 - (u - left)) * cam[:, top, left] + (u - left) * cam[:, top, right]
        lower = (1 - (u - left)) * cam[:, bottom, left] + (u - left) * cam[:, bottom, right]
        result[:, y, x] = (1 - (v - top)) * upper + (v - top) * lower
    return result


def slow_combine(cams, size, weights):
    return sum(w * np.stack([slow_upsample(c, *size) for c in cam.numpy()]) for w, cam in zip(weights, cams))


def random_cams(batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, 3, h, w, generator=generator) * 4 for h, w in ((4, 5), (3, 2), (1, 3))]


# --- combining levels


def test_combines_upsampled_levels_by_their_weights():
    cams = random_cams()
    combined = combine_cams(cams, (7, 9), (0.47, 0.06, 0.47))
    np.testing.assert_allclose(combined.numpy(), slow_combine(cams, (7, 9), (0.47, 0.06, 0.47)), atol=1e-5)


def test_levels_are_not_normalized_one_by_one():
    strong, weak = torch.full((1, 1, 2, 2), 8.0), torch.full((1, 1, 1, 1), 1.0)
    assert torch.equal(combine_cams([strong, weak], (4, 4), [1, 1]), torch.full((1, 1, 4, 4), 9.0))


def test_levels_and_classes_are_scaled_one_by_one_if_asked_to():
    cams, weights = random_cams(), (0.6, 0.2, 0.2)
    cams[1][0, 2] = 3.0  # a constant map
    expected = np.zeros((2, 3, 7, 9))
    for weight, cam in zip(weights, cams):
        for image, single in enumerate(cam.numpy()):
            for channel, pixels in enumerate(slow_upsample(single, 7, 9)):
                span = pixels.max() - pixels.min()
                expected[image, channel] += weight * ((pixels - pixels.min()) / span if span > 1e-9 else 0)
    combined = combine_cams(cams, (7, 9), weights, scaled=True)
    np.testing.assert_allclose(combined.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0] * 4, []])
def test_refuses_another_number_of_weights(weights):
    with pytest.raises(ValueError, match=r"`level_weights` must have one weight per CAM \(3\), got \["):
        combine_cams(random_cams(), (7, 9), weights)


# --- gate


def test_classes_above_the_threshold_are_present():
    prob = torch.tensor([[0.2, 0.3, 0.5], [0.9, 0.29, 0.31]])
    threshold = prob[0, 1].item()  # exactly the threshold is not above it
    assert present_classes(prob, threshold).tolist() == [[False, False, True], [True, False, True]]


def test_an_image_without_a_class_gets_its_most_probable_one():
    prob = torch.tensor([[0.2, 0.25, 0.1], [0.6, 0.1, 0.7]])
    assert present_classes(prob, 0.3).tolist() == [[False, True, False], [True, False, True]]


def test_true_labels_decide_alone():
    prob = torch.tensor([[0.9, 0.9, 0.1], [0.1, 0.2, 0.05]])
    label = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert present_classes(prob, 0.3, label).tolist() == [[False, False, True], [False, False, False]]


def test_the_prediction_decides_where_a_label_is_unknown():
    prob = torch.tensor([[0.9, 0.9, 0.1], [0.9, 0.2, 0.1], [0.2, 0.1, 0.1], [0.1, 0.2, 0.1]])
    label = torch.tensor([[0, math.nan, 1], [0, math.nan, 0], 3 * [math.nan], [0, math.nan, 0]])
    # with nothing known, the most probable class; with something known, the label may leave none
    expected = [[0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert present_classes(prob, 0.3, label).int().tolist() == expected
    unknown = torch.full_like(prob, math.nan)
    assert torch.equal(present_classes(prob, 0.3, unknown), present_classes(prob, 0.3))


@pytest.mark.parametrize("threshold", [-0.1, 1.5, 30, math.nan])
def test_refuses_thresholds_that_are_no_probability(threshold):
    with pytest.raises(ValueError, match=rf"`threshold` must be in \[0, 1\], got {threshold}; use a probability"):
        present_classes(torch.rand(1, 2), threshold)


# --- normalisation


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_scales_each_image_over_classes_and_pixels_together(dtype):
    cam = torch.rand(2, 3, 2, 2) + torch.tensor([0.5, 3.0])[:, None, None, None]
    present = torch.tensor([[1, 1, 1], [1, 0, 1]]).to(dtype)
    scores = gate_and_normalize(cam, present)
    for b in range(2):
        gated = [cam[b, k, y, x].item() * present[b, k].item() for k, y, x in np.ndindex(3, 2, 2)]
        for index, (k, y, x) in enumerate(np.ndindex(3, 2, 2)):
            expected = (gated[index] - min(gated)) / (max(gated) - min(gated)) if present[b, k] else -math.inf
            assert scores[b, k, y, x].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_a_constant_cam_gives_zeros(value):
    scores = gate_and_normalize(torch.full((1, 2, 3, 3), value), torch.ones(1, 2, dtype=torch.bool))
    assert torch.equal(scores, torch.zeros(1, 2, 3, 3))


def test_faint_cams_are_scaled_up_to_one():
    scores = gate_and_normalize(torch.tensor([0.0, 1e-12, 2e-12]).view(1, 3, 1, 1), torch.ones(1, 3))
    torch.testing.assert_close(scores.flatten(), torch.tensor([0.0, 0.5, 1.0]))


def test_a_class_that_is_left_out_never_wins():
    cam = torch.zeros(1, 3, 2, 2)
    cam[0, 0] = 9  # the strongest, but not present; the others are 0 everywhere
    scores = gate_and_normalize(cam, torch.tensor([[False, True, True]]))
    assert torch.equal(label_map(scores, torch.zeros(1, 3, 2, 2), background=True), torch.ones(1, 2, 2).long())


# --- white background


def slow_white(image, white_grey=200, smallest_px=50):
    """Flood fill over 4 neighbours of pixels that are brighter than ``white_grey``; (H, W, 3) uint8 -> (H, W) bool."""
    height, width, _ = image.shape
    white = [
        [round(float(image[y, x] @ [0.299, 0.587, 0.114])) > white_grey for x in range(width)] for y in range(height)
    ]
    result, seen = np.zeros((height, width), dtype=bool), set()
    for start in np.ndindex(height, width):
        if start in seen or not white[start[0]][start[1]]:
            continue
        component, stack = [], [start]
        seen.add(start)
        while stack:
            y, x = stack.pop()
            component.append((y, x))
            for neighbour in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= neighbour[0] < height and 0 <= neighbour[1] < width
                if inside and neighbour not in seen and white[neighbour[0]][neighbour[1]]:
                    seen.add(neighbour)
                    stack.append(neighbour)
        if len(component) >= smallest_px:
            for pixel in component:
                result[pixel] = True
    return result


def as_batch(*images):
    """(H, W, 3) uint8 -> (B, 3, H, W) float in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def painted(white, shade=255):
    """(H, W) bool -> (H, W, 3) uint8: ``shade`` where true, purple elsewhere."""
    return np.where(white[..., None], np.uint8(shade), np.array([150, 80, 160], dtype=np.uint8))


@pytest.mark.parametrize("share", [0.5, 0.6, 0.8])
def test_white_background_is_that_of_a_slow_flood_fill(share):
    rng = np.random.default_rng(0)
    images = [painted(rng.random((33, 47)) < share, rng.integers(190, 256)) for _ in range(3)]
    found = white_background(as_batch(*images)).numpy()
    assert found.dtype == bool
    for image, mask in zip(images, found):
        assert np.array_equal(mask, slow_white(image))


def test_white_background_of_natural_colours_is_that_of_a_slow_flood_fill():
    rng = np.random.default_rng(1)
    coarse = rng.integers(150, 256, size=(9, 9, 3))
    image = np.kron(coarse, np.ones((7, 7, 1), dtype=int)).astype(np.uint8)
    found = white_background(as_batch(image))[0].numpy()
    assert found.any() and not found.all()
    assert np.array_equal(found, slow_white(image))


@pytest.mark.parametrize(("grey", "white"), [(200, False), (201, True), (255, True), (0, False)])
def test_white_is_brighter_than_grey_200(grey, white):
    assert white_background(as_batch(np.full((10, 10, 3), grey, dtype=np.uint8))).all() == white


@pytest.mark.parametrize(("shade", "white"), [(200.4, False), (200.6, True)])
def test_shades_between_two_bytes_are_rounded(shade, white):
    assert white_background(torch.full((1, 3, 10, 10), shade / 255)).all() == white


@pytest.mark.parametrize(
    ("colour", "white"),
    [
        ((79, 252, 254), False),  # 0.299 R + 0.587 G + 0.114 B is 200.501; OpenCV's cvtColor gives 200
        ((105, 244, 227), False),  # 200.501 and 200
        ((90, 253, 220), False),  # 200.500 and 200
        ((118, 250, 162), True),  # 200.500 and 201
        ((205, 51, 51), False),
        ((240, 200, 150), True),  # 206.26 and 206; with red and blue exchanged 196
        ((150, 200, 240), False),  # 189.61 and 190
    ],
)
def test_grey_is_rounded_as_opencv_does(colour, white):
    assert white_background(as_batch(np.full((8, 8, 3), colour, dtype=np.uint8))).all() == white


@pytest.mark.parametrize(("pixels", "white"), [(49, False), (50, True), (51, True)])
def test_components_smaller_than_50_pixels_are_tissue(pixels, white):
    mask = np.zeros((12, 60), dtype=bool)
    mask[5, :pixels] = True
    found = white_background(as_batch(painted(mask)))[0].numpy()
    assert np.array_equal(found, mask if white else np.zeros_like(mask))


def test_diagonal_neighbours_are_not_connected():
    mask = np.zeros((14, 14), dtype=bool)
    mask[:7, :7] = mask[7:, 7:] = True  # 49 pixels each, touching at a corner
    assert not white_background(as_batch(painted(mask))).any()


def test_tissue_holes_in_glass_stay():
    mask = np.ones((20, 20), dtype=bool)
    mask[10, 10] = False
    assert np.array_equal(white_background(as_batch(painted(mask)))[0].numpy(), mask)


def test_components_do_not_reach_into_the_next_image():
    mask = np.zeros((10, 10), dtype=bool)
    mask[-4:] = True  # 40 pixels at the bottom; 40 at the top of the next image
    assert not white_background(as_batch(painted(mask), painted(mask[::-1]))).any()


def test_grey_and_smallest_component_can_be_chosen():
    mask = np.zeros((5, 5), dtype=bool)
    mask[2, :3] = True
    image = as_batch(painted(mask, 180))
    assert np.array_equal(white_background(image, white_grey=179, smallest_px=3)[0].numpy(), mask)
    assert not white_background(image, white_grey=180, smallest_px=3).any()
    assert not white_background(image, white_grey=179, smallest_px=4).any()


# --- label map


def test_takes_the_best_channel_and_the_lowest_of_equals():
    scores = torch.tensor([[0.1, 0.5, 0.5], [0.7, 0.2, 0.7], [0.0, 0.0, 0.0]]).T.view(1, 3, 1, 3)
    assert label_map(scores, torch.ones(1, 3, 1, 3), background=False).tolist() == [[[1, 0, 0]]]


def test_white_becomes_the_background_index_whatever_the_scores():
    mask = np.zeros((10, 20), dtype=bool)
    mask[:, :8] = True
    image = as_batch(painted(mask))
    scores = torch.rand(1, 2, 10, 20)
    scores[:, 1] += 1
    scores[:, 0, 0] = 1  # the best score possible does not beat white
    scores[:, 1, 0] = -torch.inf
    labels = label_map(scores, image, background=True)[0].numpy()
    expected = np.where(mask, 2, 1)
    expected[0] = np.where(mask[0], 2, 0)
    assert np.array_equal(labels, expected) and labels.dtype == np.int64
    assert label_map(scores, image, background=False).max() == 1


@pytest.mark.parametrize("background", [True, False])
def test_refuses_nan(background):
    scores = torch.zeros(1, 2, 3, 3)
    scores[0, 1, 2, 2] = math.nan
    with pytest.raises(ValueError, match="`scores` must not be NaN"):
        label_map(scores, torch.zeros(1, 3, 3, 3), background)


# --- CAMs as a segmentation network


class ColourClassifier(nn.Module):
    """Its CAMs are the colours at strides 1, 2 and 4, and it is sure of what ``prob`` says; flips change nothing."""

    def __init__(self, prob=(0.9, 0.9, 0.9)):
        super().__init__()
        self.prob = torch.tensor(prob)
        self.seen = []

    def cams(self, image):
        self.seen.append(image)
        return (image, F.avg_pool2d(image, 2), F.avg_pool2d(image, 4)), self.prob.expand(len(image), 3)


class LeftClassifier(nn.Module):
    """Sees class 0 in the leftmost column of pixels, class 1 in the topmost row, whatever the image shows."""

    def cams(self, image):
        cam = torch.zeros(len(image), 2, *image.shape[2:])
        cam[:, 0, :, 0] = 4
        cam[:, 1, 0, :] = 8
        return (cam,), torch.ones(len(image), 2)


class SizeClassifier(nn.Module):
    """Its CAM depends on the image's height, and so does its probability of the second class."""

    by_height = {8: [[1.0, 3.0], [2.0, 4.0]], 4: [[8.0, 0.0], [0.0, 4.0]], 12: [[0.0, 5.0], [1.0, 0.0]]}

    def __init__(self):
        super().__init__()
        self.seen = []

    def cams(self, image):
        self.seen.append(image)
        cam = torch.tensor(self.by_height[image.shape[2]])
        return (torch.stack([cam, cam.T])[None],), torch.tensor([[0.9, image.shape[2] / 16]])


def coloured(height=8, width=12, batch=2):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


def test_strengths_of_classes_change_nothing_where_levels_are_scaled():
    image = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    plain, balanced = (
        CAMSegmenter(ColourClassifier(), (0.6, 0.2, 0.2), 0.5, scaled_levels=True, class_strengths=given)(image)
        for given in (None, [[1.0, 5.0, 9.0]] * 3)
    )
    assert torch.equal(plain, balanced)


def slow_normalize(cam):
    return (cam - cam.min()) / (cam.max() - cam.min())


@pytest.mark.parametrize("flips", [False, True])
def test_scores_are_combined_gated_and_normalized_cams(flips):
    image = coloured()
    scores = CAMSegmenter(ColourClassifier((0.9, 0.2, 0.4)), (0.2, 0.3, 0.5), 0.3, flips=flips)(image)
    cams, _ = ColourClassifier().cams(image)
    combined = slow_combine(cams, (8, 12), (0.2, 0.3, 0.5))
    combined[:, 1] = 0
    for score, cam in zip(scores.numpy(), combined):
        expected = slow_normalize(cam)
        expected[1] = -np.inf
        np.testing.assert_allclose(score, expected, atol=1e-6)


def test_flips_average_the_four_mirror_images():
    image = torch.zeros(1, 3, 3, 4)
    scores = CAMSegmenter(LeftClassifier(), (1.0,), 0.5, flips=True)(image)
    expected = torch.zeros(1, 2, 3, 4)
    expected[:, 0, :, [0, 3]] = 0.5  # left and right columns get half of 4, upper and lower rows half of 8
    expected[:, 1, [0, 2], :] = 1
    torch.testing.assert_close(scores, expected)


def test_scales_average_cams_and_probabilities():
    classifier = SizeClassifier()  # of the second class the probabilities are 8/16, 4/16 and 12/16
    image = torch.full((1, 3, 8, 16), 0.25)
    scores = CAMSegmenter(classifier, (1.0,), 0.49, scales=(1.0, 0.5, 1.5))(image)
    assert [tuple(seen.shape) for seen in classifier.seen] == [(1, 3, 8, 16), (1, 3, 4, 8), (1, 3, 12, 24)]
    for seen in classifier.seen:
        torch.testing.assert_close(seen, torch.full_like(seen, 0.25))
    cams = [np.array(cam) for cam in SizeClassifier.by_height.values()]
    mean = np.mean([slow_upsample(np.stack([cam, cam.T]), 8, 16) for cam in cams], axis=0)
    np.testing.assert_allclose(scores[0].numpy(), slow_normalize(mean), atol=1e-6)
    gated = CAMSegmenter(SizeClassifier(), (1.0,), 0.51, scales=(1.0, 0.5, 1.5))(image)
    assert torch.isneginf(gated[0, 1]).all() and torch.isfinite(gated[0, 0]).all()


def test_scaling_keeps_the_image_s_content_in_place():
    classifier = ColourClassifier()
    ramp = ((torch.arange(16) + 0.5) / 16).expand(1, 3, 16, 16)
    CAMSegmenter(classifier, (1, 1, 1), 0.5, scales=(0.5, 2.0))(ramp)
    for seen in classifier.seen:
        width = seen.shape[3]
        expected = ((torch.arange(width) + 0.5) / width).expand_as(seen)
        torch.testing.assert_close(seen[..., 2:-2], expected[..., 2:-2])


def test_scaling_down_loses_no_fine_detail():
    classifier = ColourClassifier()
    image = torch.zeros(1, 3, 32, 32)
    image[..., 0] = 1  # a line of one pixel at the border
    CAMSegmenter(classifier, (1, 1, 1), 0.5, scales=(0.25,))(image)
    assert (classifier.seen[0][..., 0] > 0.1).all()


def test_channels_come_in_the_order_asked_for():
    image = coloured()
    plain = CAMSegmenter(ColourClassifier((0.9, 0.2, 0.9)), (1, 1, 1), 0.5)(image)
    ordered = CAMSegmenter(ColourClassifier((0.9, 0.2, 0.9)), (1, 1, 1), 0.5, channel_order=[2, 0, 1])(image)
    assert torch.isneginf(ordered[:, 2]).all()
    assert torch.equal(ordered, torch.stack([plain[:, 2], plain[:, 0], plain[:, 1]], dim=1))


def test_a_tie_goes_to_the_classifier_s_first_channel_in_any_order():
    class Undecided(torch.nn.Module):
        def cams(self, image):
            cam = image.new_tensor([[0.0, 0.0], [0.7, 0.7], [0.2, 0.7]]).T.reshape(1, 2, 1, 3)  # two ties, then 1 wins
            return (cam, cam, cam), image.new_ones(1, 2)

    image = torch.zeros(1, 3, 1, 3)
    plain = CAMSegmenter(Undecided(), (1, 1, 1), 0.5)(image)
    swapped = CAMSegmenter(Undecided(), (1, 1, 1), 0.5, channel_order=[1, 0])(image)
    assert plain.argmax(dim=1).flatten().tolist() == [0, 0, 1]
    assert swapped.argmax(dim=1).flatten().tolist() == [1, 1, 0]  # the same classes
    torch.testing.assert_close(swapped.flip(1), plain, rtol=0, atol=2e-6)


def test_true_labels_gate_in_the_classifier_s_order():
    label = torch.tensor([[1, 0, 0], [0, 1, 1]])
    segmenter = CAMSegmenter(ColourClassifier((0.1, 0.1, 0.9)), (1, 1, 1), 0.5, channel_order=[2, 1, 0])
    scores = segmenter(coloured(), label)
    left_out = torch.isneginf(scores).all(dim=(2, 3))
    assert left_out.tolist() == [[True, True, False], [False, False, True]]
    assert torch.equal(torch.isneginf(scores).any(dim=(2, 3)), left_out)


def test_a_label_of_zeros_means_none_of_these_classes():
    scores = CAMSegmenter(ColourClassifier((0.1, 0.3, 0.2)), (1, 1, 1), 0.5)(coloured(batch=1), torch.zeros(1, 3))
    assert torch.isneginf(scores).all()


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -0.5)])
def test_refuses_scales_that_are_not_positive(scales):
    with pytest.raises(ValueError, match="`scales` must be positive numbers"):
        CAMSegmenter(ColourClassifier(), (1, 1, 1), 0.5, scales=scales)


class BrightClassifier(nn.Module):
    """CAMs are the red and the green image; a class is present in what is bright in its colour."""

    def cams(self, image):
        cam = image[:, :2]
        return (cam,), (cam.mean(dim=(2, 3)) > 0.5).float()


@pytest.mark.parametrize("label", [None, [[1, 1], [0, 1]]])
def test_large_images_are_means_over_windows(label):
    image = coloured(8, 12)
    image[:, 1, :, :4] *= 0.3  # green is not present on the left
    label = None if label is None else torch.tensor(label)
    scores = CAMSegmenter(BrightClassifier(), (1.0,), 0.5, window=(8, 8))(image, label)
    importance = compute_importance_map((8, 8), mode="gaussian", sigma_scale=0.125)
    expected, weights = torch.zeros(2, 2, 8, 12), torch.zeros(8, 12)
    for left in (0, 4):
        window = slice(left, left + 8)
        weights[:, window] += importance
        for index, single in enumerate(image[:, :2, :, window]):
            present = single.mean(dim=(1, 2)) > 0.5 if label is None else label[index].bool()
            present = present if present.any() else torch.tensor([True, False])
            normalized = torch.from_numpy(slow_normalize((single * present[:, None, None]).numpy()))
            normalized[~present] = -1
            expected[index][..., window] += normalized * importance
    if label is not None:
        expected = expected.masked_fill((label == 0)[:, :, None, None], -torch.inf)
    torch.testing.assert_close(scores, expected / weights, atol=1e-5, rtol=1e-5)
    assert (scores[:, 1, :, :4] < 0).any() != (label is not None and label[:, 1].all())


def test_images_as_large_as_the_window_are_seen_as_a_whole():
    image = coloured(8, 12)
    whole = CAMSegmenter(BrightClassifier(), (1.0,), 0.5)(image)
    assert torch.equal(CAMSegmenter(BrightClassifier(), (1.0,), 0.5, window=(8, 12))(image), whole)
