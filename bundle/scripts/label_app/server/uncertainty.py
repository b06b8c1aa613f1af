"""Uncertainty scores of images, and the active learning strategy that uses them."""

import logging
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

from ...errors import BundleError
from ...inference.segmenter import Segmenter
from ...slides.reading.files import is_slide
from ...slides.reading.slide import Slide, SlideView
from .datastore import TissueDatastore
from .model import ModelStore

logger = logging.getLogger(__name__)

KEY = "uncertainty"  # in an image's info in the datastore
SEED = 0  # for sampling places of a slide


class UncertaintyScores:
    """The newest network's uncertainty of images, cached in the datastore until there is a newer network.

    An image's uncertainty is the mean entropy of the class probabilities over its pixels, normalised by its maximum to
    [0, 1]; background counts as 0, so that glass is not worth annotating. A slide's uncertainty is that of the most
    uncertain of several sampled places with tissue, each the size of a training patch.

    Args:
        store: provides the network.
    """

    def __init__(self, store: ModelStore) -> None:
        self.store = store

    def scores(self, names: Iterable[str], datastore: TissueDatastore, seconds: float) -> dict[str, dict[str, Any]]:
        """The uncertainty of images, ``{"entropy": share, "bbox": [x, y, width, height]}`` by name.

        Args:
            names: names of the images; those that cannot be read are logged and skipped.
            datastore: the data folder.
            seconds: time limit, after which images not scored yet are skipped.

        Raises:
            BundleError: if there is no network.
        """
        state, until = self.store.state(), time.monotonic() + seconds
        found, new = {}, {}
        for name in names:
            kept = datastore.get_image_info(name).get(KEY, {})
            if kept.get("network") == state:
                found[name] = kept
            elif time.monotonic() < until:
                try:
                    score = self.score(Path(datastore.get_image_uri(name)))
                except (ValueError, OSError) as error:
                    logger.warning(f"{name} has no score: {error}")
                    continue
                found[name] = new[name] = {**score, "network": state}
        datastore.update_image_infos({name: {KEY: score} for name, score in new.items()})
        return {name: {key: score[key] for key in ("entropy", "bbox")} for name, score in found.items()}

    def score(self, path: Path) -> dict[str, Any]:
        """The uncertainty of an image file; see ``scores``."""
        model = self.store.get()
        if is_slide(path):
            return self._score_slide(model, Slide(path, self.store.options.stated_mpp))
        result = model.predict(path)
        height, width = result.mask.shape
        return {"entropy": float(result.entropy.mean()), "bbox": [0, 0, width, height]}

    def _score_slide(self, model: Segmenter, slide: Slide) -> dict[str, Any]:
        """The most uncertain of several sampled tiles with tissue."""
        plan = model.engine.plan(slide)
        grid, cells = plan.grid, np.argwhere(plan.blender.cells)
        order = np.random.default_rng(SEED).permutation(len(cells))[: self.store.options.slide_samples]
        best: dict[str, Any] = {"entropy": 0.0, "bbox": [0, 0, *slide.level_sizes[0][::-1]]}
        for row, column in cells[np.sort(order)]:
            corner = [
                min(max(0, cell * grid.step_px - grid.margin_px), max(0, side - grid.tile_px))
                for cell, side in zip((row, column), plan.view.shape, strict=True)
            ]
            (top, bottom), (left, right) = (
                (math.ceil(start * step), math.ceil((start + grid.tile_px) * step))
                for start, step in zip(corner, plan.view.scale, strict=True)
            )
            view = SlideView(slide, model.engine.model_mpp, (top, left, bottom - top, right - left))
            entropy = float(model.predict(view.read()).entropy.mean())
            if entropy > best["entropy"]:
                best = {"entropy": entropy, "bbox": [left, top, right - left, bottom - top]}
        return best


class EntropyScoring(ScoringMethod):
    """Scores all images of the data folder by predictive entropy.

    Args:
        scores: computes and caches the scores.
    """

    def __init__(self, scores: UncertaintyScores) -> None:
        super().__init__("Predictive entropy: how uncertain the network is about an image")
        self.uncertainty = scores

    def __call__(self, request: Mapping[str, Any], datastore: TissueDatastore) -> dict[str, float]:
        """The entropy of each image, by name."""
        scores = self.uncertainty.scores(sorted(datastore.list_images()), datastore, math.inf)
        return {name: score["entropy"] for name, score in scores.items()}


class MostUncertain(Strategy):
    """Selects the unlabelled image the network is least certain about, scoring images that have no score yet.

    Args:
        scores: computes and caches the scores.
        seconds: time limit for scoring; afterwards only images with a score are considered.
    """

    def __init__(self, scores: UncertaintyScores, seconds: float) -> None:
        super().__init__("The most uncertain image that has no label yet, by predictive entropy")
        self.uncertainty = scores
        self.seconds = seconds

    def __call__(self, request: Mapping[str, Any], datastore: TissueDatastore) -> dict[str, Any] | None:
        """The next image.

        Args:
            request: ``image`` restricts the search to that image: which place in it to annotate next.
            datastore: the data folder.

        Returns:
            ``id``, ``entropy``, ``bbox`` (x, y, width and height of the place, in pixels of level 0), and the numbers
            of unlabelled and of scored images; ``None`` if there are none.
        """
        names = sorted(datastore.get_unlabeled_images())
        if request.get("image"):
            names = [name for name in datastore.list_images() if name == request["image"]]
            if not names:
                raise BundleError(f"`image` must be an image in the data folder, got {request['image']!r}.")
        scores = self.uncertainty.scores(names, datastore, self.seconds)
        if not scores:
            return None
        best = max(scores, key=lambda name: scores[name]["entropy"])
        return {"id": best, **scores[best], "unlabeled": len(names), "scored": len(scores)}
