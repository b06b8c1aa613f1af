"""Pictures of single val images for a run's report: the image, heat maps, predictions, and the ground truth."""

import base64
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...data.classes import Classes
from ...data.items import mask_name, split_items
from ...data.mask_values import load_mask
from ...files.foreign_files import open_image
from ...files.pictures import heat_map, overlay
from ...runs.run_folder import RunFolder

LONGEST_SIDE_PX = 640
MARGIN_PX, LEAST_SIDE_PX = 24, 96  # of what is shown of a region
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
    """The val images of a run, each as a row of pictures: image, heat maps, predictions, ground truth, if they exist.

    Args:
        output_dir: the run folder, with ``predictions``.
        dataset_dir: the data set's folder.
        classes: the data set's classes.
        cam_segmenter: maps an image (1, 3, H, W) in [0, 1] to the CAMs (1, K, H, W) in [0, 1] for the heat maps;
            ``None`` for none.

    Raises:
        OSError, BundleError: if the data set is missing or damaged.
    """

    def __init__(
        self,
        output_dir: str | Path,
        dataset_dir: str | Path,
        classes: Classes,
        cam_segmenter: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.prediction_dir = Path(output_dir) / "predictions"
        self.predictions = dict(PREDICTIONS)
        if not RunFolder(output_dir).has_second_stage:  # the prediction is the same
            del self.predictions["classifier_val"]
        self.items = {item["name"]: item for item in split_items(dataset_dir, "val")}
        self.table = classes.lookup_table()
        self.palette = classes.palette
        self.classes, self.cam_segmenter = classes, cam_segmenter
        if not self.items:
            raise FileNotFoundError(
                f"{Path(dataset_dir) / 'val'} does not exist; pass the data's current folder as --dataset-dir."
            )

    def row(self, name: str) -> dict[str, Image.Image]:
        """The pictures of the image ``name``, by caption; heat maps of the classes that a mask shows.

        Raises:
            OSError, BundleError: if the image or one of its masks is missing, damaged or of the wrong size.
        """
        image, masks = self._pixels(name)
        return (
            {"image": Image.fromarray(image)}
            | self._heat_maps(image, np.unique([*masks.values()]))
            | {text: overlay(image, mask, self.palette) for text, mask in masks.items()}
        )

    def _pixels(self, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """An image, (H, W, 3) uint8, and its masks, (H, W), by caption."""
        if name not in self.items:
            raise FileNotFoundError(f"{name} is no longer among the val images.")
        with open_image(self.items[name]["image"]) as picture:
            image = np.asarray(picture.convert("RGB"))
        masks = {
            text: load_mask(path, np.arange(len(self.palette)), image.shape[:2])
            for folder, text in self.predictions.items()
            if (path := self.prediction_dir / folder / mask_name(name)).is_file()
        }
        masks["truth"] = load_mask(self.items[name]["label"], self.table, image.shape[:2])
        return image, masks

    def region(self, region: Mapping[str, Any]) -> dict[str, Image.Image]:
        """A wrong region of ``BorderScores`` with some surroundings, by caption; raises as ``row`` does."""
        image, masks = self._pixels(region["image"])
        place = tuple(
            _surroundings(*region[side], length)
            for side, length in zip(("rows", "columns"), image.shape[:2], strict=True)
        )
        image = np.ascontiguousarray(image[place])
        return {"image": Image.fromarray(image)} | {
            text: overlay(image, masks[text][place], self.palette) for text in ("prediction", "truth") if text in masks
        }

    @torch.inference_mode()
    def _heat_maps(self, image: np.ndarray, values: np.ndarray) -> dict[str, Image.Image]:
        """The classifier's CAM of each class of ``values``, over ``image``, (H, W, 3) uint8."""
        if self.cam_segmenter is None:
            return {}
        cams = self.cam_segmenter(torch.tensor(image).permute(2, 0, 1)[None] / 255)[0].float().numpy()
        channels = zip(self.classes.segmenter_values, self.classes.channel_names, cams, strict=True)
        return {f"heat map of {name}": heat_map(image, cam) for value, name, cam in channels if value in values}


def _surroundings(start: int, stop: int, length: int) -> slice:
    """A range with ``MARGIN_PX`` on both sides, at least ``LEAST_SIDE_PX`` long, as far as ``length`` allows."""
    more = max(2 * MARGIN_PX, LEAST_SIDE_PX - (stop - start))
    begin = max(0, min(start - more // 2, length - (stop - start + more)))
    return slice(begin, min(length, begin + stop - start + more))


def embedded(picture: Image.Image) -> dict[str, Any]:
    """``src``, ``width`` and ``height`` of an HTML image with embedded data, at most 640 px per side."""
    picture, buffer = picture.copy(), BytesIO()
    picture.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX))
    picture.save(buffer, format="JPEG", quality=90)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"src": f"data:image/jpeg;base64,{data}", "width": picture.width, "height": picture.height}
