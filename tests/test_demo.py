import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.spatial.distance import cdist
from scripts import demo
from scripts.demo import CLASS_NAMES, PALETTE, STAINS, make_demo_data, make_patch
from skimage.color import rgb2hed
from skimage.feature import structure_tensor
from skimage.filters import threshold_multiotsu
from skimage.metrics import structural_similarity

SETTINGS = {"seed": 3, "size_px": 64, "num_train": 8, "num_val": 3, "num_test": 2}
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


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp("parent") / "demo", **SETTINGS)


def test_no_stain_leaves_the_white_point():
    white = np.array([240.0, 230.0, 220.0])
    image = demo.mix_stains(np.zeros((2, 3, 2)), np.array([[0.6, 0.7, 0.3], [0.1, 0.9, 0.4]]), white)
    assert image == pytest.approx(np.broadcast_to(white, (2, 3, 3)))


def test_stains_follow_beer_lambert():
    vectors = np.array([[1.0, 2.0, 0.0], [0.5, 0.0, 1.0]])
    light = demo.mix_stains(np.array([[[1.0, 2.0]]]), vectors, np.full(3, 200.0))
    assert light[0, 0] == pytest.approx([200 * 10**-2.0, 200 * 10**-2.0, 200 * 10**-2.0])
    concentrations = np.random.default_rng(0).uniform(0, 1, (4, 5, 2))
    once, twice = (demo.mix_stains(k * concentrations, vectors, np.ones(3)) for k in (1, 2))
    assert twice == pytest.approx(once**2)


def test_smooth_noise_has_the_moments_of_blurred_white_noise():
    rng = np.random.default_rng(0)
    noise = np.stack([demo.smooth_noise(rng, (9, 13), (2.0, 4.0)) for _ in range(4000)])
    assert noise.mean(0) == pytest.approx(np.zeros((9, 13)), abs=0.08)
    assert noise.var(0) == pytest.approx(np.ones((9, 13)), abs=0.12)
    # White noise after a Gaussian of standard deviation s correlates by exp(-(d / 2s)**2) over a distance d.
    assert (noise[:, 2, 6] * noise[:, 4, 6]).mean() == pytest.approx(math.exp(-0.25), abs=0.06)
    assert (noise[:, 4, 3] * noise[:, 4, 11]).mean() == pytest.approx(math.exp(-1), abs=0.06)


def test_darts_keep_their_distance_and_leave_no_room():
    free = np.zeros((40, 50), dtype=bool)
    free[5:30, 10:45] = True
    centres = demo.place_centres(np.random.default_rng(0), free, 6.5)
    assert free[tuple(centres.T)].all()
    between = cdist(centres, centres) + 1e9 * np.eye(len(centres))
    assert between.min() >= 6.5
    assert cdist(np.argwhere(free), centres).min(axis=1).max() < 6.5


def test_nucleus_has_the_area_and_direction_of_its_ellipse():
    nuclei = demo.Nuclei((9, 9), (8, 8), (0.5, 0.5), 0.0, (0.7, 0.7), 0.0, 0.0)
    chromatin, covered = demo.draw_nuclei(
        np.random.default_rng(0), (40, 40), np.array([[20, 20]]), np.array([math.pi / 6]), nuclei
    )
    assert covered.sum() == pytest.approx(math.pi * 8 * 4, rel=0.05)
    assert chromatin == pytest.approx(0.7 * covered)
    rows, columns = np.nonzero(covered > 0.5)
    long_axis = np.linalg.eigh(np.cov(columns, rows))[1][:, 1]
    assert abs(long_axis @ [math.cos(math.pi / 6), math.sin(math.pi / 6)]) > 0.995


def test_fibres_change_less_along_their_angle_than_across():
    density, angle = demo.draw_fibres(np.random.default_rng(1), (96, 96))
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
    assert (demo.absorb_fragments(mask, 5) == expected).all()
    assert (demo.absorb_fragments(mask, 4)[2:4, 1:3] == 3).all()


@pytest.mark.parametrize("tissues", [(1,), (3, 2), (1, 2, 3)])
def test_patch_shows_exactly_the_tissues_asked_for(tissues):
    for image, mask in patches(0, 4, [tissues], size_px=64, glass=0.3):
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and mask.dtype == np.uint8
        shares = np.bincount(mask.ravel(), minlength=4) / mask.size
        assert set(np.flatnonzero(shares[1:]) + 1) == set(tissues)
        assert shares[list(tissues)].min() >= demo.MIN_SHARE


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
    assert structural_similarity(grey(image_a), grey(image_b), data_range=255) > 0.8
    tissue_a, tissue_b = image_a[mask_a > 0].mean(0), image_b[mask_a > 0].mean(0)
    assert np.abs(tissue_a - tissue_b).max() > 25
    assert tissue_a[2] - tissue_a[0] > tissue_b[2] - tissue_b[0] + 25  # lab_b is redder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size_px": 31}, "`size_px` must be a whole number, got 31; give 32 or more"),
        ({"size_px": 64.0}, "`size_px` must be a whole number, got 64.0"),
        ({"tissues": ()}, r"`tissues` must be distinct values of \[1, 2, 3\], got \(\)"),
        ({"tissues": (1, 1)}, r"got \(1, 1\)"),
        ({"tissues": (0, 1)}, r"got \(0, 1\)"),
        ({"glass": 30}, r"`glass` must lie in \[0, 0.6\], got 30; give a share, not a percentage"),
    ],
)
def test_patch_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_patch(np.random.default_rng(0), **{"size_px": 64, "tissues": (1,), **arguments})


def test_patch_says_when_tissues_find_no_room(monkeypatch):
    monkeypatch.setattr(demo, "MIN_SHARE", 0.4)
    with pytest.raises(ValueError, match=r"got no room for \(1, 2, 3\) in 64 px"):
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


def test_file_names_carry_the_labels_of_the_masks(data_dir):
    names = sorted(path.name for path in (data_dir / "train" / "img").iterdir())
    assert len(names) == SETTINGS["num_train"]
    for index, name in enumerate(names):
        image, mask = demo.draw_example(SETTINGS["seed"], "train", index, 64, STAINS["lab_a"])
        assert (np.asarray(Image.open(data_dir / "train" / "img" / name)) == image).all()
        shares = [(mask == value).mean() for value in (1, 2, 3)]
        assert all(share == 0 or share >= 0.05 for share in shares)
        label = [int(digit) for digit in re.search(r"\[([01]) ([01]) ([01])\]\.png$", name).groups()]
        assert label == [int(share > 0) for share in shares]
        assert any(label)


@pytest.mark.parametrize("split", ["val", "test"])
def test_masks_are_palette_images_of_their_patches(data_dir, split):
    images, masks = (sorted((data_dir / split / kind).iterdir()) for kind in ("img", "mask"))
    assert [path.name for path in images] == [path.name for path in masks]
    assert len(masks) == SETTINGS[f"num_{split}"]
    for index, path in enumerate(masks):
        mask = Image.open(path)
        assert mask.mode == "P"
        expected = demo.draw_example(SETTINGS["seed"], split, index, 64, STAINS["lab_a"])[1]
        assert (np.asarray(mask) == expected).all()
        assert (np.asarray(mask.convert("RGB")) == np.array(PALETTE)[expected]).all()
        assert Image.open(images[index]).size == mask.size == (64, 64)
    assert PALETTE[:2] == ((255, 255, 255), (205, 51, 51)) and len(PALETTE) == len(CLASS_NAMES) + 1


def test_patches_do_not_depend_on_the_counts(data_dir, tmp_path):
    fewer = make_demo_data(tmp_path / "fewer", **{**SETTINGS, "num_train": 2, "num_val": 1, "num_test": 1})
    written = [path.relative_to(fewer) for path in fewer.rglob("*.png")]
    assert len(written) == 2 + 2 + 2
    assert all((fewer / name).read_bytes() == (data_dir / name).read_bytes() for name in written)


def test_splits_and_seeds_differ():
    images = [demo.draw_example(seed, split, 0, 64, STAINS["lab_a"])[0] for seed in (0, 1) for split in demo.SPLITS]
    for i, image in enumerate(images):
        assert all((image != other).mean() > 0.5 for other in images[:i])


def test_patches_are_varied_and_balanced(monkeypatch):
    monkeypatch.setattr(demo, "make_patch", lambda rng, size_px, tissues, stain, glass: (tissues, glass))
    drawn = [demo.draw_example(0, "train", index, 64, STAINS["lab_a"]) for index in range(1000)]
    counts = np.bincount([len(tissues) for tissues, _ in drawn], minlength=4) / 1000
    assert 0.33 < counts[1] < 0.43 and counts[0] == 0 and counts[2] > 0.2 and counts[3] > 0.2
    shares = np.array([[value in tissues for value in (1, 2, 3)] for tissues, _ in drawn]).mean(0)
    assert np.ptp(shares) < 0.06
    assert 0.4 < np.mean([glass > 0 for _, glass in drawn]) < 0.6


def test_finished_data_is_left_untouched(tmp_path):
    settings = {**SETTINGS, "num_train": 1, "num_val": 0, "num_test": 0}
    folder = make_demo_data(tmp_path / "demo", **settings)
    (patch,) = (folder / "train" / "img").iterdir()
    patch.write_bytes(b"mine")
    assert make_demo_data(tmp_path / "demo", **settings) == folder
    assert patch.read_bytes() == b"mine"


def test_other_settings_are_refused(data_dir):
    with pytest.raises(ValueError, match=rf'"seed": 4.*got .*"seed": 3.*{re.escape(str(data_dir))}.*give another'):
        make_demo_data(data_dir, **{**SETTINGS, "seed": 4})


def test_incomplete_data_is_refused(tmp_path):
    settings = {**SETTINGS, "num_train": 0, "num_val": 2, "num_test": 0}
    folder = make_demo_data(tmp_path / "demo", **settings)
    next((folder / "val" / "mask").iterdir()).unlink()
    with pytest.raises(FileExistsError, match="must be complete.*'val/mask': 2.*got.*'val/mask': 1.*remove this one"):
        make_demo_data(folder, **settings)


def test_foreign_folders_and_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(
            FileExistsError, match=rf"`output_dir` must be new.*got {re.escape(str(path))}; give another"
        ):
            make_demo_data(path, **SETTINGS)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("notes.txt", "mine")]


def test_folder_appears_complete_or_not_at_all(tmp_path, monkeypatch):
    write_example = demo.write_example

    def fail_at_last(folder, split, index, image, mask):
        assert not (tmp_path / "demo").exists()
        if (split, index) == ("test", 1):
            raise OSError("disk full")
        write_example(folder, split, index, image, mask)

    monkeypatch.setattr(demo, "write_example", fail_at_last)
    with pytest.raises(OSError, match="disk full"):
        make_demo_data(tmp_path / "demo", **SETTINGS)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(demo, "write_example", write_example)
    (tmp_path / "demo").mkdir()  # an empty folder may stand there already
    make_demo_data(tmp_path / "demo", **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["counts"]["train/img"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "`seed` must be a whole number, got -1; give 0 or more"),
        ({"num_val": 2.5}, "`num_val` must be a whole number, got 2.5"),
        ({"size_px": 16}, "`size_px` must be a whole number, got 16; give 32 or more"),
        ({"stain": "lab_c"}, r"`stain` must be one of \['lab_a', 'lab_b'\], got 'lab_c'"),
    ],
)
def test_bad_settings_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_demo_data(tmp_path / "demo", **{**SETTINGS, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_command_prints_one_line(tmp_path):
    folder = tmp_path / "demo"
    counts = ["--num_train=2", "--num_val=1", "--num_test=0", "--size_px=32", "--seed=7", "--stain=lab_b"]
    command = [sys.executable, "-m", "scripts.demo", str(folder), *counts]
    bundle = Path(demo.__file__).parents[1]
    result = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=True)
    assert result.stdout == f"{folder}: 2 train, 1 val, 0 test patches of 32 px, seed 7, lab_b\n"
    assert len(list(folder.rglob("*.png"))) == 4
