import csv
import json
import re
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.transforms import Compose
from PIL import Image

from scripts.data.batches import ReadAheadDataLoader, SameSizeBatches
from scripts.data.images import require_rgb
from scripts.data.items import find_images, image_items, images_with_masks, labelled_images, patch_size, split_items
from scripts.data.labels import parse_label, read_label_file
from scripts.runs.plain_errors import plain_cause

CONFIG = Path(__file__).resolve().parents[2] / "bundle" / "configs" / "train.json"
CLASS_NAMES = ["tumor", "stroma", "necrosis"]


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


# --- labels in file names


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("1031280-2300-27920-[1 0 0 1].png", [1, 0, 0, 1]),  # LUAD-HistoSeg
        ("TCGA-A1-A0SK-xmin45749_MPP-0.25+1[0101].png", [0, 1, 0, 1]),  # BCSS-WSSS
        ("train_1-[1, 0].png", [1, 0]),  # GlaS
        ("slide[0 1]-patch-[1 1 0].tif", [1, 1, 0]),  # the last one counts
        ("[v2] patch-[0 0].png", [0, 0]),
    ],
)
def test_reads_labels_in_every_published_spelling(name, label):
    assert parse_label(name, len(label)) == label


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a-[1 0].png", r"\[1, 0\]"),
        ("a-[1 0 0 1].png", r"\[1, 0, 0, 1\]"),
        ("a.png", r"\[\]"),
        ("a-[1 2 0].png", r"\[\]"),
    ],
)
def test_refuses_names_without_a_label_of_the_right_length(name, found):
    with pytest.raises(ValueError, match=rf"must have 3 labels such as '\[1 0 .\]' in its name, got {found}; rename"):
        parse_label(name, 3)


def test_training_items_are_sorted_images_with_labels(tmp_path):
    touch(tmp_path / "train/img", "b[1 1 0].png", "a[001].JPG", "notes.txt", "c.csv")
    assert labelled_images(tmp_path, CLASS_NAMES) == [
        {"image": str(tmp_path / "train/img/a[001].JPG"), "label": [0, 0, 1], "name": "a[001].JPG"},
        {"image": str(tmp_path / "train/img/b[1 1 0].png"), "label": [1, 1, 0], "name": "b[1 1 0].png"},
    ]


# --- label files


def write_csv(folder, text, name="labels.csv"):
    (folder / name).write_text(text)
    return folder / name


def write_datalist(folder, content):
    return write_csv(folder, content if isinstance(content, str) else json.dumps(content), "labels.json")


def test_reads_a_table_with_columns_in_any_order(tmp_path):
    path = write_csv(tmp_path, 'stroma,image,note,necrosis,tumor\n1,a.png,"x, y",0, 1\n0,"sub/b c.png",,1 ,0\n')
    assert read_label_file(path, CLASS_NAMES) == {"a.png": [1, 1, 0], "sub/b c.png": [0, 0, 1]}


def test_reads_a_datalist(tmp_path):
    rows = [{"image": "a.png", "label": [1, 0, 1], "note": 1}, {"image": "b.png", "label": ["0", "1", "0"]}]
    path = write_datalist(tmp_path, {"training": rows, "validation": []})
    assert read_label_file(path, CLASS_NAMES) == {"a.png": [1, 0, 1], "b.png": [0, 1, 0]}


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "",
        "[]",
        "3",
        {"train": []},
        {"training": [{"image": "a.png"}]},
        {"training": ["a.png"]},
        {"training": 1},
    ],
)
def test_refuses_json_that_is_no_datalist(tmp_path, content):
    with pytest.raises(ValueError, match=r'labels.json must be JSON (in UTF-8|with a list "training" of)'):
        read_label_file(write_datalist(tmp_path, content), CLASS_NAMES)


@pytest.mark.parametrize(
    "label", [[1, 0], [1, 0, 0, 1], [1, 0, 2], [1, 0, 0.5], [1, 0, True], "101", None, 1, {"tumor": 1}]
)
def test_refuses_datalist_labels_that_are_not_multi_hot(tmp_path, label):
    path = write_datalist(tmp_path, {"training": [{"image": "a.png", "label": label}]})
    with pytest.raises(ValueError, match=r"labels.json: the label of 'a.png' must be 3 numbers, 0 or 1, one per class"):
        read_label_file(path, CLASS_NAMES)


@pytest.mark.parametrize("row", ["a.png,1,0,2", "a.png,1,0,yes", "a.png,1,0,0.5", "a.png,1,0,inf"])
def test_refuses_table_cells_that_are_not_0_or_1(tmp_path, row):
    path = write_csv(tmp_path, f"image,tumor,stroma,necrosis\n\n{row}\n")
    with pytest.raises(ValueError, match="labels.csv, row 3: the label of 'a.png' must be 3 numbers"):
        read_label_file(path, CLASS_NAMES)


@pytest.mark.parametrize("row", ["a.png,1,0", "a.png"])
def test_refuses_rows_with_too_few_cells(tmp_path, row):
    path = write_csv(tmp_path, f"image,tumor,stroma,necrosis\n{row}\n")
    with pytest.raises(ValueError, match="labels.csv: row 2 must have 4 cells like the header"):
        read_label_file(path, CLASS_NAMES)


@pytest.mark.parametrize(
    ("header", "missing"),
    [
        ("image,tumor,necrosis", r"\['stroma'\]"),
        ("file,tumor,stroma,necrosis", r"\['image'\]"),
        ("image;tumor;necrosis", r"\['stroma'\]"),
        ("image/tumor/stroma/necrosis", r"\['image', 'tumor', 'stroma', 'necrosis'\]"),
        ("", r"\['image', 'tumor', 'stroma', 'necrosis'\]"),
    ],
)
def test_names_the_columns_that_a_table_lacks(tmp_path, header, missing):
    with pytest.raises(ValueError, match=f"labels.csv must have the columns .* {missing} are missing"):
        read_label_file(write_csv(tmp_path, header), CLASS_NAMES)


def test_labels_from_a_file_override_those_in_names(tmp_path):
    touch(tmp_path / "train/img", "a[111].png")
    touch(tmp_path / "train/img/sub", "c.png")
    path = write_csv(tmp_path, "image,tumor,stroma,necrosis\na[111].png,0,1,0\nsub/c.png,1,0,0\n")
    assert labelled_images(tmp_path, CLASS_NAMES, path) == [
        {"image": str(tmp_path / "train/img/a[111].png"), "label": [0, 1, 0], "name": "a[111].png"},
        {"image": str(tmp_path / "train/img/sub/c.png"), "label": [1, 0, 0], "name": "sub/c.png"},
    ]


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "{folder}/secret.png"])
def test_refuses_paths_outside_the_folder(tmp_path, name):
    touch(tmp_path / "train", "secret.png")
    touch(tmp_path / "train/img", "a.png")
    touch(tmp_path / "train/img/sub")
    name = name.format(folder=tmp_path / "train")
    path = write_csv(tmp_path, f"image,tumor,stroma,necrosis\n{name},0,1,0\n")
    with pytest.raises(ValueError, match="must be inside .*img, but is not"):
        labelled_images(tmp_path, CLASS_NAMES, path)


@pytest.mark.parametrize("name", ["missing.png", "sub", ""])
def test_refuses_labels_of_images_that_do_not_exist(tmp_path, name):
    touch(tmp_path / "train/img/sub")
    path = write_datalist(tmp_path, {"training": [{"image": name, "label": [1, 0, 0]}]})
    with pytest.raises(
        FileNotFoundError, match=f"labels.json must name existing images, got '{name}'; .* does not exist"
    ):
        labelled_images(tmp_path, CLASS_NAMES, path)


def test_refuses_a_label_file_without_images(tmp_path):
    touch(tmp_path / "train/img")
    with pytest.raises(ValueError, match="labels.json must label at least one image, but is empty"):
        labelled_images(tmp_path, CLASS_NAMES, write_datalist(tmp_path, {"training": []}))


# --- images and masks


def test_finds_images_by_suffix_in_order(tmp_path):
    touch(tmp_path, "b.png", "a.TIF", "c.jpeg", "d.txt", "png", "e.svs")
    assert [path.name for path in find_images(tmp_path)] == ["a.TIF", "b.png", "c.jpeg"]
    assert image_items(tmp_path)[0] == {"image": str(tmp_path / "a.TIF"), "name": "a.TIF"}


def test_refuses_folders_without_images(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(FileNotFoundError, match="must contain images .* but has none"):
        find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing must be a folder of images, but it does not exist"):
        find_images(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="notes.txt must be a folder of images"):
        find_images(tmp_path / "notes.txt")


def test_pairs_images_and_masks_by_stem(tmp_path):
    touch(tmp_path / "img", "b.1.jpg", "a.png")
    touch(tmp_path / "mask", "a.png", "b.1.png", "b.2.png", "unused.png")
    assert images_with_masks([tmp_path / "img/b.1.jpg", str(tmp_path / "img/a.png")], tmp_path / "mask") == [
        {"image": str(tmp_path / "img/b.1.jpg"), "label": str(tmp_path / "mask/b.1.png"), "name": "b.1.jpg"},
        {"image": str(tmp_path / "img/a.png"), "label": str(tmp_path / "mask/a.png"), "name": "a.png"},
    ]


def test_names_the_image_without_a_mask(tmp_path):
    touch(tmp_path / "val/img", "a.png", "b.png")
    touch(tmp_path / "val/mask", "a.png")
    with pytest.raises(FileNotFoundError, match="b.png must have a mask of the same name in .*mask, but has none"):
        split_items(tmp_path, "val")


def test_a_split_that_is_not_there_is_empty(tmp_path):
    touch(tmp_path / "val/img", "a.png")
    touch(tmp_path / "val/mask", "a.png")
    assert [item["name"] for item in split_items(tmp_path, "val")] == ["a.png"]
    assert split_items(tmp_path, "test") == []


# --- batches of one size


def sized_items(folder, sizes):
    folder.mkdir(exist_ok=True)
    items = []
    for index, size in enumerate(sizes):
        Image.new("L", size).save(folder / f"{index}.png")
        items.append({"image": folder / f"{index}.png"})
    return items


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
def test_batches_hold_images_of_one_size_and_each_once(tmp_path, batch_size):
    sizes = [(4, 6), (6, 4), (4, 6), (4, 6), (5, 5), (6, 4), (4, 6), (4, 6)]
    batches = SameSizeBatches(sized_items(tmp_path, sizes), batch_size)
    assert sorted(index for batch in batches for index in batch) == list(range(8))
    assert all(len({sizes[index] for index in batch}) == 1 and len(batch) <= batch_size for batch in batches)
    assert len(batches) == sum(-(-count // batch_size) for count in (5, 2, 1))
    assert list(batches) == list(batches)


def test_no_items_make_no_batches():
    assert list(SameSizeBatches([], 4)) == []


def test_refuses_batches_of_nothing():
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        SameSizeBatches([], 0)


# --- 8-bit RGB


def write_png_with_16_bits(path):
    """An RGB PNG of 2x2 pixels with 16 bits per colour, which PIL cannot write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + struct.pack(">6H", *range(0, 60000, 10000)) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


@pytest.fixture(scope="module")
def load_image():
    """The transform that reads images in the bundle's configs."""
    parser = ConfigParser()
    parser.read_config(CONFIG)
    return Compose(parser.get_parsed_content("load_image"))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_reads_8_bit_rgb_as_it_is(load_image, tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
    image = load_image({"image": str(tmp_path / f"a{suffix}")})["image"]
    assert image.dtype == torch.uint8 and np.array_equal(image.numpy(), pixels.transpose(2, 0, 1))


def write_image_of_mode(path, mode):
    if mode == "I;16":
        Image.fromarray(np.zeros((4, 6), dtype=np.uint16)).save(path)
    else:
        Image.new(mode, (6, 4)).save(path)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK", "F"])
def test_refuses_images_that_are_not_rgb(tmp_path, mode):
    write_image_of_mode(tmp_path / "a.tif", mode)
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == mode
        with pytest.raises(ValueError, match=f"a.tif must be an 8-bit RGB image, got {mode}; convert it with"):
            require_rgb(image)


def test_refuses_rgb_with_16_bits_per_colour(tmp_path):
    write_png_with_16_bits(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "RGB"  # PIL would cut the values
        with pytest.raises(ValueError, match="a.png must be an 8-bit RGB image, got RGB with 16 bits per colour"):
            require_rgb(image)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "RGB with 16 bits"])
def test_training_does_not_read_images_that_are_refused(load_image, tmp_path, mode):
    path = tmp_path / "a.png"
    write_png_with_16_bits(path) if mode == "RGB with 16 bits" else write_image_of_mode(path, mode)
    with pytest.raises(RuntimeError) as error:  # MONAI's, about the one that says what is wrong
        load_image({"image": str(path)})
    *_, root = causes(error.value)
    assert isinstance(root, ValueError) and "a.png must be an 8-bit RGB image" in str(root)


def causes(error):
    while error.__cause__ is not None:
        error = error.__cause__
        yield error


def test_passes_an_rgb_image_made_in_memory():
    image = Image.new("RGB", (2, 2))
    assert require_rgb(image) is image


def test_an_image_labelled_twice_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_text("image,a,b\nx.png,1,0\nx.png,0,1\n")
    with pytest.raises(ValueError, match=r"labels.csv must label each image once, but lists \['x.png'\]"):
        read_label_file(tmp_path / "labels.csv", ["a", "b"])


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path):
    (tmp_path / "labels.csv").write_text("image,a,b\nx.png,1,0\n", encoding="utf-8-sig")
    assert read_label_file(tmp_path / "labels.csv", ["a", "b"]) == {"x.png": [1, 0]}


def test_labelled_images_that_differ_in_their_suffix_alone_are_refused(tmp_path):
    touch(tmp_path / "train/img/x", "p.png", "p.jpg")
    path = write_csv(tmp_path, "image,tumor,stroma,necrosis\nx/p.png,0,1,0\nx/p.jpg,1,0,0\n")
    with pytest.raises(
        ValueError, match=r"labels.csv must have only one image per name, ignoring suffixes, but repeats \['x/p'\]"
    ):
        labelled_images(tmp_path, CLASS_NAMES, path)


def test_patch_size_is_height_and_width_of_the_training_patches(tmp_path):
    assert patch_size(tmp_path, (3, 4)) == [3, 4]
    (tmp_path / "train" / "img" / "slide").mkdir(parents=True)
    assert patch_size(tmp_path, (3, 4)) == [3, 4]
    Image.new("RGB", (7, 5)).save(tmp_path / "train" / "img" / "slide" / "a.png")
    assert patch_size(str(tmp_path), (3, 4)) == [5, 7]


def test_a_damaged_image_is_named_when_it_is_read(load_image, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-2000])
    with pytest.raises(RuntimeError) as error:
        load_image({"image": str(tmp_path / "a.jpg")})
    assert str(plain_cause(error.value)).startswith(f"{tmp_path / 'a.jpg'} must be a readable image, got OSError")


# --- properties


@given(st.lists(st.integers(0, 1), min_size=1, max_size=12), st.sampled_from(["", " ", ",", ", "]), st.text("ab[]01 -"))
def test_any_label_comes_back_from_a_name(label, separator, stem):
    name = f"{stem}[{separator.join(map(str, label))}].png"
    assert parse_label(name, len(label)) == label


@given(st.text(), st.integers(1, 8))
def test_any_name_gives_a_label_of_its_digits_or_an_error_with_the_name(name, num_classes):
    try:
        label = parse_label(name, num_classes)
    except ValueError as error:
        assert str(error).startswith(f"{name!r} must have {num_classes} labels")
    else:
        inside = re.sub("[ ,]", "", name[name.rindex("[", 0, name.rindex("]")) : name.rindex("]")])
        assert len(label) == num_classes and set(label) <= {0, 1}
        assert "".join(map(str, label)) in inside or name.count("[") > 1


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
NAMES = NAMES.filter(lambda name: name == name.strip())  # tables may have blanks around their cells


@given(st.dictionaries(NAMES, st.lists(st.integers(0, 1), min_size=3, max_size=3)))
def test_any_labels_come_back_from_a_table_and_a_datalist(tmp_path_factory, labels):
    folder = tmp_path_factory.mktemp("labels")
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["image", *CLASS_NAMES], *[[name, *label] for name, label in labels.items()]])
    assert read_label_file(folder / "labels.csv", CLASS_NAMES) == labels
    items = [{"image": name, "label": label} for name, label in labels.items()]
    (folder / "labels.json").write_text(json.dumps({"training": items}))
    assert read_label_file(folder / "labels.json", CLASS_NAMES) == labels


@pytest.mark.parametrize("suffix", ["csv", "json"])
@given(st.one_of(st.binary(), st.text('{}[]",:01 \nimageltrng').map(str.encode)))
def test_any_bytes_are_labels_or_an_error_with_the_file(tmp_path_factory, suffix, content):
    path = tmp_path_factory.mktemp("labels") / f"labels.{suffix}"
    path.write_bytes(content)
    try:
        labels = read_label_file(path, CLASS_NAMES)
    except ValueError as error:
        assert str(error).startswith(str(path)) and plain_cause(error) is error
    else:
        assert all(len(label) == 3 and set(label) <= {0, 1} for label in labels.values())


# --- batches that a thread makes


class Numbers(torch.utils.data.Dataset):
    """Items 0..N-1, of which one cannot be read; notes what was asked for."""

    def __init__(self, number, broken=None):
        self.number, self.broken, self.asked = number, broken, []

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        self.asked.append((index, threading.current_thread().name))
        if index == self.broken:
            raise ValueError("item 5 is broken")
        return index


def loader(number, **settings):
    return ReadAheadDataLoader(Numbers(number, settings.pop("broken", None)), batch_size=2, pin_memory=True, **settings)


@pytest.mark.parametrize("number", [0, 1, 2, 7])
def test_batches_made_ahead_are_the_same(number):
    ahead = [batch.tolist() for batch in loader(number)]
    assert ahead == [list(range(start, min(start + 2, number))) for start in range(0, number, 2)]


def test_batches_after_the_first_are_made_by_a_thread_before_they_are_asked_for():
    numbers = loader(20)
    batches = iter(numbers)
    next(batches)
    until = time.monotonic() + 10
    while len(numbers.dataset.asked) < 8 and time.monotonic() < until:  # two in the queue, one in the thread's hand
        time.sleep(0.01)
    time.sleep(0.05)
    assert [index for index, _ in numbers.dataset.asked] == list(range(8))
    assert {name for _, name in numbers.dataset.asked[2:]} == {"read ahead"}
    batches.close()


def test_an_error_comes_where_its_batch_would_have_come():
    batches = iter(loader(20, broken=5))
    assert [next(batches).tolist(), next(batches).tolist()] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="item 5 is broken"):
        next(batches)


def test_the_thread_ends_with_those_who_wanted_its_batches():
    batches = iter(loader(100))
    next(batches), next(batches)
    batches.close()
    until = time.monotonic() + 10
    while any(thread.name == "read ahead" for thread in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(thread.name == "read ahead" for thread in threading.enumerate())


def test_samplers_draw_as_if_there_were_no_thread():
    orders = []
    for pin_memory in (True, False):
        torch.manual_seed(3)
        shuffled = ReadAheadDataLoader(Numbers(20), batch_size=2, shuffle=True, pin_memory=pin_memory)
        orders.append([(batch.tolist(), torch.rand(1).item()) for batch in shuffled])
    assert orders[0] == orders[1]
