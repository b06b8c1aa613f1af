"""The app's train tasks: train a new version of the network on corrected masks or image-level labels."""

import logging
import math
import shutil
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai.bundle
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import name_to_device

from ...errors import BundleError
from ...files.foreign_files import read_json
from ...files.pictures import IGNORED
from ...runs.devices import require_device
from ...runs.run_folder import BUNDLE_ROOT, RunFolder
from .datastore import TissueDatastore
from .model import ModelStore
from .settings import BundleSettings
from .training_set import AnnotatedImage, write_labelled_patches, write_masked_patches

logger = logging.getLogger(__name__)

CLASSIFIER = Path("models") / "classifier" / "model.pt"


class TissueTrainTask(TrainTask):
    """Trains on labels tagged final in the data folder; the run folder becomes the next version.

    Args:
        description: description shown in clients.
        store: the existing versions.
        settings: the bundle's classes.
    """

    overlays: tuple[str, ...]

    def __init__(self, description: str, store: ModelStore, settings: BundleSettings) -> None:
        super().__init__(description)
        self.store = store
        self.settings = settings

    def config(self) -> dict[str, Any]:
        """Options for the client."""
        return {"max_epochs": 20, "pretrained": True, "device": [self.store.device]}

    def stats(self) -> dict[str, Any]:
        """The newest version and its mean IoU on held-out images, by split."""
        names = self.store.versions.names()
        if not names:
            return {}
        run = RunFolder(self.store.versions.run_folder())
        scores = run.stages.get(run.network_stage, {}).get("scores", {})
        mean_iou = {split: score["protocols"]["published"]["mean_iou"] for split, score in scores.items()}
        return {"version": names[-1], "mean_iou": mean_iou}

    @abstractmethod
    def write_data(self, images: list[AnnotatedImage], output_dir: Path, request: Mapping[str, Any]) -> dict[str, Any]:
        """Write the data set ``output_dir / "data"`` and return the config settings that depend on it.

        Raises:
            BundleError: if there is not enough to train on.
        """

    def __call__(self, request: Mapping[str, Any], datastore: TissueDatastore) -> dict[str, Any]:
        """Train.

        Args:
            request: may have ``max_epochs``, ``pretrained`` (start from the newest version) and ``device``.
            datastore: the data folder.

        Returns:
            The version's name and the number of patches.

        Raises:
            BundleError: if the request is invalid, or there is not enough to train on.
        """
        epochs = request.get("max_epochs", self.config()["max_epochs"])
        if type(epochs) is not int or epochs < 1:
            raise BundleError(f"`max_epochs` must be a positive whole number, got {epochs!r}.")
        device = require_device(name_to_device(request.get("device") or self.store.device))
        saved = self.store.options.bundle / "configs" / "train.json"
        if "stages" not in read_json(saved):
            raise BundleError(
                f"{saved} must be from this version of the bundle, got an earlier one; retrain it from scratch."
            )
        output_dir = self.store.versions.new_folder()
        try:
            settings = self.write_data(annotated_images(datastore), output_dir, request)
        except Exception:
            shutil.rmtree(output_dir, ignore_errors=True)
            raise
        overrides = {
            "bundle_root": str(self.store.options.bundle),
            "dataset_dir": str(output_dir / "data"),
            "output_dir": str(output_dir),
            "device": f"$torch.device({str(device)!r})",
            "mask_values": {str(value): value for value in range(len(self.settings.classes.value_names))},
            "ignore_value": IGNORED,
            "patch_size": list(self.settings.patch_size),
            "epochs": epochs,
            **self._start(bool(request.get("pretrained", True))),
            **settings,
        }
        configs = self.store.options.bundle / "configs"
        overlays = [str(BUNDLE_ROOT / "configs" / name) for name in self.overlays]
        monai.bundle.run(
            run_id="annotations",
            meta_file=str(configs / "metadata.json"),
            logging_file=False,
            config_file=[str(configs / "train.json"), *overlays],
            **overrides,
        )
        shutil.rmtree(output_dir / "checkpoints", ignore_errors=True)  # only needed to resume after a crash
        return {"version": output_dir.name, "patches": settings["num_images"], "epochs": epochs}

    def _start(self, pretrained: bool) -> dict[str, Any]:
        """Settings for the initial weights: the newest version's, if masks trained it, or those of a new training."""
        newest = self.store.versions.run_folder() if pretrained and self.store.versions.names() else None
        if newest is not None and RunFolder(newest).has_second_stage:
            return {"source_dir": str(newest)}
        train = read_json(self.store.options.bundle / "configs" / "train.json")
        return {"train#pretrained": train["train"]["pretrained"]}


class MaskTrainTask(TissueTrainTask):
    """Stage 2 on annotators' masks and shapes."""

    overlays = ("adapt.json", "annotations.json")

    def config(self) -> dict[str, Any]:
        """Options for the client, including the fraction of images held out for scoring."""
        return {**super().config(), "val_split": 0.0}

    def write_data(self, images: list[AnnotatedImage], output_dir: Path, request: Mapping[str, Any]) -> dict[str, Any]:
        """Write patches with masks."""
        share = request.get("val_split", 0.0)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not math.isfinite(share):
            raise BundleError(f"`val_split` must be a number in [0, 1), got {share!r}.")
        mpp = self.store.options.stated_mpp
        return {"num_images": write_masked_patches(images, output_dir / "data", self.settings, mpp, max(0.0, share))}


class ImageLabelTrainTask(TissueTrainTask):
    """Stage 1, pseudo masks and stage 2 on lists of the tissues in each patch."""

    overlays = ("adapt.json", "annotations.json", "annotations_image_level.json")

    def write_data(self, images: list[AnnotatedImage], output_dir: Path, request: Mapping[str, Any]) -> dict[str, Any]:
        """Write patches with image-level labels."""
        data = output_dir / "data"
        number = write_labelled_patches(images, data, output_dir / "pseudo_masks", self.settings)
        epochs = request.get("max_epochs", self.config()["max_epochs"])
        settings = {"num_images": number, "label_file": str(data / "labels.json"), "classifier_epochs": epochs}
        source = self._classifier() if request.get("pretrained", True) else None
        if source is None:  # adapt.json would take that of `source_dir`
            train = read_json(self.store.options.bundle / "configs" / "train.json")
            settings["classification#pretrained"] = train["classification"]["pretrained"]
        else:
            settings["classification#pretrained"] = {
                "_target_": "scripts.weights.state_dicts.load_weights",
                "network": "@classifier_def",
                "path": str(source),
            }
        return settings

    def _classifier(self) -> Path | None:
        """The newest classifier; not all versions have one."""
        folders = [self.store.versions.run_folder(name) for name in self.store.versions.names()[::-1]]
        return next((folder / CLASSIFIER for folder in folders if (folder / CLASSIFIER).is_file()), None)


def annotated_images(datastore: TissueDatastore) -> list[AnnotatedImage]:
    """The images with a label tagged final, sorted by name.

    Raises:
        BundleError: if a label, placed there by hand, is invalid; the message names the image.
    """
    images = []
    for name in sorted(datastore.get_labeled_images()):
        try:
            annotation = datastore.read_label(name, datastore.get_label_uri(name, "final"))
        except ValueError as error:
            raise BundleError(f"the label of {name!r}: {error}") from error
        images.append(AnnotatedImage(name, Path(datastore.get_image_uri(name)), annotation))
    return images
