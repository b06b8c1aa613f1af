import numpy as np
import pytest
import torch
from PIL import Image

from scripts.files.pictures import (
    confusion_picture,
    heat_legend,
    heat_map,
    mask_picture,
    outlined,
    overlay,
    panels,
    uint8_image,
    with_legend,
    write_mask,
    write_png,
)

PALETTE = [[255, 255, 255], [205, 51, 51], [0, 255, 0], [65, 105, 225]]


def box_of(picture, colour):
    """(left, top, right, bottom) of the pixels of exactly this colour, inclusive."""
    rows, columns = np.nonzero((np.asarray(picture.convert("RGB")) == colour).all(axis=2))
    return columns.min(), rows.min(), columns.max(), rows.max()


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_mask_files_hold_values_and_show_colours(tmp_path, dtype):
    mask = np.random.default_rng(0).integers(0, 4, (5, 7)).astype(dtype)
    write_mask(tmp_path / "new" / "mask.png", mask, PALETTE)
    with Image.open(tmp_path / "new" / "mask.png") as picture:
        assert picture.format == "PNG" and picture.mode == "P"
        assert np.asarray(picture).tolist() == mask.tolist()
        assert np.asarray(picture.convert("RGB")).tolist() == [[PALETTE[value] for value in row] for row in mask]


@pytest.mark.parametrize(("low", "high"), [(0, 4), (-1, 3), (0, 256), (-256, 0)])
def test_refuses_mask_values_without_a_colour(low, high):
    with pytest.raises(ValueError, match=rf"`mask` must have values in 0..3, one per colour, got {low}..{high}"):
        mask_picture(np.array([[low, high]]), PALETTE)


def test_png_is_lossless_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "picture.png"
    path.write_text("old")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    write_png(path, Image.fromarray(pixels))
    assert np.array_equal(np.asarray(Image.open(path)), pixels)
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("opacity", [0.0, 0.3, 1.0])
def test_overlay_mixes_colours_and_leaves_value_0_clear(opacity):
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8), rng.integers(0, 4, (4, 5))
    laid = np.asarray(overlay(image, mask, PALETTE, opacity)).astype(float)
    for y, x, c in np.ndindex(4, 5, 3):
        mixed = (1 - opacity) * image[y, x, c] + opacity * PALETTE[mask[y, x]][c]
        assert laid[y, x, c] == pytest.approx(image[y, x, c] if mask[y, x] == 0 else mixed, abs=0.51)


def test_outlines_are_in_full_colour_around_a_tint():
    image, mask = np.full((20, 30, 3), 100, dtype=np.uint8), np.zeros((20, 30), dtype=np.uint8)
    mask[4:16, 5:15], mask[4:16, 15:25] = 1, 3
    found = np.asarray(outlined(image, mask, PALETTE))
    assert np.array_equal(found[mask == 0], image[mask == 0])
    for value, columns in ((1, slice(5, 15)), (3, slice(15, 25))):
        region = found[4:16, columns]
        line = (region == PALETTE[value]).all(axis=2)
        assert (
            line[:2].all() and line[-2:].all() and line[:, :2].all() and line[:, -2:].all() and line.sum() == 120 - 48
        )
        assert np.abs(region[2:-2, 2:-2] - (0.75 * 100 + 0.25 * np.array(PALETTE[value]))).max() <= 0.51


def test_uint8_image_undoes_the_scaling_to_0_to_1():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.stack([values, values.T, 255 - values], axis=-1)
    image = (torch.from_numpy(pixels).permute(2, 0, 1).float() / 255).requires_grad_()
    assert np.array_equal(uint8_image(image), pixels)


def test_uint8_image_rounds_to_the_nearest_shade():
    image = torch.tensor([0.4, 0.6, 254.7]).view(3, 1, 1) / 255
    assert uint8_image(image).tolist() == [[[0, 1, 255]]]


@pytest.mark.parametrize(
    ("score", "colour"),
    [
        (0.0, (0, 0, 0.5)),
        (0.125, (0, 0, 1)),
        (0.25, (0, 0.5, 1)),
        (0.5, (0.5, 1, 0.5)),
        (0.75, (1, 0.5, 0)),
        (1.0, (0.5, 0, 0)),
        (1.7, (0.5, 0, 0)),
        (-0.2, (0, 0, 0.5)),
        (-np.inf, (0, 0, 0.5)),
        (np.nan, (0, 0, 0.5)),
    ],
)
def test_heat_goes_from_blue_over_green_to_red(score, colour):
    image = np.array([[[10, 100, 200]]], dtype=np.uint8)
    expected = [(shade + 255 * c) / 2 for shade, c in zip((10, 100, 200), colour)]
    assert np.asarray(heat_map(image, np.array([[score]])))[0, 0] == pytest.approx(expected, abs=0.51)


def test_the_legend_of_heat_maps_has_their_colours():
    assert heat_legend(3) == [("0", [0, 0, 128]), ("0.5", [128, 255, 128]), ("1", [128, 0, 0])]


def test_panels_stand_in_rows_and_columns_of_one_height():
    red, green = Image.new("RGB", (40, 20), (255, 0, 0)), Image.new("RGB", (30, 30), (0, 255, 0))
    blue, mask = Image.new("RGB", (10, 10), (0, 0, 255)), mask_picture(np.full((50, 50), 3), PALETTE)
    sheet = panels([[red, green], [blue, mask]], ["image", "truth"], height=60)
    boxes = [box_of(sheet, colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (65, 105, 225))]
    sizes = [(right - left + 1, bottom - top + 1) for left, top, right, bottom in boxes]
    assert sizes == [(120, 60), (60, 60), (60, 60), (60, 60)]
    upper_left, upper_right, lower_left, lower_right = boxes
    assert upper_left[0] == lower_left[0] and upper_right[0] == lower_right[0]
    assert upper_left[1] == upper_right[1] and lower_left[1] == lower_right[1]
    assert upper_left[2] < upper_right[0] and upper_left[3] < lower_left[1]
    titles = np.asarray(sheet)[: upper_left[1]].min(axis=(0, 2)) < 128  # columns with dark text
    assert titles[: upper_right[0]].any() and titles[upper_right[0] :].any()


def test_panels_name_the_colours():
    red = Image.new("RGB", (300, 60), (255, 0, 0))
    plain = panels([[red]], ["image"], height=60)
    sheet = panels([[red]], ["image"], [("rest", (1, 200, 3)), ("gland", (4, 5, 250))], height=60)
    assert np.array_equal(np.asarray(sheet)[: plain.height], np.asarray(plain))
    green, blue = (box_of(sheet, colour) for colour in ((1, 200, 3), (4, 5, 250)))
    assert green[1] > plain.height and green[1] == blue[1] and green[2] < blue[0]
    names = np.asarray(sheet)[plain.height :].min(axis=(0, 2)) < 128  # columns with dark text
    assert names[green[2] + 2 : blue[0] - 2].any() and names[blue[2] + 2 :].any()


def test_legends_take_as_many_lines_as_they_need():
    picture, names = Image.new("RGB", (150, 40), (255, 0, 0)), ["tumor epithelium", "necrosis", "lymphocyte", "glass"]
    colours = [(1, 200, 3), (4, 5, 250), (7, 90, 8), (200, 201, 9)]
    sheet = with_legend(picture, list(zip(names, colours)))
    assert np.array_equal(np.asarray(sheet)[:40], np.asarray(picture)) and sheet.width == 150
    boxes = [box_of(sheet, colour) for colour in colours]
    tops = [top for _, top, _, _ in boxes]
    assert tops == sorted(tops) and len(set(tops)) >= 3 and all(bottom < sheet.height for *_, bottom in boxes)
    assert all(one[0] < other[0] for one, other in zip(boxes, boxes[1:]) if one[1] == other[1])
    assert with_legend(picture, []).size == picture.size
    narrow = with_legend(picture.resize((20, 40)), list(zip(names, colours)))  # as wide as the longest name
    assert narrow.width > 100 and (np.asarray(narrow)[:40, 20:] == 255).all() and box_of(narrow, colours[0])[0] < 20


def test_confusion_leaves_out_the_true_classes_that_are_not_scored():
    names, confusion = ["background", "tumor", "stroma"], np.array([[30, 10, 0], [5, 0, 15], [0, 8, 0]])
    whole, part = confusion_picture(confusion, names), confusion_picture(confusion[1:], names)
    cell = whole.height - part.height
    assert cell > 0 and whole.width == part.width
    lower = np.asarray(whole)[-2 * cell :]
    assert np.array_equal(np.asarray(part)[-2 * cell :], lower)


def test_confusion_is_shown_as_shares_of_the_truth():
    names = ["background", "tumor", "tumor-associated stroma"]
    left, top, right, bottom = box_of(confusion_picture(np.eye(3), names), (0, 0, 255))  # the whole diagonal
    side = (right - left + 2) // 3
    confusion = np.array([[30, 10, 0], [0, 0, 7], [0, 0, 0]])  # the third class has no true pixel
    shares = [[0.75, 0.25, 0], [0, 0, 1], [0, 0, 0]]
    pixels = np.asarray(confusion_picture(confusion, names))
    for row, column in np.ndindex(3, 3):
        shade = 255 * (1 - shares[row][column])  # the more, the bluer
        corner = pixels[top + row * side + 2, left + column * side + 2]
        assert corner == pytest.approx([shade, shade, 255], abs=0.51)
    assert bottom - top == right - left and pixels[top:, :left].min() < 128  # names beside the cells
