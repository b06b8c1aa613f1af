import json
import struct
import zlib
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image
from some_classes import some_classes

from scripts.data.check import check_dataset, count_labels, main

CLASS_NAMES = ["tumor", "stroma"]
CLASSES = some_classes(CLASS_NAMES, mask_values={"0": 1, "1": 2, "4": 0})


def write_image(path, size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 1).save(path)


def write_mask(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(rows, dtype=np.uint8)).save(path)


def truncate(path, size):
    """Write noise, which does not compress, and cut the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-20])


@pytest.fixture
def dataset(tmp_path):
    """A data set without a problem: three patches, one image of 4x2 px to validate and one of 2x2 px to test."""
    for name in ("a[1 0].png", "b[1 1].png", "c-[01].png"):
        write_image(tmp_path / "train/img" / name)
    for split, rows in {"val": [[0, 0, 0, 1], [4, 4, 0, 1]], "test": [[1, 1], [4, 4]]}.items():
        write_image(tmp_path / split / "img/v.png", (len(rows[0]), 2))
        write_mask(tmp_path / split / "mask/v.png", rows)
    return tmp_path


def check(folder, **options):
    return check_dataset(folder, CLASSES, **options)


def test_reports_classes_pixels_and_sizes(dataset):
    report = check(dataset)
    assert report == {
        "train": {
            "images": 3,
            "sizes": {"8x8": 3},
            "per_class": {"tumor": 2, "stroma": 2},
            "per_combination": {"1 0": 1, "1 1": 1, "0 1": 1},
        },
        "val": {"images": 1, "sizes": {"4x2": 1}, "shares": {"0": 0.25, "1": 0.5, "2": 0.25}},
        "test": {"images": 1, "sizes": {"2x2": 1}, "shares": {"0": 0.5, "1": 0.0, "2": 0.5}},
    }
    assert json.loads(json.dumps(report)) == report


def test_shares_are_of_all_pixels_of_the_split(dataset):
    write_image(dataset / "val/img/w.png", (8, 1))
    write_mask(dataset / "val/mask/w.png", [[4] * 8])
    assert check(dataset)["val"]["shares"] == {"0": 10 / 16, "1": 4 / 16, "2": 2 / 16}


def test_counts_combinations_most_frequent_first():
    counts = count_labels([[0, 1], [1, 1], [1, 1]], CLASS_NAMES)
    assert list(counts["per_combination"].items()) == [("1 1", 2), ("0 1", 1)]
    assert counts["per_class"] == {"tumor": 2, "stroma": 3}


def test_val_and_test_may_be_absent(dataset, caplog):
    (dataset / "test").rename(dataset / "aside")
    assert set(check(dataset)) == {"train", "val"} and "no masks" not in caplog.text
    (dataset / "val" / "mask").rename(dataset / "aside2")
    assert set(check(dataset)) == {"train"}
    assert "val has no masks, so no epoch is chosen: the last one is kept" in caplog.text


@pytest.mark.parametrize("folder", ["train/img", "val/img", "test/img"])
def test_finds_missing_and_empty_folders(dataset, folder):
    for path in (dataset / folder).iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=f"{folder} must contain images .* but has none"):
        check(dataset)
    (dataset / folder).rmdir()
    with pytest.raises(ValueError, match=f"{folder} must be a folder of images, but it does not exist"):
        check(dataset)


@pytest.mark.parametrize("name", ["unlabelled.png", "short[1].png", "long[1 0 1].png"])
def test_finds_images_without_a_label_for_each_class(dataset, name):
    write_image(dataset / "train/img" / name)
    with pytest.raises(ValueError) as caught:
        check(dataset)
    assert f"{name}' must have 2 labels" in str(caught.value)


def test_reads_labels_from_a_file(dataset, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("image,tumor,stroma\na[1 0].png,0,1\nb[1 1].png,1,0\nc-[01].png,1,0\n")
    assert check(dataset, label_file=table)["train"]["per_combination"] == {"1 0": 2, "0 1": 1}
    table.write_text("image,tumor,stroma\na[1 0].png,0,1\n")
    with pytest.raises(ValueError, match=r"2 are missing, such as \['b\[1 1\].png', 'c-\[01\].png'\]"):
        check(dataset, label_file=table)
    table.write_text("image,tumor,stroma\nmissing.png,0,1\n")
    with pytest.raises(ValueError, match="labels.csv must name existing images, got 'missing.png'"):
        check(dataset, label_file=table)


def test_finds_a_class_that_no_patch_shows(dataset):
    for name in ("b[1 1].png", "c-[01].png"):
        (dataset / "train/img" / name).unlink()
    with pytest.raises(
        ValueError, match="train/img must show every class in at least one patch, got none with 'stroma'"
    ):
        check(dataset)


def test_finds_the_odd_size(dataset):
    write_image(dataset / "train/img/odd[1 0].png", (9, 8))
    with pytest.raises(ValueError, match=r"odd\[1 0\].png must be 8x8 like 3 of the 4 .* got 9x8; .*weakhisto prepare"):
        check(dataset)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "I;16"])
@pytest.mark.parametrize("path", ["train/img/b[1 1].png", "val/img/v.png"])
def test_finds_images_that_are_not_rgb(dataset, path, mode):
    with Image.open(dataset / path) as image:
        size = image.size
    write_image(dataset / path, size, mode)
    with pytest.raises(ValueError, match=r"png must be an 8-bit RGB image, got .*; convert it with") as caught:
        check(dataset)
    assert f"{dataset / path} must be" in str(caught.value) and f"got {mode.split(';')[0]}" in str(caught.value)


def test_finds_rgb_of_16_bits(dataset):
    path = dataset / "train/img/a[1 0].png"
    rows = zlib.compress(8 * (b"\0" + bytes(8 * 6)))  # a filter byte, then 8 pixels of 6 bytes
    chunks = [(b"IHDR", struct.pack(">2I5B", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    with pytest.raises(ValueError, match=r"a\[1 0\].png must be an 8-bit RGB image, got RGB with 16 bits per colour"):
        check(dataset)


@pytest.mark.parametrize("name", ["x[1 0].png", "x[1 0].jpg", "x[1 0].tif", "x[1 0].bmp"])
def test_finds_truncated_images(dataset, name):
    truncate(dataset / "train/img" / name, (8, 8))
    with pytest.raises(ValueError, match=r"x\[1 0\].... must be a readable image"):
        check(dataset)


def test_finds_files_that_are_no_image_or_too_large_to_open(dataset, monkeypatch):
    (dataset / "train/img/text[1 0].png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\[1 0\].png must be a readable image, got UnidentifiedImageError"):
        check(dataset)
    (dataset / "train/img/text[1 0].png").unlink()
    monkeypatch.setenv("LARGEST_IMAGE_MPX", "62e-6")  # the patches have 64 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # and set back afterwards
    with pytest.raises(ValueError, match=r"a\[1 0\].png must have at most 6.2e-05 million pixels, got more"):
        check(dataset)


def test_finds_images_without_a_mask(dataset):
    write_image(dataset / "test/img/w.png")
    with pytest.raises(ValueError, match="test/img/w.png must have a mask of the same name in .*test/mask"):
        check(dataset)


def test_finds_masks_of_another_size(dataset):
    write_mask(dataset / "val/mask/v.png", [[0, 0]] * 4)
    with pytest.raises(ValueError, match="val/mask/v.png must have the size of its image, 4x2, got 2x4"):
        check(dataset)


def test_finds_masks_of_several_channels_and_damaged_ones(dataset):
    write_image(dataset / "val/mask/v.png", (4, 2))
    with pytest.raises(
        ValueError, match="val/mask/v.png must be a mask with one whole number per pixel .* got mode RGB"
    ):
        check(dataset)
    (dataset / "val/mask/v.png").write_text("no image")
    with pytest.raises(ValueError, match="val/mask/v.png must be a readable image"):
        check(dataset)


def test_finds_mask_values_without_an_entry(dataset):
    write_mask(dataset / "val/mask/v.png", [[0, 0, 3, 1], [4, 9, 0, 1]])
    with pytest.raises(ValueError, match=r"val/mask/v.png: .* also got \[3, 9\]; add an entry"):
        check(dataset)


def test_says_that_255_is_left_out_where_masks_show_nothing_else(dataset):
    write_mask(dataset / "val/mask/v.png", [[4, 255, 255, 4]] * 2)
    with pytest.raises(ValueError, match=r"val/mask must show some tissue .*`ignore_value` \(255\) are left out"):
        check(dataset)


def test_finds_masks_without_any_tissue(dataset):
    write_mask(dataset / "val/mask/v.png", [[4] * 4] * 2)
    with pytest.raises(ValueError, match="val/mask must show some tissue .* got none in 1 masks"):
        check(dataset)


def test_collects_problems_one_a_line_and_shows_ten(dataset):
    for index in range(12):
        write_image(dataset / f"train/img/{index:02d}.png")
    write_mask(dataset / "val/mask/v.png", [[9] * 4] * 2)
    with pytest.raises(ValueError) as caught:
        check(dataset)
    lines = str(caught.value).split("\n")
    assert [line[-1] for line in lines] == ["."] * 11
    assert all(f"{index:02d}.png" in line for index, line in enumerate(lines[:10]))
    assert lines[10].startswith("… and 3 more; `weakhisto check ")


def test_command_prints_the_report_or_all_problems(dataset, tmp_path, capsys):
    overlay = tmp_path / "dataset_x.json"
    overlay.write_text(json.dumps(asdict(CLASSES)))
    main(str(dataset), str(overlay))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: 3 images, 3 of 8x8"
    assert lines[1].split() == ["2", "tumor"]
    assert "val: 1 images, 1 of 4x2" in lines and "   25.00%  0 background" in lines and "   50.00%  1 tumor" in lines
    for index in range(12):
        write_image(dataset / f"train/img/{index:02d}.png")
    with pytest.raises(SystemExit) as caught:
        main(str(dataset), str(overlay))
    assert caught.value.code == 1
    assert len(capsys.readouterr().out.splitlines()) == 12
