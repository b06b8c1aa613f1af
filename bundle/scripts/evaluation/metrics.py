"""Score label maps from a confusion matrix pooled over all pixels of a data set, under two protocols.

``published``: pixels whose ground truth is background are not scored; tissue predicted as background is a miss.
``with_background``: background, value 0, is a class like any other.
For data sets without background, where value 0 is a tissue, the two are the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.metrics import ConfusionMatrix
from ignite.metrics.metric import reinit__is_reduced

from ..errors import BundleError
from ..files.pictures import IGNORED


class MaskConfusionMatrix(ConfusionMatrix):
    """Ignite's confusion matrix for masks; theirs takes one-hot predictions and is several times slower.

    Args:
        num_values: number of mask values ``V``.
        pred_key: name of the prediction in an engine's output.
    """

    def __init__(self, num_values: int, pred_key: str = "pred") -> None:
        super().__init__(num_values)
        self.pred_key = pred_key

    @reinit__is_reduced
    def update(self, output: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Count the pixels of items with masks ``pred_key`` and ``label``, each (1, H, W) of any size."""
        for item in output:
            matrix = confusion_matrix(item[self.pred_key], item["label"], self.num_classes)
            self.confusion_matrix += matrix
        self._num_examples += len(output)


class MeanIoU(MaskConfusionMatrix):
    """Mean IoU over the pixels of all masks.

    Args:
        num_values, pred_key: as for ``MaskConfusionMatrix``.
        exclude_background: the protocol ``published``; ``False`` for ``with_background``.
    """

    def __init__(self, num_values: int, exclude_background: bool, pred_key: str = "pred") -> None:
        super().__init__(num_values, pred_key)
        self.exclude_background = exclude_background

    def compute(self) -> float:
        """The mean over the classes that occur; see ``mean_iou``."""
        return mean_iou(super().compute(), self.exclude_background)


def confusion_matrix(pred: torch.Tensor, true: torch.Tensor, num_values: int) -> torch.Tensor:
    """Pixel counts (V, V), ground truth down and prediction across, of two same-shape masks with values 0..V-1; always
    on the host. Pixels whose ground truth is ``IGNORED`` are left out."""
    pred, true = pred.cpu(), true.cpu()
    if pred.shape != true.shape:
        raise BundleError(
            f"`pred` and `true` must have the same shape, got {tuple(pred.shape)} and {tuple(true.shape)}."
        )
    scored = true != IGNORED
    if not scored.all():
        pred, true = pred[scored], true[scored]
    for name, mask in (("pred", pred), ("true", true)):
        if mask.numel() and not 0 <= mask.min() <= mask.max() < num_values:
            raise BundleError(
                f"`{name}` must have mask values in 0..{num_values - 1}, got {mask.min()}..{mask.max()}; check "
                "`mask_values` and `segmenter_values`."
            )
    pairs = num_values * true.flatten().to(torch.int64) + pred.flatten().to(torch.int64)
    return torch.bincount(pairs, minlength=num_values**2).reshape(num_values, num_values)


def class_scores(confusion: torch.Tensor, exclude_background: bool) -> dict[str, torch.Tensor]:
    """Scores of each class.

    Args:
        confusion: pixel counts (V, V), ground truth down, prediction across; value 0 is background.
        exclude_background: the ``published`` protocol; ``False`` for ``with_background``.

    Returns:
        ``iou``, ``dice`` and ``recall`` of each class, (V,) or without background (V - 1,), in [0, 1], NaN where
        undefined (a class absent from ground truth and prediction; for recall, absent from ground truth; a single class
        without background); and
        ``pixels``, the number of ground-truth pixels.
    """
    confusion = confusion.double()
    if exclude_background:
        confusion = confusion[1:]  # true background is not scored, but tissue predicted as background is
    first = int(exclude_background)
    hits = confusion[:, first:].diagonal()
    true, predicted = confusion.sum(dim=1), confusion.sum(dim=0)[first:]
    if exclude_background and len(true) == 1:  # all that is scored is of this class, whatever is predicted
        undefined = torch.full_like(hits, torch.nan)
        return {"iou": undefined, "dice": undefined, "recall": undefined, "pixels": true}
    return {
        "iou": hits / (true + predicted - hits),
        "dice": 2 * hits / (true + predicted),
        "recall": hits / true,
        "pixels": true,
    }


def mean_iou(confusion: torch.Tensor, exclude_background: bool) -> float:
    """Mean IoU over the classes that occur; arguments as in ``class_scores``.

    Raises:
        BundleError: if no class occurs, since there is nothing to score.
    """
    mean = class_scores(confusion, exclude_background)["iou"].nanmean().item()
    if mean != mean:
        raise BundleError(
            "the masks must show at least one class to be scored, but all pixels are background or ignored; correct "
            "`mask_values` or the masks."
        )
    return mean


def summary(confusion: torch.Tensor, names: Sequence[str], exclude_background: bool) -> dict[str, Any]:
    """All scores of one protocol, ready for JSON: undefined ones are ``None``.

    Args:
        confusion: pixel counts (V, V), ground truth down, prediction across.
        names: name of each mask value.
        exclude_background: the ``published`` protocol; ``False`` for ``with_background``.
    """
    scores = class_scores(confusion, exclude_background)
    pixels = scores["pixels"]
    frequency = pixels / pixels.sum()
    per_class = {
        name: {key: _number(scores[key][index]) for key in ("iou", "dice", "recall", "pixels")}
        for index, name in enumerate(names[int(exclude_background) :])
    }
    return {
        "mean_iou": _number(scores["iou"].nanmean()),
        "mean_dice": _number(scores["dice"].nanmean()),
        "frequency_weighted_iou": _number((frequency * scores["iou"].where(pixels > 0, 0)).sum()),
        "pixel_accuracy": _number((frequency * scores["recall"].where(pixels > 0, 0)).sum()),
        "mean_accuracy": _number(scores["recall"].nanmean()),
        "classes": per_class,
    }


def _number(value: torch.Tensor) -> float | None:
    return None if value.isnan() else round(value.item(), 6)
