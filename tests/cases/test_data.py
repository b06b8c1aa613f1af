"""Data sets as people have them: labels of zeros, changed data, spreadsheets, links, subfolders, ignored pixels."""

import json
import math
import unicodedata
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from some_classes import some_classes
from typer.testing import CliRunner

from scripts.commands.app import app
from scripts.data.check import inspect_dataset, main, rgb_size
from scripts.data.fingerprint import fingerprint
from scripts.data.items import labelled_images, split_items
from scripts.data.labels import read_label_file
from scripts.data.mask_values import channel_of_value, load_mask
from scripts.data.preparing.new_dataset import describe_dataset
from scripts.data.preparing.prepare import prepare
from scripts.data.transforms import LoadMaskd
from scripts.evaluation.metrics import confusion_matrix, summary
from scripts.files.pictures import overlay, write_mask
from scripts.losses import AdaptiveNoiseAwareLoss, KnownLabelsLoss
from scripts.pseudo_masks.cam import CAMSegmenter
from scripts.pseudo_masks.writing import write_pseudo_masks
from scripts.runs.data_record import data_differences
from scripts.runs.run_folder import RunFolder

NAMES = ["tumor", "stroma"]


class Classifier(torch.nn.Module):
    """CAMs are red, green (and blue); every class is probable."""

    def __init__(self, num_classes, prob=0.9):
        super().__init__()
        self.num_classes, self.prob = num_classes, prob

    def cams(self, image):
        cam = image[:, : self.num_classes]
        return [cam], torch.full(cam.shape[:2], self.prob)


def pixels(*rows):
    return np.array(rows, dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def patch(seed, size=(8, 8)):
    return np.random.default_rng(seed).integers(0, 200, (*size, 3), dtype=np.uint8)


def write_folder(root, labels, splits=("val",), mask=pixels(*[[1, 1, 2, 2]] * 2)):
    """Training patches by name, and one image with ``mask`` in each split."""
    for seed, name in enumerate(labels):
        save(root / "train/img" / name, patch(seed))
    for seed, split in enumerate(splits, 100):
        save(root / split / "img/v.png", patch(seed, mask.shape))
        save(root / split / "mask/v.png", mask)
    return root


def pseudo_masks(folder, classes, labels, size=(8, 8), window=None, prob=0.9):
    """The pseudo masks of patches without white, by label."""
    network = CAMSegmenter(Classifier(len(classes), prob), (1.0,), 0.5, classes.channel_order, window=window)
    items = [{"image": str(save(folder / f"{i}.png", patch(i, size))), "name": f"{i}.png"} for i in range(len(labels))]

    class Patches(list):
        data = items

    dataset = Patches(
        {
            "image": torch.from_numpy(patch(i, size)).permute(2, 0, 1),
            "label": torch.tensor(label, dtype=torch.float32),
            "name": f"{i}.png",
        }
        for i, label in enumerate(labels)
    )
    write_pseudo_masks(network, dataset, folder / "masks", classes)
    return [np.asarray(Image.open(folder / "masks" / f"{i}.png")) for i in range(len(labels))]


@pytest.mark.parametrize("window", [None, (4, 4)])
def test_one_class_with_background_labelled_1_and_0(tmp_path, window):
    """Line 1: a label of zeros says that nothing of these classes is there, in images larger than a window too."""
    shown, empty = pseudo_masks(tmp_path, some_classes(["tumor"]), [[1], [0]], window=window)
    assert (shown == 1).all() and (empty == 0).all()


def test_labels_of_zeros_without_background_are_ignored_everywhere(tmp_path):
    """Line 1: without background no value is left, so the pixels take no part in stage 2."""
    shown, empty = pseudo_masks(tmp_path, some_classes(["gland", "rest"], background=False), [[1, 1], [0, 0]])
    assert set(np.unique(shown)) == {0, 1} and (empty == 255).all()
    channels = LoadMaskd("label", channel_of_value([0, 1]))
    item = {"image": torch.zeros(3, 8, 8), "label": str(tmp_path / "masks/1.png")}
    target = channels(item)["label"]
    loss = AdaptiveNoiseAwareLoss(background=False)(torch.randn(1, 2, 8, 8), target[None])
    assert loss.item() == 0


def test_one_class_with_background_cannot_be_scored_without_it(tmp_path):
    """Line 1: where background is left out, every answer is right; the score says nothing, and the advice is given."""
    confusion = torch.tensor([[50, 50], [0, 100]])
    published, whole = (summary(confusion, ["background", "tumor"], left_out) for left_out in (True, False))
    assert [published[key] for key in ("mean_iou", "mean_dice", "pixel_accuracy", "frequency_weighted_iou")] == 4 * [
        None
    ]
    assert published["classes"]["tumor"] == {"iou": None, "dice": None, "recall": None, "pixels": 100}
    assert whole["classes"]["tumor"]["iou"] == pytest.approx(100 / 150, abs=1e-6)
    data = write_folder(tmp_path, ["a[1].png", "b[0].png"], mask=pixels([0, 1]))
    _, problems, warnings = inspect_dataset(data, some_classes(["tumor"]))
    assert not problems and any('--class-names "tumor,rest" --no-background' in text for text in warnings)


def test_unknown_labels_neither_gate_nor_train(tmp_path):
    """Line 20, an empty cell: the class appears if it is predicted, and its loss is left out."""
    table = tmp_path / "labels.csv"
    table.write_text("image;tumor;stroma\na.png;;1\nb.png;1;0\n", encoding="utf-8")
    labels = list(read_label_file(table, NAMES).values())
    assert math.isnan(labels[0][0]) and labels[0][1] == 1 and labels[1] == [1, 0]
    predicted = pseudo_masks(tmp_path / "p", some_classes(NAMES), labels)[0]
    absent = pseudo_masks(tmp_path / "q", some_classes(NAMES), labels, prob=0.1)[0]
    assert set(np.unique(predicted)) == {1, 2} and (absent == 2).all()
    logits = torch.tensor([[30.0, 0.5], [1.0, -2.0]], requires_grad=True)
    loss = KnownLabelsLoss()(logits, torch.tensor(labels))
    loss.backward()
    expected = [math.log1p(math.exp(-0.5)), math.log1p(math.exp(-1.0)), math.log1p(math.exp(-2.0))]
    assert loss.item() == pytest.approx(sum(expected) / 3) and logits.grad[0, 0] == 0


def test_the_loss_of_known_labels_is_torchs_to_the_bit():
    """Line 20: nothing changes for data without unknown labels."""
    logits, label = torch.randn(20, 4, requires_grad=True), torch.randint(0, 2, (20, 4)).float()
    losses = [loss(logits, label) for loss in (KnownLabelsLoss(), torch.nn.MultiLabelSoftMarginLoss())]
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    assert losses[0].item() == losses[1].item() and torch.equal(*gradients)
    assert KnownLabelsLoss()(logits, torch.full_like(label, torch.nan)).item() == 0


@pytest.mark.parametrize("names", [["background", "tumor"], ["tumor", "BG"], ["Background"], ["glass", "a"]])
def test_background_among_the_class_names(tmp_path, monkeypatch, names):
    """Line 7: value 0 is background already; with --no-background the name is free."""
    monkeypatch.chdir(tmp_path)
    words = ["new-dataset", "x", "--dataset-dir", "d", "--class-names", ",".join(names)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code != 0 and "value 0 is background already" in str(result.exception)
    with pytest.raises(ValueError, match="`class_names` must not have .*--no-background"):
        some_classes(names)
    if len(names) > 1:
        assert CliRunner().invoke(app, [*words, "--no-background"]).exit_code == 0


CONFIG = {"run_settings": {"free": [], "of_a_session": []}, "seed": 0}


@pytest.fixture
def run(tmp_path):
    """A run that has begun on a data set of four patches; gives the data set's folder and a check."""
    data = write_folder(tmp_path / "data", [f"{name}[1 0].png" for name in "abcd"])
    table = tmp_path / "labels.csv"

    def label(**others):
        rows = [f"{name}[1 0].png,{others.get(name, '0,1')}" for name in sorted("abcd", reverse="a" in others)]
        table.write_text("\n".join(["image,tumor,stroma", *rows]), encoding="utf-8")

    label()
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    record = {"stages": {"train_classifier": {}}, "data": fingerprint(data, NAMES, table)}
    (folder.path / "run.json").write_text(json.dumps(record), encoding="utf-8")

    def changed(dataset_dir=data):
        return folder.data_differences(fingerprint(dataset_dir, NAMES, table))

    return data, label, changed


def test_corrected_labels_with_an_old_run(run):
    """Line 9: named with both values; the order of rows is no difference."""
    _, label, changed = run
    assert changed() == []
    label(a="1,0", c="1,1")
    assert changed() == [
        "labels differ in train/img (2): a[1 0].png was [0 1], now [1 0], c[1 0].png was [0 1], now [1 1]"
    ]


def test_other_data_with_an_old_run(run, tmp_path):
    """Line 9: new, missing and changed files are named; a moved folder is the same."""
    data, _, changed = run
    data = data.rename(tmp_path / "moved")
    assert changed(data) == [] and changed(tmp_path / "nowhere") == []
    save(data / "val/img/w.png", patch(0))
    save(data / "val/mask/v.png", pixels(*[range(60)] * 60))
    (data / "train/img/d[1 0].png").rename(data / "train/img/e[1 0].png")
    assert changed(data)[-2:] == ["images are new in val/img (1): w.png", "sizes differ in val/mask (1): v.png"]
    assert "images are missing in train/img (1): d[1 0].png" in changed(data)


def test_a_test_set_that_came_later_is_no_difference(run):
    """Line 9: but one that was scored and changed is."""
    data, _, changed = run
    record = data.parent / "run" / "run.json"
    save(data / "test/img/t.png", patch(0))
    save(data / "test/mask/t.png", pixels(*[range(60)] * 60))
    assert changed() == []
    content = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(json.dumps(content | {"data": fingerprint(data, NAMES, None)}), encoding="utf-8")
    save(data / "test/img/u.png", patch(1))
    assert any("images are new in test/img (1): u.png" in found for found in changed())


def test_a_change_of_data_is_refused_with_the_way_out(run, tmp_path):
    """Line 9: as for settings."""
    data, _, _ = run
    folder = RunFolder(tmp_path / "run")
    (folder.path / "configs").mkdir()
    (folder.path / "model.pt").touch()
    saved = CONFIG | {
        "bundle_root": ".",
        "output_dir": "@bundle_root",
        "dataset_dir": str(tmp_path),
        "label_file": None,
    }
    config = CONFIG | {"run_settings": {"free": ["dataset_dir"], "of_a_session": []}}
    (folder.path / "configs/train.json").write_text(json.dumps(saved | config), encoding="utf-8")
    old = folder.data_differences(None)
    seen = fingerprint(data, NAMES)
    with pytest.raises(
        ValueError, match="have changed since: labels differ .*another --output_dir, or pass --redo train_"
    ):
        folder.require_same_settings(config, seen)
    assert old == []


def test_long_lists_of_differences_are_capped():
    """Line 9: a few names and a count."""
    new = {"train/img": {f"{number:02}.png": "1 0" for number in range(40)}}
    assert data_differences({}, new) == ["images are new in train/img (40): 00.png, 01.png, 02.png, and 37 more"]


def warnings_of(root, labels, **options):
    _, problems, warnings = inspect_dataset(write_folder(root, labels, **options), some_classes(NAMES))
    assert not problems
    return warnings


def test_every_patch_with_one_label(tmp_path):
    """Line 10."""
    warnings = warnings_of(tmp_path, [f"{index}[1 1].png" for index in range(12)])
    assert warnings == [
        "all 12 training patches have the same label, [1 1], so nothing can be learned from them; add patches with "
        "other labels."
    ]


def test_a_class_that_never_occurs_without_another(tmp_path):
    """Line 10, and a class with few patches, and one that is in all of them."""
    labels = [*[f"{index}[0 1].png" for index in range(10)], "x[1 1].png"]
    warnings = warnings_of(tmp_path, labels)
    assert [text.partition(";")[0] for text in warnings] == [
        "only 1 training patches show 'tumor'",
        "'tumor' never occurs without 'stroma' (1 patches), so they cannot be told apart",
        "no training patch lacks 'stroma', so a classifier cannot learn what it looks like",
    ]


LEARNABLE = [f"{index}[{'1 0' if index < 10 else '0 1'}].png" for index in range(20)]


def test_nothing_to_warn_of(tmp_path):
    assert warnings_of(tmp_path, LEARNABLE, splits=("val", "test")) == []


def test_a_class_that_no_mask_shows(tmp_path):
    """Line 10: what cannot be scored."""
    warnings = warnings_of(tmp_path, LEARNABLE, mask=pixels([1, 1, 0, 255]))
    assert warnings == ["val has no pixel of 'stroma', so it cannot be scored there; add masks that show it."]


def test_images_both_in_train_and_in_val(tmp_path):
    """Line 10: the same bytes under another name."""
    write_folder(tmp_path, LEARNABLE)
    (tmp_path / "val/img/v.png").write_bytes((tmp_path / "train/img/3[1 0].png").read_bytes())
    save(tmp_path / "val/mask/v.png", pixels(*[[1, 2] * 4] * 8))
    _, _, warnings = inspect_dataset(tmp_path, some_classes(NAMES))
    assert warnings == [
        "1 images of val are also in train, so their scores mean little: v.png is 3[1 0].png; remove them from one of "
        "the two."
    ]


@pytest.mark.parametrize("told_by", ["regex", "table", "subfolder"])
def test_patches_of_a_patient_on_both_sides(tmp_path, told_by, capsys):
    """Line 10: by --group, by a column of the label table, or by subfolders."""
    folder = "P1/" if told_by == "subfolder" else ""
    names = [folder + ("P1_" if index < 10 else "P22_") + name for index, name in enumerate(LEARNABLE)]
    write_folder(tmp_path, names, splits=())
    save(tmp_path / f"val/img/{folder}P1_v.png", patch(99, (1, 2)))
    save(tmp_path / f"val/mask/{folder}P1_v.png", pixels([1, 2]))
    table = None
    if told_by == "table":
        rows = [f"{name},{'1,0' if name.startswith('P1') else '0,1'},{name.partition('_')[0]}" for name in names]
        table = tmp_path / "labels.csv"
        table.write_text("\n".join(["image,tumor,stroma,Patient", *rows]), encoding="utf-8")
    _, problems, warnings = inspect_dataset(
        tmp_path, some_classes(NAMES), table, r"^P\d+" if told_by == "regex" else None
    )
    assert not problems and len(warnings) == 1
    assert "train and val share 1 patients, slides or groups" in warnings[0] and "'P1' (1 in val)" in warnings[0]
    if told_by == "regex":
        (tmp_path / "dataset_x.json").write_text(json.dumps(asdict(some_classes(NAMES))), encoding="utf-8")
        main(str(tmp_path), str(tmp_path / "dataset_x.json"), group=r"^P\d+")
        assert "Warning: train and val share 1 patients" in capsys.readouterr().out


def test_prepare_refuses_a_patient_on_both_sides(tmp_path):
    """Line 10: a layout with splits is checked; a flat folder is split by the groups."""
    for name in ("train", "val"):
        save(tmp_path / f"s/{name}/img/P1_{name}.png", patch(1))
        save(tmp_path / f"s/{name}/mask/P1_{name}.png", np.ones((8, 8), np.uint8))
    overlay = tmp_path / "dataset_x.json"
    overlay.write_text(json.dumps(asdict(some_classes(NAMES))), encoding="utf-8")
    with pytest.raises(ValueError, match=r"all images of a `group` must be in one split, .* such as \['P1'\]"):
        prepare(str(tmp_path / "s"), str(tmp_path / "o"), str(overlay), patch_size=8, group=r"^P\d+")
    source = {"mask_suffix": "_m", "val_share": 0.5}
    overlay.write_text(json.dumps(asdict(some_classes(NAMES)) | {"source": source}), encoding="utf-8")
    for name in ("P1_a", "P1_b", "P2_a", "P2_b"):
        save(tmp_path / f"flat/{name}.png", patch(1))
        save(tmp_path / f"flat/{name}_m.png", np.ones((8, 8), np.uint8))
    report = prepare(str(tmp_path / "flat"), str(tmp_path / "p"), str(overlay), patch_size=8, group=r"^P\d+")
    assert report["names"] == {"train": ["P1_a.png", "P1_b.png"], "val": ["P2_a.png", "P2_b.png"]}


def test_labels_alone(tmp_path):
    """Line 17: no val, and test without masks; it is said what is not scored."""
    write_folder(tmp_path, LEARNABLE, splits=())
    save(tmp_path / "test/img/t.png", patch(7))
    report, problems, warnings = inspect_dataset(tmp_path, some_classes(NAMES))
    assert set(report) == {"train"} and not problems
    assert split_items(tmp_path, "val") == split_items(tmp_path, "test") == []
    assert "the last one is kept, and nothing is scored on val" in warnings[0]
    assert "images but no masks, so nothing is scored on test" in warnings[1]


TEXT = "image,tumor,stroma\na.png,1,0\nb.png,0,1\nc.png,1,1\n"
SPREADSHEETS = {
    "Excel": ("\ufeff" + TEXT + ",,\n,,\n").replace("\n", "\r\n"),
    "Excel in Germany": TEXT.replace(",", ";"),
    "decimal commas": TEXT.replace(",", ";").replace(";1", ";1,0").replace(";0", ";0,0"),
    "LibreOffice, quoted": '"image"\t"tumor"\t"stroma"\n"a.png"\t1\t0\n"b.png"\t0\t1\n"c.png"\t1\t1\n',
    "blanks": TEXT.replace(",", ", "),
    "pandas": ",image,tumor,stroma\n0,a.png,1.0,0.0\n1,b.png,0.0,1.0\n2,c.png,1.0,1.0\n",
    "other columns": "stroma,note,IMAGE,Tumor\n0,x,a.png,1\n1,,b.png,0\n1,y,c.png,1\n",
    "logical values": TEXT.replace(",1", ",TRUE").replace(",0", ",FALSE"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("kind", SPREADSHEETS)
def test_labels_as_spreadsheets_write_them(tmp_path, kind, encoding):
    """Line 20."""
    path = tmp_path / "labels.csv"
    path.write_bytes(SPREADSHEETS[kind].encode(encoding))
    assert read_label_file(path, NAMES) == {"a.png": [1, 0], "b.png": [0, 1], "c.png": [1, 1]}


def test_a_refused_label_names_its_row_and_why(tmp_path):
    """Line 20: the row as the spreadsheet shows it, after an empty one."""
    path = tmp_path / "labels.csv"
    path.write_text("image;tumor;stroma\n;;\na.png;1;0\nb.png;ja;1\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"labels.csv, row 4: the label of 'b.png' must be 2 numbers.*got \['ja', '1'\]"
    ):
        read_label_file(path, NAMES)


def test_patches_that_are_links_with_a_table(tmp_path):
    """Line 22: links out of the folder, of files and of folders, are followed."""
    real = save(tmp_path / "archive/slide0/p.png", patch(0))
    images = tmp_path / "data/train/img"
    images.mkdir(parents=True)
    (images / "a.png").symlink_to(real)
    (images / "slide0").symlink_to(real.parent)
    (tmp_path / "l.csv").write_text("image,tumor,stroma\na.png,1,0\nslide0\\p.png,0,1\n", encoding="utf-8")
    found = labelled_images(tmp_path / "data", NAMES, tmp_path / "l.csv")
    assert [(item["name"], item["label"]) for item in found] == [("a.png", [1, 0]), ("slide0/p.png", [0, 1])]


def test_patches_of_one_name_in_two_subfolders(tmp_path):
    """Line 22: names keep their folder in pseudo masks and in pairs of images and masks; hidden files are skipped."""
    for slide, value in (("slide0", 1), ("slide1", 2)):
        save(tmp_path / f"val/img/{slide}/0_0.png", patch(value))
        save(tmp_path / f"val/mask/{slide}/0_0.png", np.full((8, 8), value, np.uint8))
    save(tmp_path / "val/img/slide0/._0_0.png", patch(0))
    save(tmp_path / "val/img/.thumbnails/x.png", patch(0))
    items = split_items(tmp_path, "val")
    assert [(item["name"], item["label"]) for item in items] == [
        (f"slide{index}/0_0.png", str(tmp_path / f"val/mask/slide{index}/0_0.png")) for index in (0, 1)
    ]
    dataset = [{"image": torch.from_numpy(patch(9)).permute(2, 0, 1), "label": torch.eye(2)[i]} for i in (0, 1)]

    class Patches(list):
        data = items

    network = CAMSegmenter(Classifier(2), (1.0,), 0.5)
    write_pseudo_masks(network, Patches(dataset), tmp_path / "masks", some_classes(NAMES))
    for index in (0, 1):
        assert (np.asarray(Image.open(tmp_path / f"masks/slide{index}/0_0.png")) == index + 1).all()
    assert json.loads((tmp_path / "masks/manifest.json").read_text())["masks"] == ["slide0/0_0.png", "slide1/0_0.png"]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_images_that_viewers_turn(tmp_path, suffix):
    """Line 22: refused with the remedy; TIFFs, which are turned as they are opened, have one size everywhere."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / f"a.{suffix}", patch(0, (4, 6)), exif=exif)
    if suffix == "tif":
        with Image.open(path) as image:
            assert rgb_size(path) == image.size == np.asarray(image).shape[1::-1] == (4, 6)
        return
    with pytest.raises(
        ValueError, match=f"a.{suffix} must be stored upright, but its EXIF orientation is 6.*exif_transp"
    ):
        rgb_size(path)
    mask = save(tmp_path / f"m.{suffix}", pixels([0, 0]), exif=exif)
    with pytest.raises(ValueError, match="must be stored upright"):
        load_mask(mask, some_classes(NAMES).lookup_table(), (1, 2))


def test_names_in_two_unicode_forms(tmp_path):
    """Line 22: macOS writes accents as letters of their own, in file names but not in tables."""
    composed, split_up = (unicodedata.normalize(form, "Gewebe_ä") for form in ("NFC", "NFD"))
    assert composed != split_up
    save(tmp_path / f"val/img/{composed}.png", patch(0))
    save(tmp_path / f"val/mask/{split_up}.png", np.ones((8, 8), np.uint8))
    assert len(split_items(tmp_path, "val")) == 1
    save(tmp_path / f"train/img/{split_up}.png", patch(0))
    (tmp_path / "l.csv").write_text(f"image,tumor,stroma\n{composed}.png,1,0\n", encoding="utf-8")
    assert [item["label"] for item in labelled_images(tmp_path, NAMES, tmp_path / "l.csv")] == [[1, 0]]


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_masks_of_16_bits_in_either_byte_order(tmp_path, order):
    """Line 22."""
    import tifffile

    values = pixels([0, 1, 2], [255, 2, 1])
    tifffile.imwrite(tmp_path / "m.tif", values.astype(order), byteorder=order[0])
    mask = load_mask(tmp_path / "m.tif", some_classes(NAMES).lookup_table(), (2, 3))
    assert mask.dtype == np.uint8 and np.array_equal(mask, values)


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("value", [255, 7])
def test_an_ignore_value_leaves_the_scores(tmp_path, background, value):
    """Line 23: under both protocols, whatever is predicted there."""
    classes = some_classes(NAMES, background, ignore_value=value)
    path = save(tmp_path / "m.png", pixels([0, 1, 1, value, value, value]))
    true = torch.from_numpy(load_mask(path, classes.lookup_table(), (1, 6)))[None]
    pred = torch.tensor([[[1, 1, 0, 0, 1, 1]]])
    matrix = confusion_matrix(pred, true, len(classes.value_names))
    assert torch.equal(matrix, confusion_matrix(pred[..., :3], true[..., :3], len(classes.value_names)))
    assert matrix.sum() == 3


def test_an_ignore_value_is_255_unless_that_is_mapped(tmp_path):
    """Line 23: a data set that maps 255 to a class is as before; null turns it off; a contradiction is refused."""
    path = save(tmp_path / "m.png", pixels([0, 255]))
    mapped = some_classes(["gland", "rest"], False, mask_values={"0": 0, "1-255": 1})
    assert load_mask(path, mapped.lookup_table(), (1, 2)).tolist() == [[0, 1]]
    assert load_mask(path, some_classes(NAMES).lookup_table(), (1, 2)).tolist() == [[0, 255]]
    with pytest.raises(ValueError, match=r"also got \[255\]; add an entry for each, set `ignore_value`"):
        load_mask(path, some_classes(NAMES, ignore_value=None).lookup_table(), (1, 2))
    with pytest.raises(ValueError, match="`ignore_value` must not be among `mask_values`, but 1 is"):
        some_classes(NAMES, ignore_value=1)


def test_an_ignore_value_is_no_class_of_a_patch(tmp_path):
    """Line 23: `prepare` takes shares of the other pixels, and writes the value into masks."""
    mask = np.full((8, 8), 255, np.uint8)
    mask[0, :4] = 1
    mask[0, 4:] = pixels(0, 0, 0, 2)
    for split in ("train", "val"):
        save(tmp_path / f"s/{split}/img/a.png", patch(1))
        save(tmp_path / f"s/{split}/mask/a.png", mask)
    overlay = tmp_path / "dataset_x.json"
    overlay.write_text(json.dumps(asdict(some_classes(NAMES))), encoding="utf-8")
    prepare(str(tmp_path / "s"), str(tmp_path / "o"), str(overlay), patch_size=8, min_share=0.5, train_masks=True)
    written = sorted((tmp_path / "o/train/img").iterdir())
    assert [path.name for path in written] == ["a_x0_y0[1 0].png"]  # 4 of 8 pixels, and 1 of 8
    for path in (tmp_path / "o/val/mask/a.png", tmp_path / "o/train/mask" / written[0].name):
        assert np.array_equal(np.asarray(Image.open(path)), mask)


def test_an_ignore_value_in_pictures(tmp_path):
    """Line 23: grey in masks and overlays."""
    mask, palette = pixels([0, 1, 255]), some_classes(NAMES).palette
    write_mask(tmp_path / "m.png", mask, palette)
    with Image.open(tmp_path / "m.png") as picture:
        assert np.array_equal(np.asarray(picture), mask)
        assert np.asarray(picture.convert("RGB")).tolist() == [[palette[0], palette[1], [128, 128, 128]]]
    blended = np.asarray(overlay(np.zeros((1, 3, 3), np.uint8), mask, palette))
    assert blended[0, 0].tolist() == [0, 0, 0] and blended[0, 2].tolist() == [64, 64, 64]


def test_a_new_dataset_of_one_class_is_told_the_way(tmp_path, monkeypatch):
    """Line 1: at once, with the command's output."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["new-dataset", "x", "--dataset-dir", "d", "--class-names", "tumor"])
    assert result.exit_code == 0 and '--class-names "tumor,rest" --no-background' in result.output
    assert "ignore_value" not in describe_dataset("x", "x", NAMES, True)
