"""A run's ``report.html``: what was set, how it learnt, what it scores and what that looks like, in one file.

python -m scripts report RUN --dataset-dir WHERE_THE_DATA_ARE_NOW
"""

import csv
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from ignite import distributed
from monai.bundle import ConfigParser

from ...data.classes import KEYS, Classes
from ...errors import BundleError
from ...files.atomic import atomic_path
from ...files.foreign_files import read_json
from ...files.pictures import panels, write_png
from ...runs.old_names import read_configs
from ...runs.run_folder import read_record
from ...runs.stages import stage_parser
from .curves import chart, read_curves
from .examples import ValExamples, best_median_worst, legend, picture_tag

logger = logging.getLogger(__name__)

STAGES = {"source": "before the adaptation", "classifier": "classifier", "segmenter": "segmentation network"}
PROTOCOLS = "published: true background leaves the score. with_background: background is a class like any other."
TRAINING_SETTINGS = {  # by their key in the section of a training
    "epochs": "epochs",
    "batch_size": "batch size",
    "accumulation_steps": "batches per step",
    "lr": "learning rate",
}
OTHER_SETTINGS = {
    "level_weights": "level weights of the CAMs",
    "threshold": "threshold of the CAMs",
    "seed": "seed",
    "precision": "precision",
    "amp": "automatic mixed precision",
    "source_dir": "goes on from",
    "num_images": "images adapted on",
    "freeze_encoder": "encoder frozen",
    "dataset_dir": "data set",
    "label_file": "label file",
}


@distributed.one_rank_only()
def write_report(output_dir: str | Path, dataset_dir: str | Path) -> Path:
    """Write ``report.html`` from the files of a run folder; a sentence stands for what is not there.

    Args:
        output_dir: the run folder.
        dataset_dir: the data set's folder, for the pictures.

    Returns:
        The file's path.

    Raises:
        BundleError: if ``output_dir`` is not a run's.
    """
    output_dir = Path(output_dir).resolve()
    path, config_file = output_dir / "report.html", output_dir / "configs" / "train.json"
    if not config_file.is_file():
        raise BundleError(f"`output_dir` must be the folder of a run, got {output_dir}; it has no configs/train.json.")
    parser, record = read_configs(config_file), read_record(output_dir)["stages"]
    scores = read_scores(output_dir / "scores")
    title = " · ".join(str(parser.get(key)) for key in ("dataset_name", "method_name", "preset"))
    sections = {
        "Best, median and worst val image": _examples(output_dir, Path(dataset_dir), parser),
        "Scores": _scores(scores),
        "Learning curves": _curves(output_dir / "tensorboard"),
        "Stages": _stages(record),
        "Settings and versions": _settings(parser, record) + _whole(read_json(config_file)),
    }
    title += " · adapted" if "num_images" in parser else ""
    body = _headline(title, record, scores)
    body += "".join(f"<section><h2>{name}</h2>{content}</section>" for name, content in sections.items())
    with atomic_path(path) as temporary:
        temporary.write_text(_page(title, body), encoding="utf-8")
    logger.info(f"The report is {path}.")
    return path


def report(run_folder: str, dataset_dir: str | None = None) -> Path:
    """Write a run's ``report.html`` again.

    Args:
        run_folder: ``output_dir`` of the run.
        dataset_dir: the data set's folder, if it is not where the run found it.
    """
    run_folder = Path(str(run_folder))  # Fire reads a folder named 2024 as a number
    config = run_folder / "configs" / "train.json"
    if dataset_dir is None and config.is_file():
        dataset_dir = read_json(config)["dataset_dir"]
    return write_report(run_folder, str(dataset_dir))


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """What was scored, with ``stage`` and ``split``: val first, the stages in the order of their work."""
    found = []
    for path in folder.glob("*_*.json"):
        stage, _, split = path.stem.rpartition("_")
        found.append(read_json(path) | {"stage": stage, "split": split})
    order = [*STAGES, *sorted({item["stage"] for item in found} - set(STAGES))]
    found.sort(key=lambda item: (item["split"] != "val", item["split"], order.index(item["stage"])))
    adapted = any(item["stage"] == "source" for item in found)
    names = STAGES | ({"segmenter": "after the adaptation"} if adapted else {})
    return [item | {"stage": names.get(item["stage"], item["stage"])} for item in found]


def _page(title: str, body: str) -> str:
    """The whole document; by its policy a browser neither loads nor runs anything."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>{style}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _sentence(text: str) -> str:
    return f'<p class="quiet">{escape(text)}</p>'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _time(text: str) -> str:
    return text[:16].replace("T", " ")


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], kind: str, caption: str = "") -> str:
    """A table of texts; the first of each row is its header, and a pair is a text and the colour behind it."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = ""
    for name, *cells in rows:
        pairs = [cell if isinstance(cell, tuple) else (cell, "") for cell in cells]
        data = "".join(
            f"<td{f' style=background:{colour}' * bool(colour)}>{escape(str(text))}</td>" for text, colour in pairs
        )
        body += f'<tr><th scope="row">{escape(name)}</th>{data}</tr>\n'
    caption = f"<caption>{escape(caption)}</caption>" * bool(caption)
    return f"<table class={quoteattr(kind)}>{caption}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>\n"


def _headline(title: str, record: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> str:
    """Title, date and the few numbers that matter most."""
    dates = [stage["completed"] for stage in record.values()]
    date = f"Completed {_time(max(dates))} UTC." if dates else "No stage is complete."
    cards = [
        (_number(item["protocols"]["published"]["mean_iou"]), f"mean IoU on {item['split']}, {item['stage']}")
        for item in scores
    ]
    cards.append((f"{sum(stage['minutes'] for stage in record.values()):.1f}", "minutes in all"))
    items = "".join(f"<li><strong>{number}</strong><span>{escape(text)}</span></li>" for number, text in cards)
    return f'<h1>{escape(title)}</h1><p class="quiet">{date}</p><ul class="cards">{items}</ul>'


def _stages(record: Mapping[str, Any]) -> str:
    """When each stage was completed, how long it took and by which code."""
    rows = [
        [name, _time(stage["completed"]), f"{stage['minutes']:.2f}", stage["seed"], stage["revision"] or "–"]
        for name, stage in record.items()
    ]
    header = ["stage", "completed (UTC)", "minutes", "seed", "revision of the code"]
    return _table(header, rows, "words") if rows else _sentence("No stage is complete.")


def _curves(folder: Path) -> str:
    """Losses by step, scores by epoch."""
    charts = ""
    for name, points in sorted(read_curves(folder).items()):
        loss, (best_at, best) = name.endswith("_loss"), max(points, key=lambda point: point[1])
        drawing = chart(name, points, "step" if loss else "epoch", smoothed=loss)
        end = f"{points[-1][1]:.3g} at the end" if loss else f"best {_number(best)}, epoch {best_at:g}"
        charts += f"<figure><figcaption><strong>{escape(name)}</strong>, {end}</figcaption>{drawing}</figure>\n"
    return f'<div class="charts">{charts}</div>' if charts else _sentence("No learning curves were recorded.")


def _scores(scores: Sequence[Mapping[str, Any]]) -> str:
    """The classes and the confusions of all that was scored, under its protocols."""
    content = ""
    for item in scores:
        content += f"<h3>{escape(item['split'])}, {escape(item['stage'])}: {item['images']} images</h3>\n"
        for protocol, result in item["protocols"].items():
            content += f'<div class="row">{_class_table(result, protocol)}{_confusion_table(result)}</div>\n'
    if not content:
        return _sentence("Nothing was scored: no network is trained, or the data have no masks to score on.")
    return _sentence(PROTOCOLS) * any(len(item["protocols"]) > 1 for item in scores) + content


def _class_table(result: Mapping[str, Any], caption: str) -> str:
    """The scores of each class, and their means."""
    rows = [
        [name, *(_number(scores[key]) for key in ("iou", "dice", "recall")), f"{scores['pixels']:,.0f}"]
        for name, scores in result["classes"].items()
    ]
    pixels = sum(scores["pixels"] for scores in result["classes"].values())
    means = [_number(result[key]) for key in ("mean_iou", "mean_dice", "mean_accuracy")]
    header = ["class", "IoU", "Dice", "recall", "pixels"]
    return _table(header, [*rows, ["mean", *means, f"{pixels:,.0f}"]], "classes", caption)


def _confusion_table(result: Mapping[str, Any]) -> str:
    """The shares of the true pixels of each class, right ones on blue and wrong ones on orange."""
    classes, confusion = list(result["classes"]), result["confusion"]
    first = len(confusion) - len(classes)  # 1 where true background is not scored
    rows = []
    for true, (name, counts) in enumerate(zip(classes, confusion[first:], strict=False), start=first):
        shares = [count / sum(counts) if any(counts) else None for count in counts]
        rows.append([name, *((_number(share), _shade(share or 0, k == true)) for k, share in enumerate(shares))])
    header = ["truth ↓  prediction →", *["background"] * first, *classes]
    return _table(header, rows, "confusion", "where the true pixels of each class went, as shares")


def _shade(share: float, right: bool) -> str:
    """From white to a blue or an orange on which black can be read."""
    full = (120, 168, 220) if right else (244, 165, 105)
    return f"rgb({','.join(str(round(255 - share * (255 - channel))) for channel in full)})"


def _examples(output_dir: Path, dataset_dir: Path, parser: ConfigParser) -> str:
    """Three val images, chosen by the score of the segmentation network; also in ``pictures/examples.png``."""
    table = output_dir / "scores" / "segmenter_val_images.csv"
    if not table.is_file():
        return _sentence("The segmentation network was not scored on val, so there is no image to choose.")
    with open(table, newline="", encoding="utf-8") as file:
        cells = {row["image"]: row["mean_iou_published"] for row in csv.DictReader(file)}
    chosen = best_median_worst({name: float(cell) for name, cell in cells.items() if cell})
    classes = Classes(**{key: parser.get_parsed_content(key) for key in KEYS})
    figures, rows = "", []
    try:
        examples = ValExamples(output_dir, dataset_dir, classes)
        for place, name in chosen.items():
            rows.append(examples.row(name))
            pictures = "".join(
                f"<div>{picture_tag(picture, f'{text} of {name}')}{text}</div>\n" for text, picture in rows[-1].items()
            )
            caption = f"{place}: <strong>{escape(name)}</strong>, mean IoU {_number(float(cells[name]))}"
            figures += f'<figure class="example"><figcaption>{caption}</figcaption>'
            figures += f'<div class="pictures">{pictures}</div></figure>\n'
        if rows:
            common = [text for text in rows[0] if all(text in row for row in rows)]
            sheet = panels([[row[text] for text in common] for row in rows], common, classes.legend)
            write_png(output_dir / "pictures" / "examples.png", sheet)
    except (OSError, ValueError) as error:  # the data were moved or changed since
        figures += _sentence(f"No pictures: {error}")
    if chosen and not (output_dir / "predictions" / "segmenter_val").is_dir():
        figures += _sentence("The folder predictions is not there; scoring the network again writes it.")
    return legend(classes) + (figures or _sentence("No val image has a score."))


def _settings(parser: ConfigParser, record: Mapping[str, Any]) -> str:
    """The settings that matter most, and the packages' versions."""
    trainings = ["classifier", "segmenter"] if "source_dir" not in parser else ["segmenter"]
    names = ["network", "loss", "optimiser", *TRAINING_SETTINGS.values()]
    columns = [_training_settings(stage_parser(parser.get(), f"train_{network}"), network) for network in trainings]
    table = _table(
        ["training", *(STAGES[network] for network in trainings)], zip(names, *columns, strict=True), "words"
    )
    values = [(name, parser.get_parsed_content(key, default=None)) for key, name in OTHER_SETTINGS.items()]
    others = _table(["other settings", "value"], [pair for pair in values if pair[1] is not None], "words")
    return f'{table}<div class="columns">{others}{_versions(record)}</div>'


def _whole(config: Mapping[str, Any]) -> str:
    """The config as its file has it, to unfold."""
    text = escape(json.dumps(config, indent=4, ensure_ascii=False))
    return f"<details><summary>The whole config</summary><pre>{text}</pre></details>"


def _training_settings(parser: ConfigParser, network: str) -> list[Any]:
    """What a network is, how it is trained, and the ``TRAINING_SETTINGS``."""
    parts = [_parts(parser, f"@{network}_def"), _parts(parser, f"@{network}_loss")]
    parts.append(_parts(parser, "@train#optimizer")[:1])
    values = [parser.get_parsed_content(f"train#{key}", default="–") for key in TRAINING_SETTINGS]
    return [" · ".join(names) for names in parts] + values


def _parts(parser: ConfigParser, value: Any) -> list[str]:
    """The classes that make up an object of the config, outermost first, with the names of the models they take."""
    while isinstance(value, str) and value.startswith("@"):
        value = parser.get(value[1:])
    if not isinstance(value, Mapping):
        return []
    own = [str(value["_target_"]).rpartition(".")[2]] if "_target_" in value else []
    models = [str(value[key]) for key in ("name", "encoder_name") if key in value]
    return [" ".join(own + models)] * bool(own) + [part for v in value.values() for part in _parts(parser, v)]


def _versions(record: Mapping[str, Any]) -> str:
    """The version of each package; all of them if the stages' differ."""
    pairs = dict.fromkeys(pair for stage in record.values() for pair in stage["versions"].items())
    packages = dict.fromkeys(package for package, _ in pairs)
    rows = [(package, ", ".join(version for name, version in pairs if name == package)) for package in packages]
    return _table(["package", "version"], rows, "words") if rows else ""
