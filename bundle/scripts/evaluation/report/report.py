"""A run's ``report.html``: scores, example images, labels, learning curves and settings on one page.

python -m scripts report RUN --dataset-dir WHERE_THE_DATA_ARE_NOW
"""

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite import distributed
from monai.bundle import ConfigParser
from PIL import Image

from ...data.classes import KEYS, Classes
from ...errors import BundleError
from ...files.atomic import NAMES, write_text
from ...files.foreign_files import read_json
from ...files.pictures import heat_legend, panels, write_png
from ...runs.old_names import read_configs
from ...runs.progress import duration
from ...runs.run_folder import RunFolder, read_record
from ...runs.stages import stage_parser
from .border_scores import border_scores
from .curves import chart, read_curves
from .examples import ValExamples, best_median_worst, embedded
from .labels import label_counts
from .links import links
from .templates import render

logger = logging.getLogger(__name__)

STAGES = {"source": "before the adaptation", "classifier": "classifier", "segmenter": "segmentation network"}
MEASURES = {  # by key in the scores: a name, and what it means
    "iou": ("overlap with the truth (IoU)", "pixels shared by prediction and truth, out of those in either; 1 is best"),
    "dice": ("Dice", "overlap as twice the shared pixels, out of the sum of both; never less than the IoU"),
    "precision": ("right where predicted (precision)", "the share of the predicted pixels that are the class in truth"),
    "recall": ("found (recall)", "the share of the true pixels that are predicted as the class"),
}
PROTOCOLS = {
    "published": "true background not scored (protocol published)",
    "with_background": "background scored like a class (protocol with_background)",
}
TRAINING_SETTINGS = {  # by key in a training's section
    "epochs": "epochs",
    "batch_size": "batch size",
    "accumulation_steps": "batches per step",
    "lr": "learning rate",
}
CAM_SETTINGS = {
    "cam_segmenter#level_weights": "level weights of the heat maps (CAMs)",
    "cam_segmenter#threshold": "probability above which a class is present",
}
CAM_STAGES = {"train_classifier", "generate_pseudo_masks"}
OTHER_SETTINGS = {
    "seed": "seed",
    "precision": "precision",
    "amp": "automatic mixed precision",
    "source_dir": "started from",
    "num_images": "images adapted on",
    "freeze_encoder": "encoder frozen",
    "dataset_dir": "data set",
    "label_file": "label file",
}


@distributed.one_rank_only()
def write_report(output_dir: str | Path, dataset_dir: str | Path) -> Path:
    """Write ``report.html`` from the files of a run folder; missing parts are replaced by a sentence, or left out.

    Args:
        output_dir: the run folder.
        dataset_dir: the data set's folder, for the pictures and the numbers of labels.

    Returns:
        The file's path.

    Raises:
        BundleError: if ``output_dir`` is not a run folder.
    """
    output_dir = Path(output_dir).resolve()
    path, config_file = output_dir / "report.html", output_dir / "configs" / "train.json"
    if not config_file.is_file():
        raise BundleError(f"`output_dir` must be the folder of a run, got {output_dir}; it has no configs/train.json.")
    parser, record = read_configs(config_file), read_record(output_dir)["stages"]
    parser.update({"bundle_root": str(output_dir), "dataset_dir": str(dataset_dir), "device": "$torch.device('cpu')"})
    keys = [key for key in (*KEYS, "ignore_value") if key in parser]
    classes = Classes(**{key: parser.get_parsed_content(key) for key in keys})
    adapted = "num_images" in parser
    second_stage = RunFolder(output_dir).has_second_stage
    scores = read_scores(output_dir / "scores", second_stage)
    borders = border_scores(scores)
    title = " · ".join(str(parser.get(key)) for key in ("dataset_name", "method_name", "preset"))
    page = render(
        "report.jinja",
        style="report.css",
        title=title + (" · adapted" if adapted else ""),
        stages=record,
        clock=lambda minutes: duration(60 * minutes),
        **_examples(output_dir, Path(dataset_dir), classes, parser, borders),
        second_stage=second_stage,
        borders=borders,
        heat_legend=heat_legend(5),
        labels=label_counts(dataset_dir, classes, parser.get_parsed_content("label_file", default=None)),
        adapted=adapted,
        scores=scores,
        measures=MEASURES,
        protocols=PROTOCOLS,
        class_rows=_class_rows,
        confusion_table=_confusion_table,
        curves=_curves(output_dir / "tensorboard"),
        **_settings(parser, OTHER_SETTINGS | (CAM_SETTINGS if CAM_STAGES & record.keys() else {}), second_stage),
        versions=_versions(record),
        links=links(output_dir),
        config=json.dumps(read_json(config_file), indent=4, ensure_ascii=False),
    )
    write_text(path, page)
    logger.info(f"Wrote the report to {path}.")
    return path


def report(run_folder: str, dataset_dir: str | None = None) -> Path:
    """Regenerate a run's ``report.html``.

    Args:
        run_folder: ``output_dir`` of the run.
        dataset_dir: the data set's folder, if it has moved since the run.
    """
    run_folder = Path(run_folder)
    config = run_folder / "configs" / "train.json"
    if dataset_dir is None and config.is_file():
        dataset_dir = read_json(config)["dataset_dir"]
    return write_report(run_folder, str(dataset_dir))


def read_scores(folder: Path, second_stage: bool = True) -> list[dict[str, Any]]:
    """The scores of a run, with ``stage`` and ``split``: val first, stages in the order in which they run.

    Args:
        folder: the run's ``scores``.
        second_stage: whether the run has one. If not, the CAMs are the network, and are there once.
    """
    found = []
    for split in ("val", "test"):  # other files, such as cam_fit.json, are not scores
        for path in folder.glob(f"*_{split}.json"):
            found.append(read_json(path) | {"stage": path.stem.removesuffix(f"_{split}"), "split": split})
    order = [*STAGES, *sorted({item["stage"] for item in found} - set(STAGES))]
    found.sort(key=lambda item: (item["split"] != "val", item["split"], order.index(item["stage"])))
    adapted = any(item["stage"] == "source" for item in found)
    names = STAGES | ({"segmenter": "after the adaptation"} if adapted else {})
    if not second_stage:
        names = dict.fromkeys(("classifier", "segmenter"), "CAMs of the classifier")
        scored = {item["split"] for item in found if item["stage"] == "segmenter"}
        found = [item for item in found if item["stage"] == "segmenter" or item["split"] not in scored]
    return [item | {"stage": names.get(item["stage"], item["stage"])} for item in found]


def _curves(folder: Path) -> list[dict[str, str]]:
    """Charts of losses by step and of scores by epoch."""
    curves = []
    for name, points in sorted(read_curves(folder).items()):
        loss, (best_at, best) = name.endswith("_loss"), max(points, key=lambda point: point[1])
        end = f"{points[-1][1]:.3g} at the end" if loss else f"best {best:.3f}, epoch {best_at:g}"
        drawing = chart(name, points, "step" if loss else "epoch", smoothed=loss)
        curves.append({"name": name, "end": end, "drawing": drawing})
    return curves


def _class_rows(result: Mapping[str, Any]) -> list[tuple[str, list[float | None], float]]:
    """Each class with its ``MEASURES`` and its share of the true pixels, and at the end their means."""
    confusion = np.array(result["confusion"], dtype=float)
    first = len(confusion) - len(result["classes"])  # 1 where true background is not scored
    predicted, hits = confusion[first:].sum(axis=0)[first:], confusion.diagonal()[first:]
    precision = [hit / count if count else None for hit, count in zip(hits, predicted, strict=True)]
    pixels = sum(scores["pixels"] for scores in result["classes"].values())
    rows = []
    for (name, scores), right in zip(result["classes"].items(), precision, strict=True):
        values = scores | {"precision": right}
        rows.append((name, [values[key] for key in MEASURES], scores["pixels"] / max(1, pixels)))
    known = [value for value in precision if value is not None]
    means = {"iou": result["mean_iou"], "dice": result["mean_dice"], "recall": result["mean_accuracy"]}
    means["precision"] = sum(known) / len(known) if known else None
    return [*rows, ("mean", [means[key] for key in MEASURES], 1.0)]


def _confusion_table(result: Mapping[str, Any]) -> dict[str, Any]:
    """The confusion matrix as shares of each class's true pixels, correct ones on blue and wrong ones on orange."""
    classes, confusion = list(result["classes"]), result["confusion"]
    first = len(confusion) - len(classes)  # 1 where true background is not scored
    rows = []
    for true, (name, counts) in enumerate(zip(classes, confusion[first:], strict=False), start=first):
        shares = [count / sum(counts) if any(counts) else None for count in counts]
        rows.append((name, [(share, _shade(share or 0, k == true)) for k, share in enumerate(shares)]))
    return {"predicted": ["background"] * first + classes, "rows": rows}


def _shade(share: float, right: bool) -> str:
    """A colour between white and a blue or orange on which black text is readable."""
    full = (120, 168, 220) if right else (244, 165, 105)
    return f"rgb({','.join(str(round(255 - share * (255 - channel))) for channel in full)})"


def _examples(
    output_dir: Path, dataset_dir: Path, classes: Classes, parser: ConfigParser, borders: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Pictures of val images: ``examples``, three of them chosen by score, and ``worst``, the largest wrong regions.

    The examples are also written to ``pictures/examples.png``.
    """
    table = output_dir / "scores" / "segmenter_val_images.csv"
    if not table.is_file():
        sentence = "The segmentation network was not scored on val, so there are no images to choose from."
        return {"examples": {"legend": [], "heat_maps": False, "figures": [], "sentences": [sentence]}, "worst": []}
    with open(table, newline="", encoding="utf-8-sig", errors=NAMES) as file:
        cells = {row["image"]: row["mean_iou_published"] for row in csv.DictReader(file)}
    scores = {name: float(cell) for name, cell in cells.items() if cell}
    chosen = best_median_worst(scores)
    figures, worst, rows, sentences = [], [], [], []
    trained = (output_dir / "models" / "classifier" / "model.pt").is_file()
    try:
        cams = parser.get_parsed_content("cam_segmenter").eval() if trained and chosen else None
        examples = ValExamples(output_dir, dataset_dir, classes, cams)
        for place, name in chosen.items():
            rows.append(examples.row(name))
            figures.append({"place": place, "name": name, "score": scores[name], "pictures": _embedded(rows[-1])})
        if rows:
            common = [text for text in rows[0] if all(text in row for row in rows)]
            sheet = panels([[row[text] for text in common] for row in rows], common, classes.legend)
            write_png(output_dir / "pictures" / "examples.png", sheet)
        for region in (region for item in borders if item["split"] == "val" for region in item["worst"]):
            worst.append({"name": region["image"], "pictures": _embedded(examples.region(region)), **region})
    except (OSError, ValueError) as error:  # the data were moved or changed since
        sentences.append(f"{'Not all' if figures else 'No'} pictures: {error}")
    if not chosen and not sentences:
        sentences.append("No val image has a score.")
    if chosen and not (output_dir / "predictions" / "segmenter_val").is_dir():
        sentences.append("The folder `predictions` is missing; score the network again to create it.")
    found = {"legend": classes.legend, "heat_maps": trained, "figures": figures, "sentences": sentences}
    return {"examples": found, "worst": worst}


def _embedded(pictures: Mapping[str, Image.Image]) -> dict[str, dict[str, Any]]:
    return {text: embedded(picture) for text, picture in pictures.items()}


def _settings(parser: ConfigParser, others: Mapping[str, str], second_stage: bool) -> dict[str, Any]:
    """The most important settings: those of the trainings, and ``others``, names by key."""
    trainings = ["classifier"] if "source_dir" not in parser else []
    trainings += ["segmenter"] if second_stage else []
    names = ["network", "loss", "optimiser", *TRAINING_SETTINGS.values()]
    columns = [_training_settings(stage_parser(parser.get(), f"train_{network}"), network) for network in trainings]
    values = [(name, parser.get_parsed_content(key, default=None)) for key, name in others.items()]
    return {
        "trainings": [STAGES[network] for network in trainings],
        "training_settings": list(zip(names, *columns, strict=True)),
        "other_settings": [pair for pair in values if pair[1] is not None],
    }


def _training_settings(parser: ConfigParser, network: str) -> list[Any]:
    """A network's definition, loss and optimiser, and its ``TRAINING_SETTINGS``."""
    parts = [_parts(parser, f"@{network}_def"), _parts(parser, f"@{network}_loss")]
    parts.append(_parts(parser, "@train#optimizer")[:1])
    values = [parser.get_parsed_content(f"train#{key}", default="–") for key in TRAINING_SETTINGS]
    return [" · ".join(names) for names in parts] + values


def _parts(parser: ConfigParser, value: Any) -> list[str]:
    """The classes that make up an object of the config, outermost first, with the names of the models they use."""
    while isinstance(value, str) and value.startswith("@"):
        value = parser.get(value[1:])
    if not isinstance(value, Mapping):
        return []
    own = [str(value["_target_"]).rpartition(".")[2]] if "_target_" in value else []
    models = [str(value[key]) for key in ("name", "encoder_name") if key in value]
    return [" ".join(own + models)] * bool(own) + [part for v in value.values() for part in _parts(parser, v)]


def _versions(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The version of each package, or all versions if they differ between stages."""
    pairs = dict.fromkeys(pair for stage in record.values() for pair in stage["versions"].items())
    packages = dict.fromkeys(package for package, _ in pairs)
    return [(package, ", ".join(version for name, version in pairs if name == package)) for package in packages]
