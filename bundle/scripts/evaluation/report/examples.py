"""Pictures of single val images for a run's report: the image, each stage's prediction, and the ground truth."""

import base64
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data.classes import Classes
from ...data.items import mask_name, split_items
from ...data.mask_values import load_mask
from ...files.foreign_files import open_image
from ...files.pictures import overlay

LONGEST_SIDE_PX = 320
PREDICTIONS = {  # caption by folder of ``predictions``
    "classifier_val": "pseudo mask",
    "source_val": "before the adaptation",
    "segmenter_val": "prediction",
}


def best_median_worst(scores: Mapping[str, float]) -> dict[str, str]:
    """The names with the best, median and worst of ``scores``, none twice; the lower median for an even number."""
    ranked = sorted(scores, key=lambda name: (-scores[name], name))
    if len(ranked) < 3:
        return dict(zip(("best", "worst"), ranked, strict=False))
    return {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}


class ValExamples:
    """The val images of a run, each as a row of pictures: image, pseudo mask, prediction, ground truth, if they exist.

    Args:
        output_dir: the run folder, with ``predictions``.
        dataset_dir: the data set's folder.
        classes: the data set's classes.

    Raises:
        OSError, BundleError: if the data set is missing or damaged.
    """

    def __init__(self, output_dir: str | Path, dataset_dir: str | Path, classes: Classes) -> None:
        self.prediction_dir = Path(output_dir) / "predictions"
        self.items = {item["name"]: item for item in split_items(dataset_dir, "val")}
        self.table = classes.lookup_table()
        self.palette = classes.palette
        if not self.items:
            raise FileNotFoundError(
                f"{Path(dataset_dir) / 'val'} does not exist; pass the data's current folder as --dataset-dir."
            )

    def row(self, name: str) -> dict[str, Image.Image]:
        """The pictures of the image ``name``, by caption.

        Raises:
            OSError, BundleError: if the image or one of its masks is missing, damaged or of the wrong size.
        """
        if name not in self.items:
            raise FileNotFoundError(f"{name} is no longer among the val images.")
        with open_image(self.items[name]["image"]) as picture:
            image = np.asarray(picture.convert("RGB"))
        masks = {
            text: load_mask(path, np.arange(len(self.palette)), image.shape[:2])
            for folder, text in PREDICTIONS.items()
            if (path := self.prediction_dir / folder / mask_name(name)).is_file()
        }
        masks["truth"] = load_mask(self.items[name]["label"], self.table, image.shape[:2])
        return {"image": Image.fromarray(image)} | {
            text: overlay(image, mask, self.palette) for text, mask in masks.items()
        }


def embedded(picture: Image.Image) -> dict[str, Any]:
    """``src``, ``width`` and ``height`` of an HTML image with embedded data, at most 320 px per side."""
    picture, buffer = picture.copy(), BytesIO()
    picture.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX))
    picture.save(buffer, format="JPEG", quality=90)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"src": f"data:image/jpeg;base64,{data}", "width": picture.width, "height": picture.height}
