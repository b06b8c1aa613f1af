"""Images, masks and labels that are not as they must be: `check` names each, before a training begins."""

import json

import numpy as np
import pytest
from bad_input import (
    both,
    cut,
    png,
    remove,
    require_sentence,
    stopped,
    table,
    write_bytes,
    write_json,
    write_picture,
    write_pictures,
)
from PIL import Image

from scripts.data.check import main
from scripts.runs.plain_errors import plain_cause

OVERLAY = {
    "class_names": ["tumor", "stroma"],
    "classifier_values": [1, 2],
    "segmenter_values": [1, 2],
    "mask_values": {"0": 0, "1": 1, "2": 2},
    "palette": [[255, 255, 255], [200, 0, 0], [0, 0, 200]],
}
PATCHES = ("a[1 0].png", "b[1 1].png", "c[0 1].png")
TRAIN, MASKS = "train/img/", "val/mask/"
BOMB = png(60000, 60000)


@pytest.fixture
def dataset(tmp_path):
    """A data set in order, its overlay, and a file outside it."""
    for folder in ("train/img", "val/img", "val/mask"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for name in PATCHES:
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / TRAIN / name)
    Image.new("RGB", (4, 2)).save(tmp_path / "data/val/img/v.png")
    Image.fromarray(np.array([[0, 1, 2, 1]] * 2, dtype=np.uint8)).save(tmp_path / "data/val/mask/v.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "dataset_x.json").write_text(json.dumps(OVERLAY))
    return tmp_path / "data"


def check(folder, label_file=None):
    """What ``python -m scripts check`` does; its list of problems as an error."""
    try:
        main(str(folder), str(folder.parent / "dataset_x.json"), label_file)
    except SystemExit as end:
        assert end.code == 1
        raise ValueError("problems") from None


def problems(folder, capsys, label_file=None):
    """What the command prints."""
    with pytest.raises(ValueError, match="problems"):
        check(folder, label_file)
    return capsys.readouterr().out


def test_a_data_set_in_order_passes(dataset, capsys):
    check(dataset)
    assert capsys.readouterr().out.startswith("train: 3 images, 3 of 8x8\n")


IMAGE = f"{TRAIN}a[1 0]."
IMAGES = table(
    ("text", write_bytes(IMAGE + "png", b"no image"), "a[1 0].png must be a readable image", "replace the file"),
    ("no bytes", write_bytes(IMAGE + "png", b""), "a[1 0].png must be a readable image", "replace the file"),
    ("PNG cut short", cut(IMAGE + "png"), "a[1 0].png must be a readable image", "replace the file"),
    ("JPEG cut short", cut(TRAIN + "d[1 0].jpg"), "d[1 0].jpg must be a readable image", "replace the file"),
    ("TIFF cut short", cut(TRAIN + "d[1 0].tif"), "d[1 0].tif must be a readable image", "replace the file"),
    ("grey", write_picture(IMAGE + "png", "L"), "a[1 0].png must be an 8-bit RGB image", "got L", "convert it"),
    ("palette", write_picture(IMAGE + "png", "P"), "a[1 0].png must be an 8-bit RGB image", "got P", "convert it"),
    ("transparency", write_picture(IMAGE + "png", "RGBA"), "must be an 8-bit RGB image", "got RGBA", "convert it"),
    ("CMYK", write_picture(TRAIN + "d[1 0].jpg", "CMYK"), "d[1 0].jpg must be an 8-bit RGB", "got CMYK", "convert it"),
    ("floats", write_picture(TRAIN + "d[1 0].tif", "F"), "d[1 0].tif must be an 8-bit RGB", "got F", "convert it"),
    ("16 bits, grey", write_picture(IMAGE + "png", "I;16"), "must be an 8-bit RGB image", "got I", "convert it"),
    ("16 bits, RGB", write_bytes(IMAGE + "png", png(8, 8, 2, 16)), "8-bit RGB image", "got RGB with 16 bits", "save"),
    ("one pixel", write_picture(IMAGE + "png", size=(1, 1)), "a[1 0].png must be 8x8", "got 1x1", "weakhisto prepare"),
    ("another size", write_picture(IMAGE + "png", size=(8, 9)), "a[1 0].png must be 8x8", "got 8x9", "of one size"),
    ("animation", write_pictures(IMAGE + "png"), "a[1 0].png must hold one image", "got 3", "save each"),
    ("stack", write_pictures(TRAIN + "d[1 0].tif"), "d[1 0].tif must hold one image", "got 3", "save each"),
    ("header of 60000x60000", write_bytes(IMAGE + "png", BOMB), "at most 180 million pixels", "LARGEST_IMAGE_MPX"),
    ("folder", lambda data: (data / TRAIN / "d[1 0].png").mkdir(), "d[1 0].png must be a readable image", "replace"),
    ("dead link", lambda data: (data / TRAIN / "d[1 0].png").symlink_to("x"), "d[1 0].png must be a readable", "repl"),
    ("one name twice", write_picture(TRAIN + "a[1 0].jpg"), "img must have only one image per name", "'a[1 0]'"),
    ("none", both(*[remove(TRAIN + name) for name in PATCHES]), "train/img must contain images", "has none"),
    ("in val", write_bytes("val/img/v.png", b"no image"), "val/img/v.png must be a readable image", "replace the file"),
)
MASK = f"{MASKS}v.png"
BAD_MASKS = table(
    ("colours", lambda data: Image.new("RGB", (4, 2), (200, 0, 0)).save(data / MASK), "v.png must be a mask", "save"),
    ("transparency", write_picture(MASK, "RGBA", (4, 2)), "v.png must be a mask with one whole number", "RGBA", "save"),
    ("another size", write_picture(MASK, "L", (2, 4)), "v.png must have the size of its image, 4x2", "got 2x4", "exp"),
    ("a value without meaning", lambda data: Image.new("L", (4, 2), 9).save(data / MASK), "v.png: masks must", "[9]"),
    ("no mask", both(write_picture(f"{MASKS}w.png", "L", (4, 2)), remove(MASK)), "img/v.png must have a mask", "add"),
    ("cut short", cut(MASK, (64, 64)), "v.png must be a readable image", "replace the file"),
    ("text", write_bytes(MASK, b"no mask"), "mask/v.png must be a readable image", "replace the file"),
    ("floats", both(write_picture(f"{MASKS}v.tif", "F", (4, 2)), remove(MASK)), "v.tif must be a mask", "got mode F"),
    ("values of 16 bits", lambda data: Image.fromarray(np.full((2, 4), 999, np.uint16)).save(data / MASK), "[999]"),
    ("no tissue", lambda data: Image.new("L", (4, 2), 0).save(data / MASK), "mask must show some tissue", "correct"),
    ("stack", both(write_pictures(f"{MASKS}v.tif", "L", (4, 2)), remove(MASK)), "v.tif must hold one image", "got 3"),
    ("header of 60000x60000", write_bytes(MASK, png(60000, 60000, 0)), "at most 180 million", "LARGEST_IMAGE_MPX"),
    ("pixels missing", write_bytes(MASK, png(4, 2, 0)), "v.png must be a readable image", "replace the file"),
)
NAMES = table(
    ("no label", write_picture(f"{TRAIN}d.png"), "'d.png' must have 2 labels", "got []", "rename it"),
    ("too few digits", write_picture(f"{TRAIN}d[1].png"), "'d[1].png' must have 2 labels", "got [1]", "rename it"),
    ("too many digits", write_picture(f"{TRAIN}d[101].png"), "must have 2 labels", "got [1, 0, 1]", "rename it"),
    ("a digit of 2", write_picture(f"{TRAIN}d[1 2].png"), "'d[1 2].png' must have 2 labels", "got []", "rename it"),
    ("no such class", both(*[remove(TRAIN + n) for n in PATCHES[1:]]), "show every class", "'stroma'", "add patches"),
    (
        "no class at all",
        both(*[remove(TRAIN + name) for name in PATCHES], write_picture(f"{TRAIN}d[0 0].png")),
        "must show every class in at least one patch, got none with 'tumor'",
        "remove it from `class_names`",
    ),
)


@pytest.mark.parametrize("case", [*IMAGES, *BAD_MASKS, *NAMES])
def test_images_masks_and_names_are_refused_in_words(dataset, capsys, case):
    case.spoil(dataset)
    require_sentence(problems(dataset, capsys), case)


def test_a_small_file_of_many_pixels_is_refused_by_a_limit_that_can_be_set(dataset, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # and set back afterwards
    for name in PATCHES:
        Image.new("RGB", (3000, 3000)).save(dataset / TRAIN / name)
        assert (dataset / TRAIN / name).stat().st_size < 60_000
    check(dataset)
    monkeypatch.setenv("LARGEST_IMAGE_MPX", "8.9")
    message = problems(dataset, capsys)
    assert message.count("must have at most 8.9 million pixels") == 3 and "LARGEST_IMAGE_MPX" in message
    monkeypatch.setenv("LARGEST_IMAGE_MPX", "nan")
    assert "variable LARGEST_IMAGE_MPX must be a positive number, got 'nan'" in problems(dataset, capsys)


def rows(*lines, head="image,tumor,stroma"):
    """The text of a table with all patches but those that ``lines`` begin with."""
    listed = [line.split(",")[0] for line in lines]
    return "\n".join([head, *lines, *[f"{name},1,1" for name in PATCHES if name not in listed]]) + "\n"


def items(*labels, image="a[1 0].png"):
    """A datalist of all patches, with other labels of the first one."""
    return {"training": [{"image": image, "label": label} for label in labels or ([1, 0],)] + REST}


REST = [{"image": name, "label": [1, 1]} for name in PATCHES[1:]]
LABELS = "labels.csv must "
TABLES = table(
    ("a digit of 2", rows("a[1 0].png,1,2"), "labels.csv, row 2: the label of 'a[1 0].png' must be 2 numbers", "'2'"),
    ("a cell missing", rows("a[1 0].png,1"), "labels.csv: row 2 must have 3 cells", "'a[1 0].png', '1'"),
    ("a cell too many", rows("a[1 0].png,1,0,1"), "labels.csv: row 2 must have 3 cells", "'1', '0', '1'"),
    ("an image twice", rows("a[1 0].png,1,0", "a[1 0].png,1,0"), LABELS + "label each image once", "a[1 0]"),
    ("an unknown image", rows("x.png,1,0"), "labels.csv must name existing images, got 'x.png'", "does not exist"),
    ("an image left out", "image,tumor,stroma\na[1 0].png,1,0\n", "must label every image", "2 are missing", "add"),
    ("a column missing", rows(head="image,tumor,other"), LABELS + "have the columns", "['stroma'] are missing"),
    ("a column twice", rows(head="image,tumor,stroma,tumor"), LABELS + "have each column once", "'tumor'", "remove"),
    ("a header of its own", rows(head="image;tumor;stroma"), "labels.csv: row 2 must have 3 cells", "correct that row"),
    ("Latin-1", rows("ä.png,1,0").encode("latin-1"), LABELS + "be a CSV table in UTF-8", "save it as 'CSV UTF-8'"),
    ("a workbook", b"PK\x03\x04\x00\xff", LABELS + "be a CSV table in UTF-8", "workbook", "save it as 'CSV UTF-8'"),
    ("an open quote", rows('"a[1 0].png,1,0'), LABELS + "be a CSV table", "unexpected end", "save it"),
    ("a cell without end", "image,tumor,stroma\n" + "x" * 200_000, LABELS + "be a CSV table", "limit", "save it"),
    ("no rows", "image,tumor,stroma\n", LABELS + "label at least one image", "but is empty"),
    ("nothing", "", LABELS + "have the columns", "are missing"),
    ("a way out", rows("../../../secret.png,1,0"), "'../../../secret.png' must be inside", "train/img, but is not"),
)
JSON = "labels.json must be JSON"
DATALISTS = table(
    ("no JSON", "training: []", JSON + " in UTF-8", "fix the file"),
    ("UTF-16", json.dumps(items()).encode("utf-16"), JSON + " in UTF-8", "fix the file"),
    ("brackets without end", "[" * 100_000, JSON + " in UTF-8", "fix the file"),
    ("a key twice", '{"training": [], "training": []}', JSON, "['training'] are repeated", "fix the file"),
    ("NaN", '{"training": [{"image": "a[1 0].png", "label": [NaN, 0]}]}', JSON, "NaN is not a JSON number", "fix the"),
    ("another list", {"train": []}, JSON + ' with a list "training"', "KeyError"),
    ("no label", {"training": [{"image": "a[1 0].png"}]}, JSON + ' with a list "training"', "label"),
    ("too short", items([1]), "the label of 'a[1 0].png' must be 2 numbers, 0 or 1", "got [1]"),
    ("true", items([True, 0]), "the label of 'a[1 0].png' must be 2 numbers, 0 or 1", "got [True, 0]"),
    ("0.5", items([0.5, 0]), "the label of 'a[1 0].png' must be 2 numbers, 0 or 1", "got [0.5, 0]"),
    ("-1", items([1, -1]), "the label of 'a[1 0].png' must be 2 numbers, 0 or 1", "got [1, -1]"),
    ("text", items("10"), "the label of 'a[1 0].png' must be 2 numbers, 0 or 1", "got 10"),
    ("an image twice", items([1, 0], [0, 1]), "labels.json must label each image once", "a[1 0].png"),
    ("a way out", items(image="../img/../../../secret.png"), "must be inside", "train/img, but is not"),
    ("an absolute path", items(image="/etc/hostname"), "'/etc/hostname' must be inside", "train/img, but is not"),
    ("a folder", items(image=""), "labels.json must name existing images, got ''", "does not exist"),
)


@pytest.mark.parametrize(
    ("case", "suffix"),
    [pytest.param(*case.values, ".csv", id=f"table-{case.id}") for case in TABLES]
    + [pytest.param(*case.values, ".json", id=f"datalist-{case.id}") for case in DATALISTS],
)
def test_label_files_are_refused_in_words(dataset, capsys, case, suffix):
    path = dataset.parent / f"labels{suffix}"
    write_json(path.name, case.spoil)(dataset.parent)
    require_sentence(problems(dataset, capsys, str(path)), case)


def test_a_missing_label_file_is_named(dataset, capsys):
    assert "labels.csv must be a label file, but it does not exist" in problems(dataset, capsys, "labels.csv")


@pytest.mark.parametrize("case", [IMAGES[0], BAD_MASKS[3], NAMES[0]])
def test_a_training_refuses_the_same_before_its_first_step(run_bundle, dataset, tmp_path, case):
    case.spoil(dataset)
    config = ["configs/train.json", "configs/lite.json", str(tmp_path / "dataset_x.json")]
    with pytest.raises(RuntimeError) as error:
        run_bundle("training", tmp_path / "run", config, dataset_dir=str(dataset), **{"classifier_batch_size": 2})
    require_sentence(str(plain_cause(error.value)), case)
    assert not (tmp_path / "run" / "models").exists() and not (tmp_path / "run" / "run.json").exists()


def test_stopping_is_tested():
    with pytest.raises(AssertionError, match="it did not stop"):
        stopped(lambda: None)
    with pytest.raises(AssertionError, match="a traceback of KeyError"):
        stopped({}.__getitem__, "x")
