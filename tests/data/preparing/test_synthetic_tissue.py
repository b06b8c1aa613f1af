import math

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist
from skimage.color import rgb2hed
from skimage.feature import structure_tensor
from skimage.filters import threshold_multiotsu
from skimage.metrics import structural_similarity

from scripts.data.preparing import synthetic_tissue
from scripts.data.preparing.synthetic_tissue import STAINS, make_patch

MIXED = ((1, 2), (1, 3), (2, 3), (1, 2, 3))


def grey(image):
    return image @ np.array([0.299, 0.587, 0.114])


def patches(first_seed, count, tissue_sets, size_px=96, glass=0.0):
    return [
        make_patch(np.random.default_rng(first_seed + i), size_px, tissue_sets[i % len(tissue_sets)], glass=glass)
        for i in range(count)
    ]


def mean_iou(mask, pred):
    """Mean intersection over union of the three tissues, over the pixels where ``mask`` is not background."""
    pred = np.where(mask > 0, pred, 0)
    return np.mean([((mask == c) & (pred == c)).sum() / ((mask == c) | (pred == c)).sum() for c in (1, 2, 3)])


def test_no_stain_leaves_the_white_point():
    white = np.array([240.0, 230.0, 220.0])
    image = synthetic_tissue.mix_stains(np.zeros((2, 3, 2)), np.array([[0.6, 0.7, 0.3], [0.1, 0.9, 0.4]]), white)
    assert image == pytest.approx(np.broadcast_to(white, (2, 3, 3)))


def test_stains_follow_beer_lambert():
    vectors = np.array([[1.0, 2.0, 0.0], [0.5, 0.0, 1.0]])
    light = synthetic_tissue.mix_stains(np.array([[[1.0, 2.0]]]), vectors, np.full(3, 200.0))
    assert light[0, 0] == pytest.approx([200 * 10**-2.0, 200 * 10**-2.0, 200 * 10**-2.0])
    concentrations = np.random.default_rng(0).uniform(0, 1, (4, 5, 2))
    once, twice = (synthetic_tissue.mix_stains(k * concentrations, vectors, np.ones(3)) for k in (1, 2))
    assert twice == pytest.approx(once**2)


def test_smooth_noise_has_the_moments_of_blurred_white_noise():
    rng = np.random.default_rng(0)
    noise = np.stack([synthetic_tissue.smooth_noise(rng, (9, 13), (2.0, 4.0)) for _ in range(4000)])
    assert noise.mean(0) == pytest.approx(np.zeros((9, 13)), abs=0.08)
    assert noise.var(0) == pytest.approx(np.ones((9, 13)), abs=0.12)
    # White noise after a Gaussian of standard deviation s correlates by exp(-(d / 2s)**2) over a distance d.
    assert (noise[:, 2, 6] * noise[:, 4, 6]).mean() == pytest.approx(math.exp(-0.25), abs=0.06)
    assert (noise[:, 4, 3] * noise[:, 4, 11]).mean() == pytest.approx(math.exp(-1), abs=0.06)


def test_darts_keep_their_distance_and_leave_no_room():
    free = np.zeros((40, 50), dtype=bool)
    free[5:30, 10:45] = True
    centres = synthetic_tissue.place_centres(np.random.default_rng(0), free, 6.5)
    assert free[tuple(centres.T)].all()
    between = cdist(centres, centres) + 1e9 * np.eye(len(centres))
    assert between.min() >= 6.5
    assert cdist(np.argwhere(free), centres).min(axis=1).max() < 6.5


def test_nucleus_has_the_area_and_direction_of_its_ellipse():
    nuclei = synthetic_tissue.Nuclei((9, 9), (8, 8), (0.5, 0.5), 0.0, (0.7, 0.7), 0.0, 0.0)
    chromatin, covered = synthetic_tissue.draw_nuclei(
        np.random.default_rng(0), (40, 40), np.array([[20, 20]]), np.array([math.pi / 6]), nuclei
    )
    assert covered.sum() == pytest.approx(math.pi * 8 * 4, rel=0.05)
    assert chromatin == pytest.approx(0.7 * covered)
    rows, columns = np.nonzero(covered > 0.5)
    long_axis = np.linalg.eigh(np.cov(columns, rows))[1][:, 1]
    assert abs(long_axis @ [math.cos(math.pi / 6), math.sin(math.pi / 6)]) > 0.995


def test_fibres_change_less_along_their_angle_than_across():
    density, angle = synthetic_tissue.draw_fibres(np.random.default_rng(1), (96, 96))
    slope_y, slope_x = np.gradient(density)
    along = np.cos(angle) * slope_x + np.sin(angle) * slope_y
    across = np.cos(angle) * slope_y - np.sin(angle) * slope_x
    assert (across**2).mean() > 10 * (along**2).mean()


def test_fragments_go_to_the_nearest_piece():
    mask = np.ones((10, 12), dtype=np.uint8)
    mask[:, 6:] = 2
    expected = mask.copy()
    mask[2:4, 1:3] = 3  # 4 pixels within class 1
    mask[7, 10] = 0  # 1 pixel within class 2
    assert (synthetic_tissue.absorb_fragments(mask, 5) == expected).all()
    assert (synthetic_tissue.absorb_fragments(mask, 4)[2:4, 1:3] == 3).all()


@pytest.mark.parametrize("tissues", [(1,), (3, 2), (1, 2, 3)])
def test_patch_shows_exactly_the_tissues_asked_for(tissues):
    for image, mask in patches(0, 4, [tissues], size_px=64, glass=0.3):
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and mask.dtype == np.uint8
        shares = np.bincount(mask.ravel(), minlength=4) / mask.size
        assert set(np.flatnonzero(shares[1:]) + 1) == set(tissues)
        assert shares[list(tissues)].min() >= synthetic_tissue.MIN_SHARE


def test_patch_depends_on_the_generator_alone():
    (image, mask), (same_image, same_mask), (other_image, _) = (
        make_patch(np.random.default_rng(seed), 64, (1, 3)) for seed in (5, 5, 6)
    )
    assert (image == same_image).all() and (mask == same_mask).all()
    assert (image != other_image).mean() > 0.5


def test_glass_is_white_and_tissue_is_not():
    images, masks = map(np.stack, zip(*patches(20, 6, MIXED, glass=0.3)))
    assert (masks == 0).mean() > 0.1
    assert (grey(images)[masks == 0] > 200).mean() > 0.95
    assert (grey(images)[masks > 0] > 200).mean() < 0.02


@pytest.mark.parametrize("tissue", [1, 2, 3])
def test_nuclei_are_blue_and_their_surroundings_pink(tissue):
    image = np.concatenate([image[mask > 0] for image, mask in patches(50, 6, [(tissue,)])])  # (N, 3)
    level = grey(image)
    red, green, blue = image[level < np.quantile(level, 0.05)].mean(0)
    assert blue > red + 20 > green + 20
    red, green, blue = image[level > np.quantile(level, 0.6)].mean(0)
    assert red > blue > green + 30


def test_labs_stain_the_same_tissue_differently():
    (image_a, mask_a), (image_b, mask_b) = (
        make_patch(np.random.default_rng(4), 96, (1, 2, 3), STAINS[name]) for name in ("lab_a", "lab_b")
    )
    assert (mask_a == mask_b).all()
    assert structural_similarity(grey(image_a), grey(image_b), data_range=255) > 0.7
    tissue_a, tissue_b = image_a[mask_a > 0].mean(0), image_b[mask_a > 0].mean(0)
    assert np.abs(tissue_a - tissue_b).max() > 25
    assert tissue_a[2] - tissue_a[0] > tissue_b[2] - tissue_b[0] + 25  # lab_b is redder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size_px": 31}, "`size_px` must be a whole number, got 31; use 32 or more"),
        ({"size_px": 64.0}, "`size_px` must be a whole number, got 64.0"),
        ({"tissues": ()}, r"`tissues` must be distinct values of \[1, 2, 3\], got \(\)"),
        ({"tissues": (1, 1)}, r"got \(1, 1\)"),
        ({"tissues": (0, 1)}, r"got \(0, 1\)"),
        ({"glass": 30}, r"`glass` must be in \[0, 0.6\], got 30; use a fraction, not a percentage"),
    ],
)
def test_patch_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_patch(np.random.default_rng(0), **{"size_px": 64, "tissues": (1,), **arguments})


def test_patch_says_when_tissues_find_no_room(monkeypatch):
    monkeypatch.setattr(synthetic_tissue, "MIN_SHARE", 0.4)
    with pytest.raises(ValueError, match=r"but \(1, 2, 3\) do not fit in 64 px"):
        make_patch(np.random.default_rng(0), 64, (1, 2, 3))


def test_colour_of_a_pixel_does_not_tell_the_tissues():
    known_images, known_masks = map(np.stack, zip(*patches(100, 16, MIXED)))
    images, masks = map(np.stack, zip(*patches(200, 16, MIXED)))

    def bins(image):
        return np.ravel_multi_index(tuple(np.moveaxis(image // 16, -1, 0)), (16, 16, 16))

    histograms = [np.bincount(bins(known_images)[known_masks == c], minlength=4096) for c in (1, 2, 3)]
    bayes = np.argmax([h / h.sum() for h in histograms], axis=0)[bins(images)] + 1
    assert mean_iou(masks, bayes) < 0.42

    haematoxylin = rgb2hed(images)[..., 0]
    rank = np.digitize(haematoxylin, threshold_multiotsu(haematoxylin[masks > 0], classes=3))
    orders = [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)]
    assert max(mean_iou(masks, np.array(order)[rank]) for order in orders) < 0.42


def test_texture_tells_the_tissues():
    def texture(image, mask):
        """Coherence of the edges' direction, and the contrast at the size of small nuclei over that of large ones."""
        inside = ndimage.binary_erosion(mask > 0, iterations=6, border_value=1)  # away from the edges of vessels
        level = grey(image)
        yy, xy, xx = (part[inside].mean() for part in structure_tensor(level, sigma=1))
        bands = [ndimage.gaussian_filter(level, s) - ndimage.gaussian_filter(level, 1.6 * s) for s in (1.6, 4)]
        small, large = (band[inside].var() for band in bands)
        return math.hypot(yy - xx, 2 * xy) / (yy + xx), small / large

    tumor, stroma, lymphocytes = (
        np.array([texture(*patch) for patch in patches(300, 8, [(tissue,)])]) for tissue in (1, 2, 3)
    )
    assert stroma[:, 0].min() > max(tumor[:, 0].max(), lymphocytes[:, 0].max())
    assert lymphocytes[:, 1].min() > tumor[:, 1].max()
