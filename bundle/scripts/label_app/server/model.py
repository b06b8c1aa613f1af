"""The bundle's segmentation network as ``inference.json`` and ``inference_slides.json`` wire it, kept in memory."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ...data.check import rgb_size
from ...data.classes import Classes
from ...files.foreign_files import open_image
from ...runs.devices import prepare_device, require_device
from ...runs.old_names import read_configs
from ...runs.run_folder import BUNDLE_ROOT
from ...slides.segmenting.engine import SlideEngine
from .options import Options
from .versions import NEWEST, Versions


@dataclass(frozen=True)
class Segmentation:
    """What the network says of an image.

    Args:
        mask: class values, (H, W) uint8.
        entropy: of the class probabilities, as a share of the largest possible, (H, W) float32 in [0, 1]; 0 where the
            mask is background.
    """

    mask: np.ndarray
    entropy: np.ndarray


class TissueModel:
    """A segmentation network with certain weights.

    Args:
        bundle: folder of the bundle.
        weights: file of its weights.
        device: where it works, as for ``torch.device``.
    """

    def __init__(self, bundle: Path, weights: Path, device: str) -> None:
        prepare_device(device)
        self.device = torch.device(device)
        slides = BUNDLE_ROOT / "configs" / "inference_slides.json"
        self.parser = read_configs([bundle / "configs" / "inference.json", slides])
        own = {"bundle_root": str(bundle), "segmenter_path": str(weights), "device": f"$torch.device({str(device)!r})"}
        self.parser.update(own)
        settings = self.parser.get_parsed_content("inference")
        self.network = settings["network"]
        self.patch_size: list[int] = list(settings["patch_size"])
        self.model_mpp: float | None = settings["model_mpp"]
        self.classes: Classes = settings["classes"]
        self.preprocessing = self.parser.get_parsed_content("preprocessing")
        self.inferer = self.parser.get_parsed_content("inferer")
        self.postprocessing = self.parser.get_parsed_content("postprocessing")

    @cached_property
    def engine(self) -> SlideEngine:
        """The same network on slides.

        Raises:
            BundleError: if the resolution of its training patches is unknown.
        """
        return self.parser.get_parsed_content("engine")

    def segment_file(self, path: str | Path) -> Segmentation:
        """Segment an 8-bit RGB image file as ``inference.json`` does.

        Raises:
            BundleError: if the file is no such image.
        """
        rgb_size(path)
        return self._segment(self.preprocessing({"image": str(path), "name": Path(path).name})["image"])

    def segment_pixels(self, pixels: np.ndarray) -> Segmentation:
        """Segment ``pixels``, (H, W, 3) uint8."""
        return self._segment(torch.tensor(pixels).permute(2, 0, 1).contiguous() / 255)

    @torch.inference_mode()
    def _segment(self, image: torch.Tensor) -> Segmentation:
        """Segment ``image``, (3, H, W) in [0, 1]."""
        logits = self.inferer(image[None].to(self.device), self.network)[0]  # (K, H, W)
        prob = logits.softmax(dim=0)
        entropy = torch.special.entr(prob).sum(dim=0) / np.log(max(2, len(prob)))  # (H, W)
        mask = self.postprocessing({"image": image.to(self.device), "pred": logits})["pred"][0].cpu().numpy()
        entropy = entropy.clamp(0, 1).cpu().numpy()
        if self.classes.background:
            entropy[mask == 0] = 0
        return Segmentation(mask, entropy)


class ModelStore:
    """Gives the network of a version, from memory if it is the one that was asked for last and its file is the same.

    Args:
        options: settings of the app.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.versions = Versions(options.bundle, options.versions_dir)
        self.device = str(require_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu")))
        self._kept: tuple[tuple, TissueModel] | None = None

    def get(self, version: str = NEWEST) -> TissueModel:
        """The network of a version.

        Raises:
            BundleError: if there is no such version, or its file is no network that fits.
        """
        path = self.versions.weights(version)
        state = path.stat()
        key = (path, state.st_mtime_ns, state.st_size)
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # two networks need not be in memory at a time
            self._kept = (key, TissueModel(self.options.bundle, path, self.device))
        return self._kept[1]

    def state(self) -> str:
        """A text that changes when the newest network does."""
        path = self.versions.weights()
        return f"{self.versions.name_of(path.parents[1])} {path.stat().st_mtime_ns}"


def picture_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image file in pixels, from its header.

    Raises:
        BundleError: if it is no image.
    """
    with open_image(path) as picture:
        return picture.height, picture.width
