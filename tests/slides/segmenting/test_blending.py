import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from some_classes import some_classes
from torch import nn

from scripts.data.background import white_pixels
from scripts.errors import BundleError
from scripts.slides.segmenting.blending import BandImage, Blender, Segmenter, stretches
from scripts.slides.segmenting.tiles import TileGrid, blending_window, mirrored, nearest_pixels, step_of

COLORS = np.array([[205, 51, 51], [0, 255, 0], [65, 105, 225]], dtype=np.uint8)
VALUES = np.array([1, 2, 0])  # of the channels, where there is no background
NAMES = ["a", "b", "c"]


class ArrayView:
    """An image in memory as a view of a slide; counts the blocks that are read."""

    def __init__(self, image, block=(16, 20)):
        self.image, self.shape, self.block, self.reads = image, image.shape[:2], block, []

    def read_block(self, row, column):
        self.reads.append((row, column))
        top, left = row * self.block[0], column * self.block[1]
        return self.image[top : top + self.block[0], left : left + self.block[1]]


class ColorClass(nn.Module):
    """Logits that favour the class whose colour a pixel has."""

    def __init__(self, sharpness=50.0):
        super().__init__()
        self.sharpness = sharpness

    def forward(self, image):
        colors = torch.from_numpy(COLORS).float() / 255
        return -self.sharpness * (image[:, None] - colors[None, :, :, None, None]).square().sum(dim=2)


class Wavy(nn.Module):
    """Logits that depend on where in its tile a pixel lies: no two tiles agree."""

    def forward(self, image):
        rows = torch.linspace(-1, 1, image.shape[2])[None, :, None]
        columns = torch.linspace(-1, 1, image.shape[3])[None, None, :]
        red, green, blue = image.unbind(dim=1)
        return torch.stack([3 * red + rows, 3 * green - columns, 3 * blue + rows * columns], dim=1)


def blender(image, network, tile=16, overlap=0.5, band=3, tissue=None, background=False, batch=4, block=(16, 20)):
    tissue = np.ones((4, 5), dtype=bool) if tissue is None else tissue
    grid = TileGrid(*image.shape[:2], tile, step_of(tile, overlap), band)
    classes = some_classes(NAMES) if background else some_classes(NAMES, False, segmenter_values=VALUES.tolist())
    segmenter = Segmenter(network, classes, torch.device("cpu"), batch)
    return Blender(ArrayView(image, block), grid, tissue, segmenter, threads=2)


def maps(work):
    """The whole class map and entropy."""
    classes, entropy = (np.full(work.view.shape, 77, dtype=np.uint8) for _ in range(2))
    for band in range(len(work.grid.bands)):
        left, right = work.grid.band_pixels(band)
        for row, *strip in work.strips(band, range(work.grid.rows)):
            top, bottom = work.grid.strip_pixels(row)
            classes[top:bottom, left:right], entropy[top:bottom, left:right] = strip
    return classes, entropy


def random_image(shape, seed=0):
    """Pixels of the three colours at random, and which one each has."""
    index = np.random.default_rng(seed).integers(0, 3, shape)
    return COLORS[index], index


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (16, 16), (61, 83)])
@pytest.mark.parametrize(("tile", "overlap"), [(16, 0.5), (16, 0.25), (8, 0), (24, 0.5), (100, 0.5)])
def test_colours_become_their_classes_whatever_the_tiles(shape, tile, overlap):
    image, index = random_image(shape)
    classes, entropy = maps(blender(image, ColorClass(), tile, overlap))
    assert np.array_equal(classes, VALUES[index])
    assert entropy.max() <= 1


def test_tiles_and_bands_do_not_change_a_network_of_single_pixels():
    image = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    first = maps(blender(image, ColorClass(5.0), 16, 0.5))
    logits = ColorClass(5.0)(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    prob = logits.softmax(dim=1)[0].double().numpy()
    assert np.array_equal(first[0], VALUES[prob.argmax(axis=0)])
    assert np.abs(first[1] - 255 * -(prob * np.log(prob)).sum(axis=0) / math.log(3)).max() <= 0.51
    for tile, overlap, band in ((16, 0, 1), (24, 0.25, 2), (40, 0.5, 100), (100, 0.5, 1)):
        classes, entropy = maps(blender(image, ColorClass(5.0), tile, overlap, band))
        assert np.array_equal(classes, first[0])
        assert np.abs(entropy.astype(int) - first[1]).max() <= 1


def test_the_border_is_like_the_inside():
    image = np.full((40, 50, 3), 130, dtype=np.uint8)
    classes, entropy = maps(blender(image, ColorClass(3.0)))
    assert len(np.unique(classes)) == 1 and entropy.max() - entropy.min() <= 1


@pytest.mark.parametrize(("tile", "overlap", "band"), [(16, 0.5, 2), (12, 0.25, 100), (20, 0.5, 1)])
def test_blending_is_the_weighted_mean_of_all_tiles(tile, overlap, band):
    image = np.random.default_rng(1).integers(0, 256, (45, 38, 3), dtype=np.uint8)
    work = blender(image, Wavy(), tile, overlap, band)
    step, margin = work.grid.step_px, work.grid.margin_px
    sums, weights = np.zeros((3, 200, 200)), np.zeros((200, 200))
    window = blending_window(tile, step).double().numpy()
    for row in range(work.grid.rows):
        for column in range(work.grid.columns):
            y, x = row * step - margin, column * step - margin
            part = image[np.ix_(mirrored(y, y + tile, 45), mirrored(x, x + tile, 38))]
            prob = Wavy()(torch.from_numpy(part).permute(2, 0, 1)[None].double() / 255).softmax(dim=1)[0].numpy()
            place = np.s_[y + 50 : y + 50 + tile, x + 50 : x + 50 + tile]
            sums[:, *place] += prob * window
            weights[place] += window
    prob = (sums / np.maximum(weights, 1e-9))[:, 50:95, 50:88]
    classes, entropy = maps(work)
    assert np.array_equal(classes, VALUES[prob.argmax(axis=0)])
    assert np.abs(entropy - 255 * -(prob * np.log(prob)).sum(axis=0) / math.log(3)).max() <= 0.51


def test_strips_from_the_middle_are_the_same_bytes():
    image = np.random.default_rng(1).integers(0, 256, (70, 60, 3), dtype=np.uint8)
    work = blender(image, Wavy())
    whole = [strip for _, *strip in work.strips(1, range(work.grid.rows))]
    for row in (0, 3, work.grid.rows - 1):
        ((_, classes, entropy),) = work.strips(1, range(row, row + 1))
        assert np.array_equal(classes, whole[row][0]) and np.array_equal(entropy, whole[row][1])


def test_outside_the_tissue_nothing_is_read_nor_run():
    image, index = random_image((96, 96))
    tissue = np.zeros((12, 12), dtype=bool)
    tissue[1:3, 1:4] = True
    work, tiles = blender(image, ColorClass(), tissue=tissue, band=100), []
    classes = np.concatenate([strip[1] for strip in work.strips(0, range(work.grid.rows), tiles.append)])
    lines = nearest_pixels(np.arange(96), 96, 12)
    inside = tissue[np.ix_(lines, lines)]
    assert np.array_equal(classes, np.where(inside, VALUES[index], 3))
    assert sum(tiles) == work.cells.sum() == 6 and max(tiles) <= 4
    assert {row for row, _ in work.view.reads} <= {0, 1, 2} and {column for _, column in work.view.reads} <= {0, 1, 2}


@pytest.mark.parametrize(("tile", "band"), [(16, 1), (16, 4), (64, 100)])
def test_white_is_background_as_on_the_whole_slide(tile, band):
    rng = np.random.default_rng(0)
    image = np.full((150, 170, 3), 120, dtype=np.uint8)
    for size in (7, 8, 12, 30):  # components of 49 pixels are tissue, of 64 not
        for _ in range(12):
            y, x = rng.integers(0, 150), rng.integers(0, 170)
            image[y : y + size, x : x + size] = 240
    image[75, 3:52], image[80, 3:53], image[10:59, 160] = 240, 240, 240  # long and thin
    work = blender(image, ColorClass(), tile, 0.5, band, background=True)
    classes, entropy = maps(work)
    white = white_pixels(image)
    assert np.array_equal(classes == 0, white) and 0 < white.sum() < (image[..., 0] == 240).sum()
    assert (entropy[white] == 0).all()


def test_read_errors_reach_the_caller():
    work = blender(random_image((40, 40))[0], ColorClass())

    def broken(row, column):
        raise ValueError("a damaged block")

    work.view.read_block = broken
    with pytest.raises(ValueError, match="a damaged block"):
        maps(work)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_outputs_that_are_no_numbers(bad):
    work = blender(random_image((40, 40))[0], ColorClass(bad))
    with pytest.raises(BundleError, match="the network's outputs must be finite"):
        maps(work)


def test_refuses_networks_with_other_classes():
    work = blender(random_image((40, 40))[0], nn.Conv2d(3, 2, 1))
    with pytest.raises(ValueError, match=r"`network` must output 3 channels of its input's size, got \(3, 2, 16, 16\)"):
        maps(work)


def test_bands_hold_their_rows_and_forget_them():
    image = np.random.default_rng(0).integers(0, 256, (100, 90, 3), dtype=np.uint8)
    view, needed = ArrayView(image), np.ones((7, 5), dtype=bool)
    needed[2, 3] = False
    with ThreadPoolExecutor(2) as pool:
        band = BandImage(view, (25, 70), needed, pool)
        expected = image.copy()
        expected[32:48, 60:80] = 255
        assert np.array_equal(band.rows(30, 55), expected[30:55, 20:80])
        band.forget(48)
        assert np.array_equal(band.rows(50, 51), expected[50:51, 20:80])
    assert len(view.reads) == len(set(view.reads))


def test_stretches_have_no_gaps():
    assert list(stretches([1, 2, 3, 7, 9, 10])) == [range(1, 4), range(7, 8), range(9, 11)]
    assert list(stretches([])) == []
