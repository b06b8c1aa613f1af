"""Score a network on the splits that have masks: JSON, tables, confusion matrices, predictions and pictures."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite import distributed
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from ..data.classes import Classes
from ..data.items import mask_name
from ..files.atomic import write_csv, write_json
from ..files.pictures import (
    confusion_picture,
    heat_legend,
    heat_map,
    overlay,
    panels,
    uint8_image,
    write_mask,
    write_png,
)
from ..runs.background_work import BackgroundWork
from ..runs.progress import show_progress
from .borders import BorderScores
from .metrics import confusion_matrix, summary

logger = logging.getLogger(__name__)


class ScoreHandler:
    """Write an evaluator's predictions, collect their confusion matrices, and write scores and pictures at the end.

    Items of the evaluator's output have ``pred`` and ``label``, tissue masks (1, H, W); ``pred_with_background``, the
    prediction with white pixels set to background; ``image``, (3, H, W) in [0, 1]; and ``scores``, (K, H, W).

    Args:
        output_dir: files go to its folders ``scores``, ``predictions``, ``pictures`` and ``tensorboard``.
        title: stage and split that are scored, for instance ``"segmenter_val"``; used in file names.
        classes: names, values and colours. Without background, the two protocols are the same.
        picture_names: file names of the images shown on the picture sheet; ``None`` for the first ``num_pictures``.
        num_pictures: number of rows of the sheet.
        activation: maps ``scores`` to [0, 1] for the heat maps; ``None`` if they already are.
        mpp: micrometres per pixel of the images; ``None`` if unknown.
    """

    def __init__(
        self,
        output_dir: str | Path,
        title: str,
        classes: Classes,
        picture_names: Sequence[str] | None = None,
        num_pictures: int = 6,
        activation: Callable[[torch.Tensor], torch.Tensor] | None = None,
        mpp: float | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.title = title
        self.prediction_dir = self.output_dir / "predictions" / title
        self.classes = classes
        self.names, self.palette = classes.value_names, classes.palette
        # prediction, and whether background is excluded from the score
        self.protocols = {"published": ("pred", classes.background)}
        if classes.background:
            self.protocols["with_background"] = ("pred_with_background", False)
        self.picture_names = picture_names
        self.num_pictures = num_pictures if picture_names is None else len(picture_names)
        self.activation = activation
        self.mpp = mpp
        self.result: dict[str, Any] = {}
        self._confusions: dict[str, dict[str, torch.Tensor]] = {}
        self._borders: dict[str, BorderScores] = {}
        self._rows: list[list[Any]] = []
        self._work = BackgroundWork()

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        show_progress(engine, self.title)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Discard an earlier run's results and remove its predictions."""
        self._confusions = {protocol: {} for protocol in self.protocols}
        self._borders = {
            protocol: BorderScores(self.names, exclude, self.mpp) for protocol, (_, exclude) in self.protocols.items()
        }
        self._rows = []
        if self.prediction_dir.exists():
            shutil.rmtree(self.prediction_dir)

    def add(self, engine: Engine) -> None:
        """Add the images of a batch."""
        names = [item["name"] for item in engine.state.batch]
        for name, output in zip(names, engine.state.output, strict=True):
            self._work.submit(self._write_prediction, name, output["pred_with_background"][0].numpy())
            for protocol, (pred_key, _) in self.protocols.items():
                matrix = confusion_matrix(output[pred_key], output["label"], len(self.names))
                self._confusions[protocol][name] = matrix
                pred, true = output[pred_key][0].cpu().numpy(), output["label"][0].cpu().numpy()
                self._borders[protocol].add(name, pred, true)
            chosen = self.picture_names is None or name in self.picture_names
            if chosen and len(self._rows) < self.num_pictures:
                self._rows.append(self._row(output))

    def _write_prediction(self, name: str, mask: np.ndarray) -> None:
        """Write an image's predicted tissues and background as a palette PNG."""
        write_mask(self.prediction_dir / mask_name(name), mask, self.palette)

    def _row(self, output: Mapping[str, torch.Tensor]) -> list[Any]:
        """An image's row of pictures: the image, a heat map per channel, the prediction and the ground truth."""
        image = uint8_image(output["image"])
        scores = output["scores"].float().cpu()
        scores = scores if self.activation is None else self.activation(scores)
        maps = [heat_map(image, channel) for channel in scores.numpy()]
        masks = [output[key][0].cpu().numpy().astype(np.int64) for key in ("pred_with_background", "label")]
        return [overlay(image, np.zeros_like(masks[0]), self.palette), *maps] + [
            overlay(image, mask, self.palette) for mask in masks
        ]

    def finish(self, engine: Engine) -> None:
        """Write the collected results."""
        self._work.finish()
        pooled = {protocol: sum(matrices.values()) for protocol, matrices in self._confusions.items()}
        self.result = {"title": self.title, "images": len(next(iter(self._confusions.values()))), "protocols": {}}
        for protocol, (_, exclude_background) in self.protocols.items():
            scores = summary(pooled[protocol], self.names, exclude_background)
            scores["confusion"] = pooled[protocol].tolist()
            scores["borders"] = self._borders[protocol].summary()
            self.result["protocols"][protocol] = scores
            write_png(
                self.output_dir / "scores" / f"{self.title}_{protocol}_confusion.png",
                confusion_picture(pooled[protocol][int(exclude_background) :].numpy(), self.names),
            )
        write_json(self.output_dir / "scores" / f"{self.title}.json", self.result)
        self._write_image_table()
        self._write_class_table()
        if self._rows:
            self._write_sheet()

    def _write_class_table(self) -> None:
        """Write per-class scores as CSV, and as a table in the log."""
        rows = [
            [protocol, name, *(scores[key] for key in ("iou", "dice", "recall", "pixels"))]
            for protocol, result in self.result["protocols"].items()
            for name, scores in [*result["classes"].items(), ("mean", _means(result))]
        ]
        write_csv(
            self.output_dir / "scores" / f"{self.title}.csv",
            ["protocol", "class", "iou", "dice", "recall", "pixels"],
            rows,
        )
        lines = [f"{'protocol':<16} {'class':<28} {'IoU':>7} {'Dice':>7} {'recall':>7} {'pixels':>10}"]
        for protocol, name, *numbers, pixels in rows:
            cells = " ".join("      -" if number is None else f"{number:7.4f}" for number in numbers)
            lines.append(f"{protocol:<16} {name:<28} {cells} {round(pixels):>10}")
        logger.info(f"{self.title}, {self.result['images']} images:\n" + "\n".join(lines))

    def _write_image_table(self) -> None:
        """Write the mean IoU of each image and protocol; empty where an image has nothing to score."""
        rows = []
        for name in next(iter(self._confusions.values())):
            scores = [
                summary(self._confusions[protocol][name], self.names, exclude_background)["mean_iou"]
                for protocol, (_, exclude_background) in self.protocols.items()
            ]
            rows.append([name, *scores])
        header = ["image", *(f"mean_iou_{protocol}" for protocol in self.protocols)]
        write_csv(self.output_dir / "scores" / f"{self.title}_images.csv", header, rows)

    def _write_sheet(self) -> None:
        """Write the picture sheet as PNG and to TensorBoard."""
        titles = ["image", *self.classes.channel_names, "prediction", "truth"]
        heat = [(f"heat map: {value}", colour) for value, colour in heat_legend(3)]
        sheet = panels(self._rows, titles, [*self.classes.legend, *heat])
        write_png(self.output_dir / "pictures" / f"{self.title}.png", sheet)
        with SummaryWriter(self.output_dir / "tensorboard") as writer:
            writer.add_image(self.title, np.asarray(sheet), dataformats="HWC")


def _means(result: Mapping[str, Any]) -> dict[str, Any]:
    pixels = sum(scores["pixels"] for scores in result["classes"].values())
    return {"iou": result["mean_iou"], "dice": result["mean_dice"], "recall": result["mean_accuracy"], "pixels": pixels}


@distributed.one_rank_only()
def score_splits(
    network: nn.Module,
    evaluator: Callable[..., SupervisedEvaluator],
    dataloaders: Mapping[str, DataLoader],
    handler: Callable[..., ScoreHandler],
    stage: str,
    inferer: Inferer | None = None,
    activation: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, dict[str, Any]]:
    """Score a network on each split that has images.

    Args:
        network: returns scores (B, K, H, W) for images (B, 3, H, W) in [0, 1].
        evaluator: creates the evaluator for a ``network``, ``val_data_loader`` and ``val_handlers``.
        dataloaders: the images of each split, with masks; empty splits are skipped.
        handler: creates the ``ScoreHandler`` for a ``title``.
        stage: name of the stage, the first part of the title.
        inferer: how to apply the network to an image; ``None`` for the whole image at once.
        activation: maps the network's scores (K, H, W) to [0, 1] for the pictures; ``None`` if they already are.

    Returns:
        The scores of each split, as in the JSON files; ``None`` in all processes but the first, which does the scoring.
    """
    results = {}
    for split, dataloader in dataloaders.items():
        if len(dataloader) == 0:
            logger.info(f"The data set has no {split} images with masks; {stage} is not scored on them.")
            continue
        scores = handler(title=f"{stage}_{split}", activation=activation)
        evaluator(network=network, val_data_loader=dataloader, val_handlers=[scores], inferer=inferer).run()
        results[split] = scores.result
    return results
