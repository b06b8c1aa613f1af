"""The Python API of a finished run: ``load(run).predict(image)``.

The network, inferer, preprocessing and postprocessing come from the run's ``inference.json``, and for slides from
``inference_slides.json``, so masks are identical to those that ``python -m monai.bundle run`` writes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.batches import ThreadedDataset, batches_of_one_size
from ..data.classes import Classes
from ..data.images import image_loading
from ..errors import BundleError
from ..files.pictures import uint8_image
from ..runs.devices import prepare_device
from ..runs.old_names import read_configs
from ..runs.options import require_known_keys, require_possible_settings
from ..runs.plain_errors import plainly
from ..runs.progress import Progress
from ..runs.run_folder import BUNDLE_ROOT, RunFolder
from ..slides.reading.files import is_slide
from ..slides.reading.slide import Slide
from ..slides.segmenting.engine import SlideEngine
from ..slides.segmenting.strip_files import MapStrips
from .prediction import Prediction, areas_of, counted
from .sources import Source, image_size, sources_in

LARGEST_MASK_MPX = 128.0  # larger slide masks are subsampled by 2, 4, ...


def load(run: str | Path, device: str | torch.device | None = None, **settings: Any) -> "Segmenter":
    """Load a finished run, or an exported bundle, from any working directory.

    The code used is that of the imported bundle, not the copy in the run's folder.

    Args:
        run: its folder.
        device: device of the network; default: a GPU if available.
        settings: overrides for keys of the run's ``configs/inference.json`` or of ``inference_slides.json``, such as
            ``mirror_averaging=False``, ``eval_batch_size=4`` or ``model_mpp=0.5``.

    Raises:
        BundleError: if the folder does not exist, its segmentation network is not trained yet, or a setting is unknown.

    >>> segmenter = load(run)
    >>> segmenter.classes.value_names
    ['background', 'tumor', 'stroma', 'lymphocytes']
    """
    folder = require_finished(run)
    chosen = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with plainly():
        return Segmenter(folder, folder / "models" / "model.pt", chosen, **settings)


def require_finished(run: str | Path) -> Path:
    """Return the absolute path of a finished run's folder or an exported bundle.

    Raises:
        BundleError: if it is neither; the message says what is missing.
    """
    folder = Path(run).resolve()
    if not folder.is_dir():
        raise BundleError(f"`run` must be the folder of a finished run, got {run}, which is no folder; check the path.")
    if (folder / "run.json").is_file() and RunFolder(folder).network_stage is None:
        raise BundleError(
            f"`run` must be the folder of a finished run, got {run}, whose network is not trained yet; "
            "repeat the training command to resume it."
        )
    missing = [name for name in ("configs/inference.json", "models/model.pt") if not (folder / name).is_file()]
    if missing:
        raise BundleError(
            f"`run` must be the folder of a finished run or an exported bundle, got {run}, which has no "
            f"{' and no '.join(missing)}; pass another folder, or finish its training."
        )
    return folder


class Segmenter:
    """A trained segmentation network, ready for inference; created by ``load``.

    Args:
        bundle: folder of the bundle or run.
        weights: file of the network's weights.
        device: device of the network, as for ``torch.device``.
        settings: as for ``load``.

    Attributes:
        network: maps images (B, 3, H, W) in [0, 1] to logits (B, K, H, W).
        classes: the meaning of the channels.
        patch_size: height and width of the training patches in pixels.
        model_mpp: their micrometres per pixel; ``None`` if unknown.
    """

    def __init__(self, bundle: Path, weights: Path, device: str, **settings: Any) -> None:
        prepare_device(device)
        self.device = torch.device(device)
        slides = BUNDLE_ROOT / "configs" / "inference_slides.json"
        self._parser = read_configs([bundle / "configs" / "inference.json", slides])
        require_known_keys(settings, self._parser.get())
        own = {"bundle_root": str(bundle), "segmenter_path": str(weights), "device": f"$torch.device({str(device)!r})"}
        self._parser.update(own | settings)
        require_possible_settings(self._parser.get())
        content = self._parser.get_parsed_content("inference")
        self.network: torch.nn.Module = content["network"]
        self.classes: Classes = content["classes"]
        self.patch_size: list[int] = list(content["patch_size"])
        self.model_mpp: float | None = content["model_mpp"]
        self._batch_size: int = content["eval_batch_size"]
        self._amp: bool = self._parser.get_parsed_content("amp") and self.device.type == "cuda"
        self._preprocessing, self._inferer, self._postprocessing = map(
            self._parser.get_parsed_content, ("preprocessing", "inferer", "postprocessing")
        )

    @cached_property
    def engine(self) -> SlideEngine:
        """The engine that runs the same network on slides.

        Raises:
            BundleError: if the resolution of its training patches is unknown.
        """
        with plainly():
            return self._parser.get_parsed_content("engine")

    def predict(
        self, source: Source | Sequence[Source], mpp: float | None = None, overrule_mpp: bool = False
    ) -> Prediction | Iterator[Prediction]:
        """Segment an image or a slide, or several.

        Images are 8-bit RGB at the resolution of the training patches (``model_mpp``); slides are resampled to it.
        A slide mask that would have more than ``LARGEST_MASK_MPX`` megapixels is subsampled by 2, 4 and so on, which
        the prediction's ``mpp`` reflects. Areas are computed from all pixels.

        Args:
            source: (H, W, 3) uint8, a PIL image, or the path of an image or a slide; or a list of those, or a folder of
                images or slides.
            mpp: micrometres per pixel of slides whose files do not state it.
            overrule_mpp: whether ``mpp`` is used even if a slide's file states another.

        Returns:
            A prediction; for a list or a folder, an iterator that computes predictions lazily, in order.

        Raises:
            BundleError: if an input is not a valid image or slide; the message says what it is.

        >>> segmenter = load(run)
        >>> prediction = segmenter.predict(image)
        >>> prediction.mask.shape, prediction.mask.dtype, prediction.probabilities.shape
        ((64, 64), dtype('uint8'), (3, 64, 64))
        >>> [one.path.name for one in segmenter.predict([image, image])] == [prediction.path.name] * 2
        True
        """
        several = sources_in(source)
        pixel_size = {"mpp": mpp, "overrule_mpp": overrule_mpp}
        predictions = self._predict_all([source] if several is None else several, pixel_size)
        return next(predictions) if several is None else predictions

    def _predict_all(self, sources: Sequence[Source], pixel_size: Mapping[str, Any]) -> Iterator[Prediction]:
        """Predict ``sources`` in order; invalid inputs raise before anything is computed."""
        slides = [isinstance(source, (str, Path)) and is_slide(source) for source in sources]
        sizes = [() if slide else image_size(source) for source, slide in zip(sources, slides, strict=True)]
        if pixel_size["mpp"] is not None and not any(slides):
            raise BundleError(
                f"`mpp` must be left out if there are no slides, got {pixel_size['mpp']}; images must have the "
                f"resolution of the training patches, {self.model_mpp or 'unknown'} um per pixel: resample them first."
            )
        batches = batches_of_one_size(sizes, self._batch_size)
        return self._in_order(sources, {index: batch for batch in batches for index in batch}, slides, pixel_size)

    def _in_order(
        self,
        sources: Sequence[Source],
        batch_of: dict[int, list[int]],
        slides: Sequence[bool],
        pixel_size: Mapping[str, Any],
    ) -> Iterator[Prediction]:
        """Segment each slide, or each image with its batch, when its turn comes."""
        done: dict[int, Prediction] = {}
        for index, source in enumerate(sources):
            with plainly():
                if slides[index]:
                    done[index] = self._predict_slide(Path(source), pixel_size)
                elif index not in done:
                    batch = batch_of[index]
                    done |= zip(batch, self._predict_images([sources[member] for member in batch]), strict=True)
            yield done.pop(index)

    @torch.inference_mode()
    def _predict_images(self, sources: Sequence[Source]) -> list[Prediction]:
        """Segment images of equal size as the evaluator of ``inference.json`` does."""
        items = ThreadedDataset(sources, self._prepared).__getitems__(range(len(sources)))
        images = torch.stack([item["image"] for item in items]).to(self.device)
        with torch.autocast(self.device.type, enabled=self._amp):
            logits = self._inferer(images, self.network)  # (B, K, H, W)
        return [
            self._prediction(source, {**item, "image": image}, scores)
            for source, item, image, scores in zip(sources, items, images, logits, strict=True)
        ]

    def _prepared(self, source: Source) -> dict[str, Any]:
        """Preprocess an image into ``image``, (3, H, W) in [0, 1], and ``name``."""
        if isinstance(source, (str, Path)):
            return self._preprocessing({"image": str(source), "name": Path(source).name})
        pixels = torch.from_numpy(np.array(source)).permute(2, 0, 1)
        return self._preprocessing({"image": pixels, "name": "the image"}, start=len(image_loading()))

    def _prediction(self, source: Source, item: dict[str, Any], logits: torch.Tensor) -> Prediction:
        """Build the prediction of an image.

        Args:
            source: the input image.
            item: has ``image``, (3, H, W) in [0, 1].
            logits: (K, H, W).
        """
        mask = self._postprocessing({**item, "pred": logits})["pred"][0].cpu().numpy()
        prob = logits.float().softmax(dim=0)
        entropy = (torch.special.entr(prob).sum(dim=0) / np.log(max(2, len(prob)))).clamp(0, 1).cpu().numpy()
        if self.classes.background:
            entropy[mask == 0] = 0
        mpp = None if self.model_mpp is None else (self.model_mpp, self.model_mpp)
        return Prediction(
            mask=mask,
            entropy=entropy,
            probabilities=prob.cpu().numpy(),
            classes=self.classes,
            areas=areas_of(counted(mask), self.classes, mpp),
            image=uint8_image(item["image"]),
            mpp=mpp,
            path=Path(source) if isinstance(source, (str, Path)) else None,
        )

    def _predict_slide(self, path: Path, pixel_size: Mapping[str, Any]) -> Prediction:
        """Segment a slide as ``inference_slides.json`` does, in memory."""
        backends = self._parser.get_parsed_content("backends")
        plan = self.engine.plan(Slide(path, backends=backends, **pixel_size))
        step = mask_step(plan.view.shape)
        strips = MapStrips(plan.grid, self.classes.outside, step)
        with Progress(self.engine.tiles_left(plan, strips), path.name, "tile") as bar:
            self.engine.compute(plan, strips, done=bar.update)
        return Prediction(
            mask=strips.classes,
            entropy=strips.entropy.astype(np.float32) / 255,
            probabilities=None,
            classes=self.classes,
            areas=areas_of(strips.counter, self.classes, plan.view.mpp),
            image=plan.picture,
            mpp=tuple(side * step for side in plan.view.mpp),
            path=path,
        )


def mask_step(shape: Sequence[int]) -> int:
    """Subsampling factor, 1, 2, 4, ..., of a slide's mask of ``shape``, (H, W)."""
    step = 1
    while math.ceil(shape[0] / step) * math.ceil(shape[1] / step) > LARGEST_MASK_MPX * 1e6:
        step *= 2
    return step
