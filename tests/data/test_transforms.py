import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.color import hed_from_rgb

from scripts.data.transforms import LargestChanneld, LoadMaskd, ScaleBytesd, WhiteBackgroundd
from scripts.training.augmentation import (
    PrepareBatch,
    RandomCutMix,
    RandomFlip,
    RandomGaussianBlur,
    RandomStain,
    RandomTranspose,
)

CPU = torch.device("cpu")


def images(batch, height=5, width=7, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


# --- flips


def test_flips_image_and_mask_together():
    image = images(256)
    mask = (image[:, :1] * 10).to(torch.uint8)
    torch.manual_seed(0)
    flipped, flipped_mask = RandomFlip(0.5, 0.5)(image, mask)
    counts = {(): 0, (2,): 0, (1,): 0, (1, 2): 0}  # tensor axes of one image
    for before, after, mask_before, mask_after in zip(image, flipped, mask, flipped_mask):
        axes = next(axes for axes in counts if torch.equal(after, before.flip(axes)))
        assert torch.equal(mask_after, mask_before.flip(axes))
        counts[axes] += 1
    assert flipped_mask.dtype == torch.uint8
    assert all(40 < count < 90 for count in counts.values())  # 64 each, give or take 3.5 deviations of 6.9


@pytest.mark.parametrize(
    ("horizontal", "vertical", "expected"),
    [
        (1, 0, [[2, 1], [4, 3], [6, 5]]),
        (0, 1, [[5, 6], [3, 4], [1, 2]]),
        (1, 1, [[6, 5], [4, 3], [2, 1]]),
        (0, 0, [[1, 2], [3, 4], [5, 6]]),
    ],
)
def test_horizontal_is_left_right_and_vertical_is_up_down(horizontal, vertical, expected):
    mask = torch.tensor([[[[1, 2], [3, 4], [5, 6]]]])
    image = mask.expand(1, 3, 3, 2).float()
    flipped, flipped_mask = RandomFlip(horizontal, vertical)(image, mask)
    assert flipped_mask[0, 0].tolist() == expected
    assert all(channel.tolist() == expected for channel in flipped[0])


def test_multi_hot_labels_are_left_alone():
    label = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    flipped, same = RandomFlip(1, 1)(images(2), label)
    assert torch.equal(same, label) and torch.equal(flipped, images(2).flip((2, 3)))


@pytest.mark.parametrize("transform", [RandomFlip(), RandomGaussianBlur()])
def test_a_seed_repeats_the_augmentation(transform):
    def augmented(seed):
        torch.manual_seed(seed)
        return transform(images(16), torch.zeros(16, 3))[0]

    assert torch.equal(augmented(1), augmented(1))
    assert not torch.equal(augmented(1), augmented(2))


# --- blur


def with_spike(batch):
    """Random images whose third channel is a single bright pixel, which shows the kernel."""
    image = images(batch, 17, 21).double()
    image[:, 2] = 0
    image[:, 2, 8, 10] = 1
    return image


def sigma_of(blurred):
    """The Gaussian's standard deviation, from a spike and its neighbour: exp(-1 / (2 sigma^2)) is their ratio."""
    ratio = (blurred[2, 8, 11] / blurred[2, 8, 10]).item()
    return math.sqrt(-0.5 / math.log(ratio)) if ratio > 0 else 0.0


@pytest.mark.parametrize("max_sigma_px", [1.0, 2.5])
def test_blur_is_scipy_s_gaussian_of_a_drawn_deviation(max_sigma_px):
    image = with_spike(30)
    torch.manual_seed(0)
    blurred, _ = RandomGaussianBlur(probability=1, max_sigma_px=max_sigma_px)(image, torch.zeros(30))
    sigmas = [sigma_of(item) for item in blurred]
    for before, after, sigma in zip(image.numpy(), blurred.numpy(), sigmas):
        expected = [
            gaussian_filter(channel, sigma, mode="nearest", radius=round(4 * max_sigma_px)) if sigma else channel
            for channel in before
        ]
        np.testing.assert_allclose(after, np.stack(expected), atol=1e-5)
    assert max(sigmas) <= max_sigma_px
    thirds = np.histogram(sigmas, bins=3, range=(0, max_sigma_px))[0]
    assert thirds.min() > 3  # of 30, spread evenly


def test_blurs_the_chosen_share_of_images():
    image = images(200)
    torch.manual_seed(0)
    blurred, _ = RandomGaussianBlur(probability=0.25)(image, torch.zeros(200))
    unchanged = sum(torch.equal(before, after) for before, after in zip(image, blurred))
    assert 125 < unchanged < 180  # 150, a few more for tiny deviations


@pytest.mark.parametrize(("probability", "max_sigma_px"), [(0, 1.0), (1, 1e-6), (1, 0)])
def test_no_deviation_is_the_identity(probability, max_sigma_px):
    image = images(4)
    assert torch.equal(RandomGaussianBlur(probability, max_sigma_px)(image, torch.zeros(4))[0], image)


def test_blur_keeps_constant_images_and_leaves_labels_alone():
    mask = torch.randint(0, 4, (3, 1, 5, 7))
    blurred, same = RandomGaussianBlur(1, 1)(torch.full((3, 3, 5, 7), 0.3), mask)
    torch.testing.assert_close(blurred, torch.full((3, 3, 5, 7), 0.3))
    assert torch.equal(same, mask)


def test_blurs_images_smaller_than_the_kernel():
    image = images(8, 1, 2).double()
    torch.manual_seed(0)
    blurred, _ = RandomGaussianBlur(1, 1)(image, torch.zeros(8))
    # of two pixels whose border is replicated, each gives the other the same share
    torch.testing.assert_close(blurred.sum(dim=3), image.sum(dim=3), rtol=1e-6, atol=0)
    kept = blurred.diff(dim=3) / image.diff(dim=3)  # (B, 3, 1, 1)
    torch.testing.assert_close(kept, kept[:, :1].expand_as(kept), rtol=1e-5, atol=0)
    assert kept.max() <= 1 + 1e-6 and 0 < kept.min() < 0.7


# --- batches


def test_moves_bytes_and_changes_intensities_in_0_to_1_in_order():
    image = torch.tensor([51, 255, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    spatial = [lambda x, label: (x.roll(1, dims=1), label + 1), lambda x, label: (x.clone(), label * 2)]
    intensity = [lambda x, label: (x + 1, label - 1), lambda x, label: (x * 2, label + 2)]
    prepared, label = PrepareBatch(spatial, intensity)({"image": image, "label": torch.tensor([[2.0]])}, CPU)
    torch.testing.assert_close(prepared.flatten(), torch.tensor([2.0, 2.4, 4.0]))
    assert label.tolist() == [[7.0]]


def test_prepares_batches_without_labels():
    image = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    prepared, label = PrepareBatch()({"image": image, "name": ["a", "b"]}, CPU)
    assert label is None
    assert prepared.dtype == torch.float32 and torch.equal(prepared, torch.ones(2, 3, 4, 4))


# --- masks


@pytest.fixture
def mask_item(tmp_path):
    mask = np.array([[0, 1, 4], [4, 2, 3]], dtype=np.uint8)
    path = tmp_path / "patch.png"
    Image.fromarray(mask).save(path)
    return {"image": torch.zeros(3, 2, 3, dtype=torch.uint8), "label": str(path), "name": "patch.png"}


def test_loads_masks_in_the_values_wanted(mask_item):
    loaded = LoadMaskd("label", {"0": 4, "1-3": 7, "4": 0})(mask_item)
    assert loaded["label"].tolist() == [[[4, 7, 0], [0, 7, 7]]] and loaded["label"].dtype == torch.uint8
    assert loaded["name"] == "patch.png" and loaded["image"] is mask_item["image"]
    assert isinstance(mask_item["label"], str)  # the item given is left alone


def test_names_the_mask_with_an_unknown_value(mask_item):
    with pytest.raises(ValueError, match=r"patch.png: masks must only have values .* also got \[4\]"):
        LoadMaskd("label", {"0-3": 0})(mask_item)


def test_refuses_a_mask_of_another_size_than_its_image(mask_item):
    mask_item["tile"] = torch.zeros(3, 3, 2)
    with pytest.raises(ValueError, match="patch.png must have the size of its image, 2x3, got 3x2"):
        LoadMaskd("label", {"0-4": 0}, image_key="tile")(mask_item)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_white_becomes_background_in_masks(dtype):
    image = torch.full((3, 10, 12), 0.5)
    image[:, :, :6] = 1.0
    image[:, 0, 11] = 1.0  # a single pixel is no glass
    mask = torch.arange(120).view(1, 10, 12).to(dtype) % 4 + 1
    item = {"image": image, "pred": mask.clone(), "label": mask.clone()}
    masked = WhiteBackgroundd("pred")(item)
    expected = mask.clone()
    expected[:, :, :6] = 0
    assert torch.equal(masked["pred"], expected) and masked["pred"].dtype == dtype
    assert torch.equal(masked["label"], mask) and torch.equal(item["pred"], mask)
    assert torch.equal(WhiteBackgroundd("pred", background=False)(item)["pred"], mask)


def test_bytes_become_numbers_from_0_to_1():
    item = ScaleBytesd(keys="image")({"image": torch.tensor([[0, 51, 255]], dtype=torch.uint8), "name": "a.png"})
    torch.testing.assert_close(item["image"], torch.tensor([[0.0, 0.2, 1.0]]))
    with pytest.raises(ValueError, match="'image' must be uint8, got torch.float32; it may already be scaled"):
        ScaleBytesd(keys="image")(item)


def test_the_largest_channel_becomes_its_value():
    scores = torch.tensor([[0.1, 2.0, -torch.inf], [0.2, 2.0, -3.0], [0.0, 1.0, -torch.inf]]).view(3, 1, 3)
    item = LargestChanneld(keys="pred", values=[4, 0, 2])({"pred": scores, "label": 1})
    assert item["pred"].tolist() == [[[0, 4, 0]]] and item["pred"].dtype == torch.uint8 and item["label"] == 1


def test_nan_in_a_networks_output_is_an_error():
    item = {"pred": torch.tensor([0.0, torch.nan]).view(2, 1, 1), "name": "a.png"}
    with pytest.raises(ValueError, match="'pred' of a.png must not be NaN"):
        LargestChanneld(keys="pred", values=[0, 1])(item)


def test_transposed_images_take_their_masks_along():
    torch.manual_seed(0)
    image, mask = torch.rand(64, 3, 4, 4), torch.randint(0, 3, (64, 1, 4, 4))
    new, new_mask = RandomTranspose(0.5)(image, mask)
    turned = [torch.equal(new[i], image[i].mT) and torch.equal(new_mask[i], mask[i].mT) for i in range(64)]
    same = [torch.equal(new[i], image[i]) and torch.equal(new_mask[i], mask[i]) for i in range(64)]
    assert all(a != b for a, b in zip(turned, same)) and 20 < sum(turned) < 44
    label = torch.rand(64, 2)
    assert RandomTranspose(1.0)(image, label)[1] is label
    oblong = torch.rand(2, 3, 4, 5)
    assert RandomTranspose(1.0)(oblong, None)[0] is oblong


def test_rectangles_come_from_another_image_with_their_masks():
    torch.manual_seed(0)
    batch, height, width = 64, 20, 30
    image = torch.arange(batch).view(-1, 1, 1, 1).expand(-1, 3, height, width).to(torch.uint8)
    mask = image[:, :1] + 100
    new, new_mask = RandomCutMix(0.5, (0.3, 0.8))(image, mask)
    assert new.dtype == new_mask.dtype == torch.uint8
    assert torch.equal(new_mask, new[:, :1] + 100) and (new == new[:, :1]).all()
    mixed, sources = 0, []
    for index, single in enumerate(new[:, 0]):
        rows, columns = torch.where(single != index)
        if len(rows):
            mixed += 1
            inside = single[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert len(inside.unique()) == 1 and len(inside.flatten()) == len(rows)  # one rectangle of one image
            sources.append(inside[0, 0].item())
            assert 0.3 * height - 1 <= inside.shape[0] <= 0.8 * height + 1
            assert 0.3 * width - 1 <= inside.shape[1] <= 0.8 * width + 1
    assert 20 < mixed < 44 and len(set(sources)) == mixed


def test_mixing_nothing_and_refusals():
    image, mask = torch.rand(4, 3, 5, 5), torch.zeros(4, 1, 5, 5)
    assert torch.equal(RandomCutMix(0.0)(image, mask)[0], image)
    with pytest.raises(ValueError, match="`label` must be masks, which CutMix needs; leave `RandomCutMix` out"):
        RandomCutMix()(image, torch.zeros(4, 2))
    for sides in ((0.0, 0.5), (0.6, 0.5), (0.5, 1.1)):
        with pytest.raises(ValueError, match=r"`sides` must be two fractions in \(0, 1\], the smaller first, got"):
            RandomCutMix(sides=sides)


def test_stains_are_scaled_one_by_one():
    torch.manual_seed(0)
    image = 0.2 + 0.6 * torch.rand(8, 3, 5, 7)
    label = torch.rand(8, 2)
    new, same_label = RandomStain(0.3)(image, label)
    assert same_label is label and new.shape == image.shape
    for before, after in zip(image, new):
        stains = [-np.log(x.numpy()).transpose(1, 2, 0) @ hed_from_rgb for x in (before, after)]
        factors = stains[1] / stains[0]  # the same everywhere for each stain
        middle = np.median(factors, axis=(0, 1))
        inside = (after < 1).all(dim=0).numpy()  # nothing is brighter than white
        np.testing.assert_allclose(stains[1][inside], (middle * stains[0])[inside], atol=2e-3)
        assert (abs(middle - 1) < 0.3 + 1e-3).all() and abs(middle - 1).max() > 0.01


def test_white_and_images_left_out_keep_their_colours():
    white = torch.ones(4, 3, 2, 2)
    torch.testing.assert_close(RandomStain(0.5)(white, None)[0], white)
    image = torch.rand(4, 3, 6, 6).clamp(min=0.01)
    torch.testing.assert_close(RandomStain(0.5, probability=0)(image, None)[0], image, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"`strength` must be in \[0, 1\), got 1.5"):
        RandomStain(1.5)
