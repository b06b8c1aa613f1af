import numpy as np
import pytest

from scripts.slides.segmenting.tissue import saturation, tissue_mask, without_small

GLASS, PINK, BLACK = (243, 242, 244), (220, 130, 170), (0, 0, 0)


def picture(shape, color, noise=2):
    image = np.empty((*shape, 3), dtype=np.int64)
    image[:] = color
    return np.clip(image + np.random.default_rng(0).integers(-noise, noise + 1, image.shape), 0, 255).astype(np.uint8)


def test_saturation_is_that_of_hsv():
    image = np.array([[[255, 255, 255], [0, 0, 0], [200, 100, 150], [0, 9, 0]]], dtype=np.uint8)
    assert saturation(image).tolist() == [[0, 0, 127, 255]]


def test_tissue_is_found_and_grown_by_a_pixel():
    image = picture((60, 80), GLASS)
    image[20:40, 30:50] = picture((20, 20), PINK)
    expected = np.zeros((60, 80), dtype=bool)
    expected[19:41, 29:51] = True
    assert np.array_equal(tissue_mask(image, mpp=8.0), expected)


@pytest.mark.parametrize("color", [GLASS, BLACK, (255, 255, 255)])
def test_slides_without_tissue_have_none(color):
    assert not tissue_mask(picture((50, 50), color, noise=0), mpp=8.0).any()
    assert not tissue_mask(picture((50, 50), GLASS), mpp=8.0).any()


def test_slides_of_tissue_alone_have_no_glass():
    image = picture((50, 50), PINK, noise=20)
    image[:25] = picture((25, 50), (170, 60, 120), noise=20)  # Otsu's own threshold lies between the two
    assert tissue_mask(image, mpp=8.0).all()


def test_small_objects_and_holes_go_unless_the_border_cuts_them():
    image = picture((60, 60), GLASS)
    image[10:40, 10:40] = PINK
    image[20:23, 20:23] = GLASS  # 576 square micrometres
    image[50:53, 50:53] = PINK
    image[0:2, 55:57] = PINK
    mask = tissue_mask(image, mpp=8.0, smallest_mm2=0.001)
    assert mask[21, 21] and not mask[51, 51] and mask[1, 56]
    assert tissue_mask(image, mpp=8.0, smallest_mm2=0)[51, 51]


def test_size_is_counted_in_pixels():
    mask = np.zeros((5, 9), dtype=bool)
    mask[2, 2:5] = mask[1:3, 6:8] = True
    assert [without_small(mask, size).sum() for size in (3, 4, 5)] == [7, 4, 0]


def test_refuses_negative_sizes():
    with pytest.raises(ValueError, match="`smallest_mm2` must not be negative, got -1"):
        tissue_mask(picture((5, 5), GLASS), 8.0, -1)


def blobs(shape=(60, 80), seed=0):
    """Stained tissue on glass as at 8 um per pixel, with dark nuclei, and where the tissue is."""
    rng = np.random.default_rng(seed)
    image = picture(shape, GLASS)
    rows, columns = np.indices(shape)
    inside = np.hypot(rows - shape[0] / 2, columns - shape[1] / 2) < shape[0] / 3
    stain = np.where(rng.random((*shape, 1)) < 0.3, (70, 35, 95), PINK) + rng.integers(-20, 21, (*shape, 3))
    return np.where(inside[..., None], stain.clip(0, 255), image).astype(np.uint8), inside


CANVASES = {
    "noise": lambda shape: np.random.default_rng(1).integers(0, 4, (*shape, 3)),
    "tinted": lambda shape: np.broadcast_to((4, 2, 3), (*shape, 3)),
    "more tinted": lambda shape: np.broadcast_to((26, 6, 14), (*shape, 3)),
    "dark grey": lambda shape: np.broadcast_to((60, 45, 52), (*shape, 3)),
    "dark, with noise": lambda shape: np.random.default_rng(1).integers(-2, 3, (*shape, 3)) + (50, 40, 44),
    "grey": lambda shape: np.broadcast_to((128, 128, 128), (*shape, 3)),
    "tinted grey": lambda shape: np.broadcast_to((120, 110, 115), (*shape, 3)),
    "black": lambda shape: np.zeros((*shape, 3)),
}


@pytest.mark.parametrize("width", [2, 30, 200])
@pytest.mark.parametrize("name", CANVASES)
def test_a_canvas_around_a_scan_changes_nothing_in_it(name, width):
    scan, _ = blobs()
    alone = tissue_mask(scan, mpp=8.0)
    image = CANVASES[name]((60 + 2 * width, 80 + 2 * width)).astype(np.uint8)
    place = (slice(width, -width), slice(width, -width))
    image[place] = scan
    found = tissue_mask(image, mpp=8.0)
    assert np.array_equal(found[place], alone)
    assert found.sum() == alone.sum() > 1000


@pytest.mark.parametrize("name", CANVASES)
def test_canvas_between_two_scans_is_no_tissue(name):
    scan, inside = blobs()
    gap = CANVASES[name]((60, 40)).astype(np.uint8)
    found = tissue_mask(np.concatenate([scan, gap, scan], axis=1), mpp=8.0)
    assert not found[:, 80:120].any()
    assert found[:, :80][inside].all() and found[:, 120:][inside].all()


@pytest.mark.parametrize("color", [(40, 20, 60), (60, 30, 90), (50, 25, 70), (45, 30, 80)])
def test_dark_tissue_stays(color):
    """Haematoxylin as dark as it may be, in clumps and all over."""
    image = picture((60, 80), GLASS)
    image[20:40, 30:50] = picture((20, 20), color, noise=8)
    assert tissue_mask(image, mpp=8.0)[20:40, 30:50].all()
    assert tissue_mask(picture((40, 40), color, noise=8), mpp=8.0).all()


def test_specks_of_black_in_tissue_stay_tissue():
    image, inside = blobs()
    image[28:32, 38:42] = 5  # pigment, 1000 square micrometres
    assert tissue_mask(image, mpp=8.0)[inside].all()


def test_the_least_saturation_can_be_set():
    pale = picture((60, 80), GLASS, noise=0)
    pale[20:40, 30:50] = picture((20, 20), (235, 225, 230), noise=2)  # 4 %
    assert not tissue_mask(pale, mpp=8.0).any()
    found = tissue_mask(pale, mpp=8.0, least_saturation=0.02)
    assert found[20:40, 30:50].all() and found.sum() == 22 * 22
    assert tissue_mask(pale, mpp=8.0, least_saturation=0).all()
    pale[:, :10] = 0
    assert np.array_equal(tissue_mask(pale, mpp=8.0, least_saturation=0), pale.max(axis=2) > 0)
    with pytest.raises(ValueError, match=r"`tissue_saturation` must be in \[0, 1\], got 5"):
        tissue_mask(pale, 8.0, least_saturation=5)
