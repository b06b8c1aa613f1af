"""Fit level weights and a threshold for CAMs on one half of the val images, and score them on the other.

The fit uses ground-truth masks: pseudo masks made with these settings no longer come from image-level labels alone.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset
from torch import nn
from tqdm import tqdm

from ..data.classes import Classes
from ..errors import BundleError
from ..files.atomic import write_json
from ..pseudo_masks.cam import CAMSegmenter
from .metrics import confusion_matrix, mean_iou

logger = logging.getLogger(__name__)


class RecordedCAMs(nn.Module):
    """A classifier whose CAMs are computed once and then replayed in the same order.

    Args:
        classifier: has ``cams(image)`` like ``CAMClassifier``.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self._record: list[Any] = []
        self._position = 0

    def rewind(self) -> None:
        """Start again from the first image."""
        self._position = 0

    def cams(self, image: torch.Tensor) -> Any:
        """The CAMs and probabilities of ``image``, or those recorded at this position."""
        if self._position == len(self._record):
            self._record.append(self.classifier.cams(image))
        self._position += 1
        return self._record[self._position - 1]


def weight_grid(steps: int) -> Iterator[tuple[float, float, float]]:
    """All weights of three levels that are multiples of ``1 / steps`` and sum to 1."""
    for shallow, middle in itertools.product(range(steps + 1), repeat=2):
        if shallow + middle <= steps:
            yield shallow / steps, middle / steps, (steps - shallow - middle) / steps


class _Half:
    """Images with their CAMs recorded, to be scored again and again.

    Args:
        items: images and masks.
        network: the CAMs as a segmentation network.
        classes: the data set's classes.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], network: CAMSegmenter, classes: Classes) -> None:
        self.items = items
        self.network = network
        self.recorded = RecordedCAMs(network.classifier)
        self.values = torch.tensor(classes.segmenter_values, dtype=torch.uint8, device=items[0]["label"].device)
        self.classes = classes

    def mean_iou(self, gated: bool = True) -> float:
        """Mean IoU with the network's current settings; without the gate, all classes compete everywhere."""
        self.network.classifier = self.recorded
        self.recorded.rewind()
        label = None if gated else torch.ones(1, len(self.values), device=self.values.device)
        confusion = 0
        for item in self.items:
            scores = self.network(item["image"][None] / 255, label)
            pred = self.values[scores.max(dim=1).indices]
            confusion = confusion + confusion_matrix(pred, item["label"], len(self.classes.value_names))
        return mean_iou(confusion, exclude_background=self.classes.background and len(self.classes) > 1)

    def fit(self, name: str, candidates: Sequence[Any], gated: bool) -> None:
        """Set the network's attribute ``name`` to the best of its current value and ``candidates``."""
        best, best_score = getattr(self.network, name), self.mean_iou(gated)
        for candidate in tqdm(candidates, desc=name, disable=None):
            setattr(self.network, name, candidate)
            if (score := self.mean_iou(gated)) > best_score:
                best, best_score = candidate, score
        setattr(self.network, name, best)


@torch.inference_mode()
def fit_cams(
    network: CAMSegmenter,
    dataset: Dataset,
    classes: Classes,
    path: str | Path,
    device: str | torch.device = "cpu",
    steps: int = 5,
    thresholds: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
) -> dict[str, Any]:
    """Fit ``level_weights`` without a gate, then the gate's ``threshold``, by mean IoU on every second image.

    Args:
        network: the CAMs as a segmentation network, with a trained classifier; gets the fitted values.
        dataset: images (3, H, W) uint8 with masks ``label``, (1, H, W), in our values.
        classes: the data set's classes; background is not scored (protocol ``published``).
        path: JSON file of the result.
        device: where the network runs.
        steps: level weights are multiples of 1 / ``steps``.
        thresholds: thresholds to try.

    Returns:
        ``level_weights`` and ``threshold``, as fitted; ``before`` and ``after``, each the mean IoU on the images used
        for fitting (``fitted``) and on the others (``held_out``).

    Raises:
        BundleError: if there are fewer than two images.
    """
    if len(dataset) < 2:
        raise BundleError(
            f"val must have at least two images, one half to fit on and one to score, got {len(dataset)}."
        )
    network.to(device).eval()
    items = [{key: item[key].to(device) for key in ("image", "label")} for item in dataset]
    fitted, held_out = (_Half(half, network, classes) for half in (items[::2], items[1::2]))
    before = {"fitted": round(fitted.mean_iou(), 4), "held_out": round(held_out.mean_iou(), 4)}
    fitted.fit("level_weights", list(weight_grid(steps)), gated=False)
    fitted.fit("threshold", thresholds, gated=True)
    result = {
        "level_weights": list(network.level_weights),
        "threshold": network.threshold,
        "before": before,
        "after": {"fitted": round(fitted.mean_iou(), 4), "held_out": round(held_out.mean_iou(), 4)},
    }
    write_json(path, result)
    logger.info(f"Fitted on every second val image: {result}; saved to {path}.")
    return result
