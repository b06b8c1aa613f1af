"""Where masks are wrong: at borders or inside, in small regions or in large ones.

Everything is counted image by image and added up, so that the scores are those of all pixels and regions of a split.
The image's own edge is no border of a tissue, and ignored pixels make none.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects, maximum_filter
from skimage.measure import label as label_regions

DISTANCES_PX = (2, 5, 10, 20, 50)  # upper ends of the bands, by distance to the nearest true border; the last has none
REGION_SIZES_PX = (500, 2000, 10000)  # lower ends of the groups of regions, by area; the first begins at 1
NEAR_PX, SMALL_PX = 5, 2000  # what `digest` calls near a border, and a small region
WORST_REGIONS = 6
BORDER_SHARE = 0.02  # width of the border that boundary IoU compares, as a share of the image's diagonal


def distance_to_border(true: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Distance of each pixel to the nearest one with another value, in px: 1 at a border, inf if there is none.

    Args:
        true: mask values, (H, W).
        known: (H, W) bool; pixels that are not known make no border.

    Returns:
        (H, W) float64; for pixels that are not known, 0.
    """
    distance = np.zeros(true.shape)
    for value in np.unique(true[known]):
        inside, other = known & (true == value), known & (true != value)
        distance[inside] = distance_transform_edt(~other)[inside] if other.any() else np.inf
    return distance


def border_of(inside: np.ndarray, known: np.ndarray, width_px: int) -> np.ndarray:
    """The pixels of a class at most ``width_px`` rows and columns from one that is known to be of another, (H, W) bool.

    Args:
        inside: the pixels of the class, (H, W) bool.
        known: (H, W) bool.
        width_px: width of the border, 1 or more.
    """
    other = known & ~inside
    return inside & maximum_filter(other, size=2 * width_px + 1, mode="constant", cval=False)


class BorderScores:
    """Boundary IoU, accuracy by distance to the nearest true border, and regions found, by size.

    * Boundary IoU (Cheng et al., "Boundary IoU", CVPR 2021): the IoU of the borders of a class, as wide as 2 % of the
      image's diagonal, in prediction and truth.
    * A true region (8-connected) is found if at least half of it is predicted as its class; a predicted one is right if
      at least half of it truly is.
    * The worst regions are the largest connected ones that are wrong, one from each image at most.

    Args:
        names: name of each mask value.
        exclude_background: leave out pixels whose ground truth is value 0, as the protocol ``published`` does. They
            still border on tissue.
        mpp: micrometres per pixel; ``None`` if unknown.
        ignored: value of ground-truth pixels that are not scored.
    """

    def __init__(
        self, names: Sequence[str], exclude_background: bool, mpp: float | None = None, ignored: int = 255
    ) -> None:
        self.names = list(names)
        self.first = int(exclude_background)
        self.mpp = mpp
        self.ignored = ignored
        count, bands, sizes = len(self.names), len(DISTANCES_PX) + 1, len(REGION_SIZES_PX) + 1
        self.border = np.zeros((count, 2), dtype=np.int64)  # intersection and union
        self.bands = np.zeros((count, bands, 2), dtype=np.int64)  # right pixels, pixels
        self.regions = np.zeros((2, count, sizes, 2), dtype=np.int64)  # true or predicted; found or right ones, all
        self.worst: list[dict[str, Any]] = []

    def add(self, name: str, pred: np.ndarray, true: np.ndarray) -> None:
        """Count the image ``name`` with masks ``pred`` and ``true``, (H, W) each, of values 0..V-1."""
        known = true != self.ignored
        scored = known & (true >= self.first)
        width = max(1, round(BORDER_SHARE * math.hypot(*true.shape)))
        distance = distance_to_border(true, known)
        band = np.searchsorted(DISTANCES_PX, distance)
        for value in range(self.first, len(self.names)):
            is_true, is_pred = known & (true == value), pred == value
            if not (is_true.any() or is_pred.any()):
                continue
            borders = border_of(is_true, known, width), border_of(is_pred, np.ones_like(known), width) & scored
            self.border[value] += (borders[0] & borders[1]).sum(), (borders[0] | borders[1]).sum()
            for column, pixels in enumerate((is_true & is_pred, is_true)):
                self.bands[value, :, column] += np.bincount(band[pixels], minlength=self.bands.shape[1])
            self.regions[0, value] += count_regions(is_true, is_pred)
            self.regions[1, value] += count_regions(is_pred & scored, is_true)
        self.worst += [{"image": name} | region for region in self._largest_wrong(pred, true, scored)]
        self.worst = sorted(self.worst, key=lambda region: -region["pixels"])[:WORST_REGIONS]

    def _largest_wrong(self, pred: np.ndarray, true: np.ndarray, scored: np.ndarray) -> list[dict[str, Any]]:
        """The largest connected region of an image that is wrong; none if nothing is."""
        labels = label_regions(scored & (pred != true), connectivity=2)
        if not labels.any():
            return []
        largest = 1 + np.bincount(labels.ravel())[1:].argmax()
        inside, (rows, columns) = labels == largest, find_objects(labels)[largest - 1]
        truth, prediction = (self.names[np.bincount(mask[inside]).argmax()] for mask in (true, pred))
        box = {"rows": [rows.start, rows.stop], "columns": [columns.start, columns.stop]}
        return [{"pixels": int(inside.sum()), "truth": truth, "prediction": prediction} | box]

    def summary(self) -> dict[str, Any]:
        """All scores, ready for JSON: shares in [0, 1], ``None`` where there is nothing to score.

        Returns:
            ``boundary_iou``, the mean over classes; ``distances_px``, and ``mpp`` and ``distances_um``, ``None`` if
            unknown; ``region_sizes_px``; ``classes``, by name, and ``all``, pooled over them, each with ``accuracy``
            and ``pixels`` by distance, ``recall``, ``precision``, ``true_regions`` and ``predicted_regions`` by size;
            classes also with ``boundary_iou``; and ``worst_regions``, the largest first: their ``image``, ``pixels``,
            ``rows`` and ``columns`` from the first to before the last, and the commonest value of ``truth`` and
            ``prediction`` in them.
        """
        values = range(self.first, len(self.names))
        classes = {
            self.names[v]: {"boundary_iou": _share(*self.border[v])} | _by_place(self.bands[v], self.regions[:, v])
            for v in values
        }
        ious = [scores["boundary_iou"] for scores in classes.values() if scores["boundary_iou"] is not None]
        return {
            "boundary_iou": round(sum(ious) / len(ious), 6) if ious else None,
            "distances_px": list(DISTANCES_PX),
            "mpp": self.mpp,
            "distances_um": None if self.mpp is None else [round(px * self.mpp, 3) for px in DISTANCES_PX],
            "region_sizes_px": list(REGION_SIZES_PX),
            "all": _by_place(self.bands.sum(axis=0), self.regions.sum(axis=1)),
            "classes": classes,
            "worst_regions": self.worst,
        }


def digest(borders: Mapping[str, Any], classes: Sequence[str] | None = None) -> dict[str, float | None]:
    """A few numbers out of a ``summary``.

    Args:
        borders: the summary.
        classes: names of the classes to pool; ``None`` for all.

    Returns:
        ``boundary_iou``, the classes' mean; the shares of pixels that are right ``near_border`` (to ``NEAR_PX``) and
        ``inside``; the shares of true regions that are found, ``small_found`` (under ``SMALL_PX``) and ``large_found``;
        and of predicted ones that are right, ``small_right`` and ``large_right``. ``None`` where there is nothing.
    """
    chosen = [borders["classes"][name] for name in classes or borders["classes"]]
    ious = [scores["boundary_iou"] for scores in chosen if scores["boundary_iou"] is not None]
    near = 1 + borders["distances_px"].index(NEAR_PX)
    small = 1 + borders["region_sizes_px"].index(SMALL_PX)

    def pooled(shares: str, counts: str, part: slice) -> float | None:
        pairs = [pair for one in chosen for pair in zip(one[shares][part], one[counts][part], strict=True) if pair[1]]
        return _share(sum(share * count for share, count in pairs), sum(count for _, count in pairs))

    return {
        "boundary_iou": sum(ious) / len(ious) if ious else None,
        "near_border": pooled("accuracy", "pixels", slice(near)),
        "inside": pooled("accuracy", "pixels", slice(near, None)),
        "small_found": pooled("recall", "true_regions", slice(small)),
        "large_found": pooled("recall", "true_regions", slice(small, None)),
        "small_right": pooled("precision", "predicted_regions", slice(small)),
        "large_right": pooled("precision", "predicted_regions", slice(small, None)),
    }


def count_regions(regions: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Count connected regions by size.

    Args:
        regions: (H, W) bool.
        hits: (H, W) bool.

    Returns:
        (groups of ``REGION_SIZES_PX``, 2): regions of which at least half are hits, and all regions.
    """
    labels = label_regions(regions, connectivity=2)
    areas = np.bincount(labels.ravel())[1:]
    found = 2 * np.bincount(labels[hits], minlength=len(areas) + 1)[1:] >= areas
    group, groups = np.searchsorted(REGION_SIZES_PX, areas, side="right"), len(REGION_SIZES_PX) + 1
    return np.stack([np.bincount(group[found], minlength=groups), np.bincount(group, minlength=groups)], axis=1)


def _by_place(bands: np.ndarray, regions: np.ndarray) -> dict[str, list]:
    return {
        "accuracy": [_share(*row) for row in bands],
        "pixels": bands[:, 1].tolist(),
        "recall": [_share(*row) for row in regions[0]],
        "true_regions": regions[0, :, 1].tolist(),
        "precision": [_share(*row) for row in regions[1]],
        "predicted_regions": regions[1, :, 1].tolist(),
    }


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None
