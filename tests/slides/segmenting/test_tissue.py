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
