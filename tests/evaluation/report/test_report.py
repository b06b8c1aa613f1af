import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image
from some_classes import some_classes
from torch.utils.tensorboard import SummaryWriter

from scripts.evaluation.borders import BorderScores
from scripts.evaluation.report.border_scores import border_scores, chart_by_distance
from scripts.evaluation.report.report import read_scores, report, write_report
from scripts.files.atomic import write_csv, write_json
from scripts.files.pictures import write_mask

NASTY = "<b>&\"x'</b>"
NAMES = ["background", NASTY, "stroma"]
PALETTE = [[255, 255, 255], [200, 0, 0], [0, 100, 0]]
IMAGES = {"a.png": 0.5, "b.png": 0.75, "c.png": None, "d.png": 0.25, f"e{NASTY.replace('/', '')}.png": 0.6}
STAGE = {"completed": "2026-01-02T03:04:05+00:00", "minutes": 1.25, "seed": 7, "revision": "abc123", "result": "x"}


def scores(title, background=True):
    """Made-up scores, all different, of which some are undefined."""
    seed = sum(map(ord, title))
    values = iter(np.random.default_rng(seed).random(99).round(6).tolist())

    def protocol(names):
        keys = ("iou", "dice", "recall")
        classes = {name: {key: next(values) for key in keys} | {"pixels": 1234.0} for name in names}
        classes["stroma"] |= {"iou": None, "recall": None, "pixels": 0.0}
        means = {key: next(values) for key in ("mean_iou", "mean_dice", "mean_accuracy")}
        return means | {"classes": classes, "confusion": [[6, 3, 1], [0, 300, 100], [0, 0, 0]]}

    protocols = {"published": protocol(NAMES[1:])}
    if background:
        protocols["with_background"] = protocol(NAMES)
    return {"title": title, "images": len(IMAGES), "protocols": protocols}


@pytest.fixture
def dataset_dir(tmp_path):
    """Val images of 8x6 px."""
    for kind in ("img", "mask"):
        (tmp_path / "data" / "val" / kind).mkdir(parents=True)
    for name in IMAGES:
        Image.new("RGB", (8, 6), (90, 120, 150)).save(tmp_path / "data" / "val" / "img" / name)
        Image.new("L", (8, 6), 1).save(tmp_path / "data" / "val" / "mask" / name)
    return tmp_path / "data"


@pytest.fixture
def run_folder(tmp_path, dataset_dir):
    """The folder of a run, as far as a report looks at it."""
    folder = tmp_path / "run"
    config = {"dataset_name": NASTY, "method_name": "esfan", "preset": "lite", "dataset_dir": str(dataset_dir)}
    config |= asdict(some_classes(NAMES[1:], palette=PALETTE)) | {"threshold": 0.3, "seed": 7}
    config |= {"level_weights": [1, 0], "cam_segmenter": {"level_weights": [0.1, 0.9], "threshold": "@threshold"}}
    config |= {"train": {"epochs": 3, "batch_size": "$2 * @train#epochs"}}
    config |= {"segmenter_def": "@net", "net": {"_target_": "a.Pad", "network": {"_target_": "b.Net", "name": "tiny"}}}
    write_json(folder / "configs" / "train.json", config)
    versions = {"train_classifier": "1.0", "run": "2.0"}
    stages = {name: STAGE | {"versions": {"torch": version}} for name, version in versions.items()}
    write_json(folder / "run.json", {"stages": stages})
    for title in ("classifier_val", "segmenter_val", "segmenter_test"):
        write_json(folder / "scores" / f"{title}.json", scores(title))
        for name in IMAGES:
            write_mask(folder / "predictions" / title / f"{name[:-4]}.png", np.ones((6, 8), int), PALETTE)
    rows = [[name, score, 0.5] for name, score in IMAGES.items()]
    header = ["image", "mean_iou_published", "mean_iou_with_background"]
    write_csv(folder / "scores" / "segmenter_val_images.csv", header, rows)
    with SummaryWriter(folder / "tensorboard") as writer:
        for step in range(1, 6):
            writer.add_scalar("segmenter_loss", 1 / step, step)
            writer.add_scalar("val_mean_iou", step / 10, step)
    return folder


class Page(HTMLParser):
    """The tables of a page as rows of texts, its other texts, and its elements with their attributes."""

    def __init__(self, path):
        super().__init__()
        self.tables, self.texts, self.elements = [], [], []
        self._cell = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("th", "td")

    def handle_data(self, data):
        if self._cell:
            self.tables[-1][-1][-1] += data
        else:
            self.texts.append(data)

    def texts_of_pictures(self):
        return [attributes["alt"] for tag, attributes in self.elements if tag == "img"]


def written(run_folder, dataset_dir):
    return Page(write_report(run_folder, dataset_dir))


def three_digits(value):
    return "–" if value is None else f"{value:.3f}"


HEAD = ["class", "overlap with the truth (IoU)", "Dice", "right where predicted (precision)", "found (recall)"]
HEAD.append("share of true pixels")


def precisions(result):
    """The share of right ones among the scored pixels predicted as each class."""
    first = len(result["confusion"]) - len(result["classes"])
    columns = list(zip(*result["confusion"][first:]))[first:]
    return [column[k] / sum(column) if sum(column) else None for k, column in enumerate(columns)]


def expected_classes(result):
    right, pixels = precisions(result), sum(s["pixels"] for s in result["classes"].values())
    rows = []
    for (name, s), precision in zip(result["classes"].items(), right, strict=True):
        cells = [three_digits(value) for value in (s["iou"], s["dice"], precision, s["recall"])]
        rows.append([name, *cells, f"{100 * s['pixels'] / pixels:.0f} %"])
    known = [value for value in right if value is not None]
    means = [result["mean_iou"], result["mean_dice"], sum(known) / len(known) if known else None]
    means = [three_digits(value) for value in (*means, result["mean_accuracy"])]
    return [HEAD, *rows, ["mean", *means, "100 %"]]


def test_scores_are_those_of_the_files_under_both_protocols(run_folder, dataset_dir):
    (run_folder / "scores" / "cam_fit.json").write_text('{"level_weights": [0, 0, 1]}')  # by `run fit_cams`
    page = written(run_folder, dataset_dir)
    found = [table for table in page.tables if table[0][:2] == HEAD[:2]]
    expected = [scores(title)["protocols"] for title in ("classifier_val", "segmenter_val", "segmenter_test")]
    assert found == [expected_classes(result) for protocols in expected for result in protocols.values()]
    protocols = [re.search(r"\(protocol (\w+)\)", text) for text in page.texts]
    assert [match[1] for match in protocols if match] == list(expected[0]) * 3
    cards = [text for text in page.texts if re.fullmatch(r"\d+[.:]\d+( min)?", text)][:4]
    assert cards == [*(f"{protocols['published']['mean_iou']:.2f}" for protocols in expected), "2:30 min"]


def test_every_measure_is_explained(run_folder, dataset_dir):
    page = written(run_folder, dataset_dir)
    titles = [a["title"] for tag, a in page.elements if tag == "th" and "title" in a][:4]
    assert len(set(titles)) == 4 and set(titles) <= set(page.texts) and set(HEAD[1:5]) <= set(page.texts)


def test_confusions_are_shares_of_the_true_pixels(run_folder, dataset_dir):
    page = written(run_folder, dataset_dir)
    published, with_background = [table for table in page.tables if table[0][0].startswith("truth")][:2]
    assert with_background[0][1:] == NAMES and published[0] == with_background[0]
    assert with_background[1:] == [
        ["background", "60 %", "30 %", "10 %"],
        [NASTY, "0 %", "75 %", "25 %"],
        ["stroma", "–", "–", "–"],
    ]
    assert published[1:] == with_background[2:]  # true background leaves the score
    colours = [a["style"] for tag, a in page.elements if tag == "td" and "style" in a][6:9]
    assert colours == [f"background:rgb({c})" for c in ("174,203,234", "252,228,210", "254,246,240")]


def test_data_without_background_have_one_protocol(run_folder, dataset_dir):
    for path in (run_folder / "scores").glob("*.json"):
        write_json(path, scores(path.stem, background=False))
    page = written(run_folder, dataset_dir)
    assert len([table for table in page.tables if table[0] == HEAD]) == 3
    assert not any("with_background" in text for text in page.texts)


def test_what_files_and_people_name_is_text_and_no_markup(run_folder, dataset_dir):
    page = written(run_folder, dataset_dir)
    assert {tag for tag, _ in page.elements}.isdisjoint({"b", "script"})
    assert f"{NASTY} · esfan · lite" in page.texts  # in the heading and the title
    content = (run_folder / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in content and str(escape(NASTY)) in content
    attributes = [a for _, a in page.elements]
    assert all(a.get("src", "data:").startswith("data:") for a in attributes)


def test_links_are_relative_and_lead_to_what_is_there(run_folder, dataset_dir):
    (run_folder / "run.log").touch()
    (run_folder / "pictures").mkdir()
    (run_folder / "pictures" / "50% #1.png").touch()
    addresses = [attributes["href"] for tag, attributes in written(run_folder, dataset_dir).elements if tag == "a"]
    assert all((run_folder / unquote(address)).exists() for address in addresses)
    assert {"run.log", "configs/train.json", "predictions/segmenter_val/", "pictures/50%25%20%231.png"} <= set(
        addresses
    )
    assert len(set(addresses)) == len(addresses) and "pseudo_masks/" not in addresses


def test_labels_are_counted_in_train_by_name_and_elsewhere_by_mask(run_folder, dataset_dir):
    (dataset_dir / "train" / "img").mkdir(parents=True)
    for name in ("a[1 0].png", "b[1 1].png", "c[1 0].png"):
        (dataset_dir / "train" / "img" / name).touch()
    mask = Image.new("L", (8, 6), 1)
    mask.putpixel((0, 0), 2)
    mask.save(dataset_dir / "val" / "mask" / "b.png")
    tables = [table for table in written(run_folder, dataset_dir).tables if table[0] == ["class", "train", "val"]]
    assert tables == [[["class", "train", "val"], [NASTY, "3", "5"], ["stroma", "1", "1"], ["all", "3", "5"]]]


def test_best_median_and_worst_images_are_shown(run_folder, dataset_dir):
    page = written(run_folder, dataset_dir)
    kinds = ["image", "pseudo mask", "prediction", "truth"]
    assert page.texts_of_pictures() == [f"{kind}, {name}" for name in ("b.png", "a.png", "d.png") for kind in kinds]
    assert not any("eat map" in text for text in page.texts)  # there is no classifier
    text = "".join(page.texts)
    for caption in ("best: b.png, over", "(mean IoU) 0.75", "median: a.png, over", "worst: d.png, over"):
        assert caption in text
    assert [tag for tag, _ in page.elements].count("summary") == 12 + 1  # each can be enlarged; the config unfolds
    with Image.open(run_folder / "pictures" / "examples.png") as sheet:  # three rows of four pictures of 8x6 px
        assert sheet.height > 3 * 224 and sheet.width > 4 * 224


def test_the_legend_names_every_colour(run_folder, dataset_dir):
    write_report(run_folder, dataset_dir)
    content = (run_folder / "report.html").read_text(encoding="utf-8")
    legend = re.findall(r"rgb\(([\d,]+)\)\"></i>([^<]*)</li>", content)
    assert [(colour, html.unescape(name)) for colour, name in legend] == [
        ("255,255,255", "background (left clear)"),
        ("200,0,0", NASTY),
        ("0,100,0", "stroma"),
    ]


def test_without_a_score_there_is_no_image_to_show(run_folder, dataset_dir):
    table = run_folder / "scores" / "segmenter_val_images.csv"
    write_csv(table, ["image", "mean_iou_published"], [["c.png", None]])
    page = written(run_folder, dataset_dir)
    assert page.texts_of_pictures() == [] and "No val image has a score." in page.texts


def test_settings_curves_and_versions(run_folder, dataset_dir):
    page = written(run_folder, dataset_dir)
    tables = {table[0][0]: table for table in page.tables}
    assert tables["stage"][1] == ["train_classifier", "2026-01-02 03:04", "1:15 min", "7", "abc123"]
    training = {row[0]: row[1:] for row in tables["training"]}
    assert training["network"] == ["", "Pad · Net tiny"] and training["epochs"] == ["–", "3"]
    assert training["batch size"] == ["–", "6"]  # an expression
    assert ["probability above which a class is present", "0.3"] in tables["other settings"]
    assert ["level weights of the heat maps (CAMs)", "[0.1, 0.9]"] in tables["other settings"]  # those in use
    assert tables["package"] == [["package", "version"], ["torch", "1.0, 2.0"]]
    config = json.loads((run_folder / "configs" / "train.json").read_text())
    assert any(text.startswith("{") and json.loads(text) == config for text in page.texts)
    labels = [attributes["aria-label"] for tag, attributes in page.elements if tag == "svg"]
    assert labels == ["segmenter_loss by step: 1 at 1, 0.2 at 5", "val_mean_iou by epoch: 0.1 at 1, 0.5 at 5"]


def test_a_run_that_has_barely_begun_has_a_report(run_folder, dataset_dir):
    for name in ("scores", "predictions", "tensorboard"):
        shutil.rmtree(run_folder / name)
    (run_folder / "run.json").unlink()
    shutil.rmtree(dataset_dir)
    text = "".join(written(run_folder, dataset_dir).texts)
    for sentence in ("No stage is complete.", "No learning curves", "Nothing was scored", "was not scored on val"):
        assert sentence in text


def test_an_adaptation_shows_before_and_after(run_folder, dataset_dir):
    config = json.loads((run_folder / "configs" / "train.json").read_text())
    write_json(run_folder / "configs" / "train.json", config | {"source_dir": "/old/run", "num_images": 5})
    for folder, suffix in (("scores", ".json"), ("predictions", "")):
        (run_folder / folder / f"classifier_val{suffix}").rename(run_folder / folder / f"source_val{suffix}")
    page = written(run_folder, dataset_dir)
    stages = ["before the adaptation", "after the adaptation", "after the adaptation"]
    assert [item["stage"] for item in read_scores(run_folder / "scores")] == stages
    tables = {table[0][0]: table for table in page.tables}
    assert ["started from", "/old/run"] in tables["other settings"] and len(tables["training"][0]) == 2
    kinds = ["image", "before the adaptation", "prediction", "truth"]
    assert page.texts_of_pictures()[:4] == [f"{kind}, b.png" for kind in kinds]


def test_settings_of_cams_are_shown_only_if_there_were_any(run_folder, dataset_dir):
    record = json.loads((run_folder / "run.json").read_text())
    del record["stages"]["train_classifier"]
    write_json(run_folder / "run.json", record)
    assert not any(
        "CAM" in row[0] or "class is present" in row[0] for t in written(run_folder, dataset_dir).tables for row in t
    )


def test_a_run_without_its_data_or_predictions_says_so(run_folder, dataset_dir, tmp_path):
    page = written(run_folder, tmp_path / "elsewhere")
    assert page.texts_of_pictures() == []
    assert any(text.startswith("No pictures: ") and "elsewhere/val does not exist" in text for text in page.texts)
    shutil.rmtree(run_folder / "predictions")
    page = written(run_folder, dataset_dir)
    assert page.texts_of_pictures()[:2] == ["image, b.png", "truth, b.png"]
    assert "The folder `predictions` is missing; score the network again to create it." in page.texts


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="must be the folder of a run, got .*no configs/train.json"):
        report(str(tmp_path))


# --- a real run


def test_the_command_writes_the_report_of_a_moved_run_again(finished_run, tmp_path):
    moved = tmp_path / "2024"  # a name that Fire takes for a number
    shutil.copytree(finished_run, moved)
    (moved / "report.html").unlink()
    command = [sys.executable, "-m", "scripts", "report", "2024"]
    result = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(moved)}, capture_output=True, text=True)
    assert result.stdout.strip() == str(moved / "report.html"), result.stderr
    assert (moved / "report.html").read_bytes() == (finished_run / "report.html").read_bytes()


def test_a_training_ends_with_a_report(finished_run):
    page = Page(finished_run / "report.html")
    titles = ("classifier_val", "segmenter_val", "classifier_test", "segmenter_test")
    found = [table for table in page.tables if table[0] == HEAD]
    files = [json.loads((finished_run / "scores" / f"{title}.json").read_text())["protocols"] for title in titles]
    assert found == [expected_classes(result) for protocols in files for result in protocols.values()]
    pictures = page.texts_of_pictures()
    heat_maps = [text for text in pictures if text.startswith("heat map of ")]
    worst = [text for text in pictures if "wrong region of" in text]
    # three images of val, each once, and of each its largest wrong region
    assert len(pictures) == 3 * 4 + len(heat_maps) + len(worst) == len(set(pictures)) and len(worst) == 3 * 3
    assert len(heat_maps) >= 3 and any("Heat maps show" in text for text in page.texts)
    curves = [a["aria-label"].split()[0] for tag, a in page.elements if tag == "svg"]
    assert curves == ["right", "right", "classifier_loss", "segmenter_loss", "val_mean_iou"]


CHROMIUM = shutil.which("chromium")
OPTIONS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
OPTIONS += (
    " --disable-component-update --disable-sync --enable-logging=stderr --v=0 --window-size=1100,900 --hide-scrollbars"
)
OPTIONS += " --virtual-time-budget=10000 --dump-dom"
LOOK = """<script>addEventListener("load", () => {
    const pictures = [...document.images];
    document.documentElement.dataset.found = JSON.stringify({
        sizes: pictures.map(picture => [picture.naturalWidth, picture.naturalHeight]),
        broken: pictures.filter(picture => !picture.naturalWidth).length,
        width: document.documentElement.scrollWidth});
});</script>"""


def look_at(content, folder):
    """What Chromium finds in a page, by a script in front of the policy that allows none, and its errors."""
    folder.mkdir()
    (folder / "page.html").write_text(content.replace("<head>", "<head>" + LOOK, 1), encoding="utf-8")
    command = [CHROMIUM, *OPTIONS.split(), f"--user-data-dir={folder / 'profile'}", (folder / "page.html").as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = json.loads(html.unescape(re.search('data-found="([^"]*)"', result.stdout)[1]))
    return found, [line for line in result.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")
def test_a_browser_shows_every_picture_without_an_error(finished_run, tmp_path):
    content = (finished_run / "report.html").read_text(encoding="utf-8")
    found, errors = look_at(content, tmp_path / "whole")
    assert errors == []
    assert found == {"sizes": [[64, 64]] * content.count("<img"), "broken": 0, "width": 1100}
    found, _ = look_at(content.replace("base64,/9j/", "base64,AAAA", 1), tmp_path / "broken")  # the look can fail
    assert found["broken"] == 1 and found["sizes"].count([0, 0]) == 1
    for name, tag in (("load", '<img src="http://localhost:9/a.png">'), ("run", "<script>1</script>")):
        _, errors = look_at(content.replace("</body>", tag + "</body>"), tmp_path / name)
        assert len(errors) == 1 and "Content Security Policy" in errors[0]


def border_run(run_folder, same):
    """Real border scores of both networks on val, whose predictions are the ``same`` or not."""
    true = np.ones((6, 8), dtype=np.uint8)
    true[:, 5:] = 2
    for stage, width in (("classifier", 4), ("segmenter", 4 if same else 5)):
        pred = np.where(np.arange(8) < width, 1, 2)[None].repeat(6, axis=0)
        borders = BorderScores(NAMES, exclude_background=True, mpp=0.5)
        borders.add("a.png", pred, true)
        result = scores("x")
        for protocol in result["protocols"].values():
            protocol["borders"] = borders.summary()
        write_json(run_folder / "scores" / f"{stage}_val.json", result)
        write_mask(run_folder / "predictions" / f"{stage}_val" / "a.png", pred.astype(np.uint8), PALETTE)


def test_where_masks_are_wrong_is_told_by_distance_and_by_size(run_folder, dataset_dir):
    border_run(run_folder, same=False)
    (item,) = border_scores(read_scores(run_folder / "scores"))
    assert item["split"] == "val" and item["stage"] == "segmentation network" and item["mpp"] == 0.5
    assert item["kinds"] == {"classifier": "second", "segmentation network": "line"}
    assert item["bands"] == ["0–2", "2–5", "5–10", "10–20", "20–50", "over 50"]
    assert item["classes"][-1][2][:2] == [1, 1] and item["regions"][0] == ("0–500", 1, 2, 1, 2) and item["worst"] == []
    page = write_report(run_folder, dataset_dir).read_text("utf-8")
    assert "Where the masks are wrong" in page and "1 px is 0.5 µm" in page
    assert "The largest wrong regions" not in page


def test_cams_that_are_the_network_are_shown_once_with_their_worst_regions(run_folder, dataset_dir):
    for path in (run_folder / "scores").glob("*_test.json"):
        path.unlink()
    border_run(run_folder, same=True)
    assert len(read_scores(run_folder / "scores")) == 2
    (item,) = read_scores(run_folder / "scores", second_stage=False)
    assert item["stage"] == "CAMs of the classifier"
    (item,) = border_scores([item])
    assert item["classes"][-1][2][0] == pytest.approx(3 / 4)  # of the four columns beside the border, one is wrong
    config = json.loads((run_folder / "configs" / "train.json").read_text())
    write_json(run_folder / "configs" / "train.json", config | {"second_stage": False})
    write_json(run_folder / "run.json", {"stages": {}})
    page = write_report(run_folder, dataset_dir).read_text("utf-8")
    assert f"6 px of {escape(NASTY)} taken for stroma" in page
    assert "segmentation network" not in page and "pseudo mask" not in page


def test_the_curve_has_a_point_for_each_band_that_has_pixels():
    bands = ["0–2", "2–5", "over 5"]
    drawing = chart_by_distance({"line": [0.5, None, 1.0], "second": [0.0, 0.25, 0.5]}, bands)
    lines = dict(re.findall(r'<polyline class="(\w+)" points="([^"]*)"', drawing))
    places = {kind: [tuple(map(float, p.split(","))) for p in text.split()] for kind, text in lines.items()}
    assert len(places["line"]) == 2 and len(places["second"]) == 3
    (x0, half), (x2, full) = places["line"]
    assert (x0, x2) == (places["second"][0][0], places["second"][2][0])
    assert half == places["second"][2][1] and full < half < places["second"][1][1] < places["second"][0][1]
    assert all(band in drawing for band in bands) and "50% at 0–2 px, 100% at over 5 px" in drawing
