"""Class areas on a slide, their fractions of the tissue and the network's mean uncertainty."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.classes import Classes
from ...files.atomic import write_csv, write_json

HEADER = ("class", "value", "pixels", "area_mm2", "share_of_tissue", "mean_uncertainty")


class AreaCounter:
    """Counts pixels by class map value and entropy."""

    def __init__(self) -> None:
        self.counts = np.zeros((256, 256), dtype=np.int64)  # by value and entropy

    def add(self, classes: np.ndarray, entropy: np.ndarray) -> None:
        """Add rows of the two maps, (h, width) uint8 each."""
        both = classes.astype(np.uint16) << 8 | entropy
        self.counts += np.bincount(both.ravel(), minlength=1 << 16).reshape(256, 256)

    def table(self, classes: Classes, mpp: Sequence[float]) -> list[list[Any]]:
        """One row per class and one for all tissue, with the columns of ``HEADER``.

        Tissue is every pixel that has a class. Uncertainty is the mean entropy, normalised by its maximum to [0, 1].
        Fractions and means of zero pixels are ``None``.

        Args:
            classes: the classes.
            mpp: micrometres per pixel of the maps, (y, x).
        """
        counts = self.counts[classes.tissues]
        total = int(counts.sum())
        labels = [(classes.value_names[value], value) for value in classes.tissues] + [("tissue", None)]
        rows = []
        for (name, value), histogram in zip(labels, [*counts, counts.sum(axis=0)], strict=True):
            pixels = int(histogram.sum())
            area = pixels * mpp[0] * mpp[1] / 1e6
            share = pixels / total if total else None
            mean = int(histogram @ np.arange(256)) / (255 * pixels) if pixels else None
            rows.append([name, value, pixels, area, share, mean])
        return rows

    def save(self, folder: str | Path, classes: Classes, mpp: Sequence[float]) -> None:
        """Write ``areas.csv`` and ``areas.json``."""
        rows = self.table(classes, mpp)
        write_csv(Path(folder) / "areas.csv", HEADER, rows)
        entries = [dict(zip(HEADER, row, strict=True)) for row in rows]
        content = {"mpp": {"y": mpp[0], "x": mpp[1]}, "classes": entries[:-1], "tissue": entries[-1]}
        write_json(Path(folder) / "areas.json", content)
