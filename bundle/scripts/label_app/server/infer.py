"""The app's infer task: masks and outlines of patches and slides."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from ...errors import BundleError
from ...files.pictures import write_mask
from ...inference.segmenter import Segmenter
from ...slides.reading.files import is_slide
from ...slides.reading.slide import Slide
from ..annotations import nifti
from ..annotations.class_maps import ClassMap, patch_map, picture_map, slide_map
from ..annotations.outlines import place, server_json, trace, write_asap, write_dsa, write_geojson
from .model import ModelStore, picture_size
from .regions import asked_region, pixel_pair, require_area
from .versions import NEWEST

GEOJSON = ".geojson"
MASK_SUFFIXES = (".png", *nifti.SUFFIXES, GEOJSON)
OUTPUTS = {"json": None, "dsa": ".json", "asap": ".xml", "geojson": GEOJSON}


class TissueInferTask(InferTask):
    """Tissue masks and outlines by the bundle's segmentation network.

    Args:
        store: provides the network.
        labels: mask value of each class.
    """

    def __init__(self, store: ModelStore, labels: Mapping[str, int]) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=dict(labels),
            dimension=2,
            description="Tissue masks and outlines of patches and slides",
            config={"result_extension": list(MASK_SUFFIXES)},
        )
        self.store = store

    def config(self) -> dict[str, Any]:
        """Options for the client; the first of each is the default."""
        return {**self._config, "version": [NEWEST, *self.store.versions.names()[::-1]]}

    def is_valid(self) -> bool:
        """Whether a network exists."""
        return bool(self.store.versions.names())

    def get_path(self, validate: bool = True) -> str | None:
        """The newest weights; ``None`` for overwriting (``validate=False``), since versions are immutable."""
        return str(self.store.versions.weights()) if validate and self.is_valid() else None

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment the file ``request["image"]``, or its region ``location``, ``size``.

        Returns:
            A temporary mask file in the format ``result_extension``, and information about it.

        Raises:
            BundleError: if the request or the image is invalid.
        """
        suffix = _one_of(request, "result_extension", MASK_SUFFIXES)
        begun = time.monotonic()
        model, class_map = self._segment(request, as_mask=suffix != GEOJSON)
        mask = class_map.mask() if suffix != GEOJSON else class_map.values
        path = temporary_file(suffix)
        if suffix == GEOJSON:
            write_geojson(path, trace(class_map, model.classes), class_map, model.classes, path.stem)
        elif suffix == ".png":
            write_mask(path, mask, model.classes.colors)
        else:
            nifti.write_nifti(path, mask)
        names = model.classes.value_names
        counts = np.bincount(mask.ravel(), minlength=len(names))[: len(names)]  # a slide's outside has no name
        pixels = dict(zip(names, counts.tolist(), strict=True))
        return str(path), self._facts(request, class_map, begun) | {"pixels": pixels}

    def outlines(self, request: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Outline the tissues of a slide region or a patch; raises as ``__call__`` does.

        Args:
            request: as for ``__call__``, plus ``output``, one of ``OUTPUTS``.

        Returns:
            A temporary file (none for ``"json"``) and MONAI Label's JSON.
        """
        output = _one_of(request, "output", tuple(OUTPUTS))
        begun = time.monotonic()
        model, class_map = self._segment(request)
        polygons = trace(class_map, model.classes)
        outlines = place(polygons, class_map, model.classes)
        facts = self._facts(request, class_map, begun)
        answer = server_json(outlines, facts)
        if OUTPUTS[output] is None:
            return None, answer
        path = temporary_file(OUTPUTS[output])
        if output == "dsa":
            write_dsa(path, outlines, facts)
        elif output == "asap":
            write_asap(path, outlines)
        else:
            write_geojson(path, polygons, class_map, model.classes, Path(request["image"]).stem)
        return str(path), answer

    def _segment(self, request: Mapping[str, Any], as_mask: bool = False) -> tuple[Segmenter, ClassMap]:
        """The requested network, and its class map of the image or region.

        Args:
            request: as for ``__call__``.
            as_mask: whether the result needs a value per image pixel, not only per class map pixel.
        """
        path, options = Path(request["image"]), self.store.options
        model = self.store.get(_text(request, "version", NEWEST))
        if is_slide(path):
            slide = Slide(path, options.stated_mpp)
            region = asked_region(request, slide.level_sizes)
            shape = slide.level_sizes[0] if region is None else region[2:]
            coarser = [model.engine.model_mpp / side for side in slide.mpp]
            require_area([side / ratio for side, ratio in zip(shape, coarser, strict=True)], options.largest_mpx)
            if as_mask:
                require_area(shape, options.largest_mpx, "of the slide, for a mask of each")
            return model, slide_map(model.engine, slide, region)
        require_area(picture_size(path), options.largest_mpx)
        if request.get("sent"):  # an image that a client cropped from a slide at `location`
            left, top = pixel_pair(request.get("location"), "location")
            return model, picture_map(model, path, options.stated_mpp, (top, left))
        region = asked_region(request, [picture_size(path)])
        return model, patch_map(model.predict(path), region)

    def _facts(self, request: Mapping[str, Any], class_map: ClassMap, begun: float) -> dict[str, Any]:
        """Details of an answer."""
        (top, left), (height, width) = class_map.origin, class_map.size
        location, size = [round(left), round(top)], [int(width), int(height)]
        name = _text(request, "model", "")
        return {
            "name": f"{name} {location} {size}",
            "description": self.description,
            "model": name,
            "version": self.store.versions.name_of(self.store.versions.run_folder(_text(request, "version", NEWEST))),
            "location": location,
            "size": size,
            "uncertainty": class_map.uncertainty,
            "labels": self.labels,
            "latencies": {"total": round(time.monotonic() - begun, 3)},
        }


def temporary_file(suffix: str) -> Path:
    """A path for a file that the server deletes after sending it."""
    with tempfile.NamedTemporaryFile(suffix=suffix, delete=False) as file:
        return Path(file.name)


def _text(request: Mapping[str, Any], name: str, default: str) -> str:
    """A string of the request; of a list, which clients send for the options of ``config``, the first item."""
    value = request.get(name) or default
    value = value[0] if isinstance(value, list) else value
    if not isinstance(value, str):
        raise BundleError(f"`{name}` must be a string, got {value!r}.")
    return value


def _one_of(request: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> str:
    """A string of the request that must be one of ``allowed``; the default is the first."""
    value = _text(request, name, allowed[0])
    if value not in allowed:
        raise BundleError(f"`{name}` must be one of {list(allowed)}, got {value!r}.")
    return value
