from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image
from test_items import write_png_with_16_bits

from scripts.data.mask_values import inverse, lookup_table, read_mask, to_ours

PUBLISHED = {"0": 1, "1": 2, "4": 0}
CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"


def test_table_holds_single_values_and_inclusive_ranges():
    table = lookup_table({"0": 3, "2-4": 1, "255": 0})
    expected = {0: 3, 2: 1, 3: 1, 4: 1, 255: 0}
    assert [table[value] for value in range(256)] == [expected.get(value, -1) for value in range(256)]
    assert table.dtype == np.int16


@pytest.mark.parametrize("key", ["x", "", "-1", "3-1", "256", "1-256", "1.0", "1,2"])
def test_refuses_keys_that_are_no_value_or_range(key):
    with pytest.raises(ValueError, match=f"keys such as .* got '{key}'"):
        lookup_table({key: 1})


@pytest.mark.parametrize("ours", [-1, 256, 1.0, "1", True, None])
def test_refuses_values_of_ours_that_are_no_mask_value(ours):
    with pytest.raises(ValueError, match=f"whole numbers in 0..255, got {ours!r} for '7'"):
        lookup_table({"7": ours})


def test_refuses_a_value_given_twice():
    with pytest.raises(ValueError, match="once, but '3' overlaps"):
        lookup_table({"1-5": 1, "3": 1})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_translates_each_pixel(dtype):
    mask = np.random.default_rng(0).choice([0, 1, 4], size=(7, 5)).astype(dtype)
    ours = to_ours(mask, lookup_table(PUBLISHED))
    assert ours.tolist() == [[PUBLISHED[str(value)] for value in row] for row in mask.tolist()]
    assert ours.dtype == np.uint8


def test_names_unknown_values_also_beyond_a_byte():
    with pytest.raises(ValueError, match=r"\[0, 1, 4\]\), also got \[-2, 3, 256\]; add an entry"):
        to_ours(np.array([[0, 256, 3], [-2, 4, 3]], dtype=np.int32), lookup_table(PUBLISHED))


def test_names_ten_unknown_values_at_most():
    with pytest.raises(ValueError, match=r"\[1, 2, 3, 4, 5, 6, 7, 8, 9, 10\] …"):
        to_ours(np.arange(256).reshape(16, 16), lookup_table({"0": 0}))


@pytest.mark.parametrize(
    ("dataset", "values", "channels"),
    [("luad", [0, 1, 2, 3, 4, 255], [0, 1, 2, 3, 4, 255]), ("glas", [0, 1, 255], [0, 1, 1])],
)
def test_true_masks_of_training_patches_are_read_in_the_data_set_s_values(dataset, values, channels):
    """Value 0 of LUAD-HistoSeg is tumor, the first channel; 4 is background, and what is not listed is ignored."""
    parser = ConfigParser()
    parser.read_config([CONFIGS / f"{name}.json" for name in ("train", f"dataset_{dataset}", "supervised")])
    assert parser.get_parsed_content("train#load_label").table[values].tolist() == channels


def test_inverse_undoes_the_table_and_takes_the_lowest_value_of_several():
    assert inverse(PUBLISHED) == {1: 0, 2: 1, 0: 4}
    assert inverse({"0": 0, "1-255": 1}) == {0: 0, 1: 1}
    assert inverse({"0": 0, "3": 1, "4": 0}) == {0: 0, 1: 3}


@pytest.mark.parametrize(("mode", "dtype"), [("L", np.uint8), ("I;16", np.uint16), ("I", np.int32)])
def test_reads_back_the_values_of_greyscale_masks(tmp_path, mode, dtype):
    mask = np.arange(12, dtype=dtype).reshape(3, 4)
    picture = Image.fromarray(mask)
    assert picture.mode == mode
    picture.save(tmp_path / "mask.tif")
    assert read_mask(tmp_path / "mask.tif").tolist() == mask.tolist()


def test_reads_the_indices_of_a_palette_not_its_colours(tmp_path):
    picture = Image.fromarray(np.array([[0, 2], [1, 1]], dtype=np.uint8))
    picture.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    picture.save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[0, 2], [1, 1]]


def test_reads_a_bilevel_mask_as_0_and_1(tmp_path):
    Image.fromarray(np.array([[True, False, True]])).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png")
    assert mask.tolist() == [[1, 0, 1]] and mask.dtype == np.uint8


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_reads_grey_stored_as_colour(tmp_path, suffix):
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    Image.fromarray(np.stack([mask] * 3, axis=-1)).save(tmp_path / f"mask{suffix}")
    assert read_mask(tmp_path / f"mask{suffix}").tolist() == mask.tolist()


def test_reads_a_jpeg_of_grey_stored_as_colour_like_the_one_stored_as_grey(tmp_path):
    mask = np.zeros((37, 50), dtype=np.uint8)
    mask[5:21, 9:30] = 255
    Image.fromarray(mask).save(tmp_path / "grey.jpg")
    Image.fromarray(mask).convert("RGB").save(tmp_path / "colour.jpg")
    grey, colour = (read_mask(tmp_path / name) for name in ("grey.jpg", "colour.jpg"))
    assert grey.shape == colour.shape == mask.shape and len(np.unique(grey)) > 2  # JPEG blurs the edge
    assert np.array_equal(grey, colour) and np.array_equal(grey > 127, mask > 0)


@pytest.mark.parametrize("channel", range(3))
def test_refuses_colour_even_in_one_channel_of_one_pixel(tmp_path, channel):
    mask = np.full((4, 5, 3), 7, dtype=np.uint8)
    mask[3, 4, channel] += 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="or RGB with .* equal channels.*, got mode RGB with different channels; save"):
        read_mask(tmp_path / "mask.png")


def test_refuses_colour_with_16_bits_which_would_be_cut(tmp_path):
    write_png_with_16_bits(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="mask.png must be a mask .* got mode RGB with 16 bits per colour; save it as"):
        read_mask(tmp_path / "mask.png")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "F", "CMYK"])
def test_refuses_masks_of_colours(tmp_path, mode):
    path = tmp_path / "mask.tif"
    Image.new(mode, (4, 4)).save(path)
    with pytest.raises(
        ValueError, match=f"mask.tif must be a mask with one whole number .* got mode {mode}; save it as"
    ):
        read_mask(path)


def test_refuses_a_damaged_file(tmp_path):
    path = tmp_path / "mask.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match="mask.png must be a readable image"):
        read_mask(path)
    path.write_text("no image")
    with pytest.raises(ValueError, match="mask.png must be a readable image"):
        read_mask(path)
