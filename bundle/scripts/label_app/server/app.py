"""The MONAI Label app: one segmentation network with its inference, training and active learning tasks."""

import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.random import Random

from ...slides.reading.files import is_slide
from .datastore import TissueDatastore
from .errors import answer_in_words, answered
from .infer import GEOJSON, TissueInferTask
from .model import ModelStore
from .options import read_options
from .settings import bundle_settings
from .training import ImageLabelTrainTask, MaskTrainTask
from .uncertainty import EntropyScoring, MostUncertain, UncertaintyScores

logger = logging.getLogger(__name__)


class TissueLabelApp(MONAILabelApp):
    """Proposes tissue outlines, learns from corrections and image-level labels, and selects what to annotate next.

    Args:
        app_dir: the app's folder.
        studies: the folder of patches and slides.
        conf: the ``--conf`` settings; see ``Options``.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, Any]) -> None:
        self.options = read_options(conf)
        self.settings = bundle_settings(self.options.bundle)
        self.model_name = self.options.bundle.name
        self.store = ModelStore(self.options)
        self.uncertainty = UncertaintyScores(self.store)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf),
            name=f"Tissue segmentation: {self.model_name}",
            description="Tissue outlines of H&E patches and slides, learnt from masks and from image-level labels",
        )
        self._auto_update_scoring = False  # the strategy scores images; a process per request costs more

    def init_infers(self) -> dict[str, InferTask]:
        """The single infer task, named after the bundle folder."""
        return {self.model_name: TissueInferTask(self.store, self.settings.labels)}

    def init_trainers(self) -> dict[str, TrainTask]:
        """A train task for masks, with the infer task's name, and one for image-level labels."""
        masks, labels = "Learn from masks and shapes", "Learn from lists of the tissues that patches show"
        return {
            self.model_name: MaskTrainTask(masks, self.store, self.settings),
            f"{self.model_name}_image_labels": ImageLabelTrainTask(labels, self.store, self.settings),
        }

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Predictive entropy."""
        return {"entropy": EntropyScoring(self.uncertainty)}

    def init_strategies(self) -> dict[str, Strategy]:
        """The most uncertain image, and a random one for comparison."""
        return {"entropy": MostUncertain(self.uncertainty, self.options.scoring_seconds), "random": Random()}

    def init_datastore(self) -> Datastore:
        """The data folder; servers such as the Digital Slide Archive are left to MONAI Label."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return TissueDatastore(self.studies, self.settings, self.options.stated_mpp)

    def server_mode(self, mode: bool) -> None:
        """Called when the server is running, as opposed to a task in a separate process."""
        super().server_mode(mode)
        if mode:
            from monailabel.app import app as api

            answer_in_words(api, self.check_request)

    def infer(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Segment a patch or a slide; the answer is a mask file."""
        datastore = datastore or self.datastore()
        task = self._infer_task(request)
        asked = dict(request) | self._image(request, datastore)
        save = bool(request.get("save_label")) and not asked["sent"]
        if save and is_slide(asked["image"]):  # a full-resolution mask would be too large
            asked["result_extension"] = GEOJSON
        with answered():
            file, params = task(asked)
        tag = request.get("label_tag", "original")
        label = file
        if save:
            label = datastore.save_label(request["image"], file, tag, {"model": request["model"], "params": params})
        return {"label": label, "tag": tag, "file": file, "params": params}

    def infer_wsi(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Outline the tissues of a slide, a slide region or a patch."""
        task = self._infer_task(request)
        with answered():
            file, params = task.outlines(dict(request) | self._image(request, datastore or self.datastore()))
        return {"file": file, "params": params}

    def batch_infer(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Segment many images; MONAI Label's own version would distribute them over GPUs that do not exist."""
        return super().batch_infer({**request, "multi_gpu": False, "device": self.store.device}, datastore)

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The image to annotate next."""
        with answered():
            return super().next_sample(request)

    def check_request(self, method: str, path: str) -> None:
        """Reject requests for unknown tasks, before a process is started for them, and invalid session ids.

        Raises:
            HTTPException: 404 for an unknown name, 400 if there is nothing to train on.
        """
        if path.startswith("/session/") and not re.fullmatch(r"/session/[\w-]*/?", path):
            raise HTTPException(404, "a session's id must consist of letters, digits, - and _.")
        tasks = {"/train/": self._trainers, "/scoring/": self._scoring_methods, "/batch/infer/": self._infers}
        start = next((start for start in tasks if path.startswith(start)), None)
        name = unquote(path.removeprefix(start or "").strip("/"))
        if start is None or method != "POST" or not name:
            return
        if name not in tasks[start]:
            raise HTTPException(404, f"{start}NAME must be one of {list(tasks[start])}, got {name!r}; see /info/.")
        if start == "/train/" and not self.datastore().get_labeled_images():
            raise HTTPException(
                400, "there is nothing to train on: no image in the data folder has a label tagged final."
            )

    def train(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Train on labels tagged final; the next request for the newest network uses the new one."""
        with answered():
            return super().train(request)

    def bundle_path(self, model: str | None) -> str:
        """The folder of the bundle, for a task about to run in a separate process."""
        return str(self.options.bundle)

    def _infer_task(self, request: Mapping[str, Any]) -> TissueInferTask:
        """The task named in a request."""
        name = request.get("model")
        if name not in self._infers:
            raise HTTPException(404, f"the model must be one of {list(self._infers)}, got {name!r}; see /info/.")
        return self._infers[name]

    def _image(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """The file of a request's image, and whether the client sent it; no other file on the machine is opened."""
        image = request.get("image")
        if not isinstance(image, str) or not image:
            raise HTTPException(400, "`image` must be the name of an image in the data folder; see /datastore/.")
        path = datastore.get_image_uri(image)
        if path and Path(path).is_file():
            return {"image": path, "sent": False}
        folders = [Path(tempfile.gettempdir())]
        folders += [Path(self._sessions.store_path)] if self._sessions else []
        file = Path(image).resolve()
        sent = Path(image).is_absolute() and file.is_file()
        if sent and file.parent == folders[0].resolve() and file.name.startswith(tempfile.gettempprefix()):
            return {"image": str(file), "sent": True}
        if sent and any(file.is_relative_to(folder.resolve()) for folder in folders[1:]):
            return {"image": str(file), "sent": True}
        raise HTTPException(404, f"`image` must be an image in the data folder, got {image!r}; /datastore/ lists them.")
