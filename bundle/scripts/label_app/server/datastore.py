"""The data folder: patches and slides with their labels, each validated before it is saved."""

import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.config import settings as server_settings
from monailabel.datastore.local import LocalDatastore

from ...data.check import rgb_size
from ...data.items import IMAGE_SUFFIXES
from ...slides.reading.files import SUFFIXES as SLIDE_SUFFIXES
from ...slides.reading.files import is_slide
from ...slides.reading.slide import Slide
from ..annotations.label_files import SUFFIXES as LABEL_SUFFIXES
from ..annotations.label_files import Annotation, label_suffix, read_label
from .errors import answered
from .model import picture_size
from .settings import BundleSettings

IMAGES = tuple(dict.fromkeys((*IMAGE_SUFFIXES, *SLIDE_SUFFIXES)))


def _in_turn(method: Callable) -> Callable:
    """Serialise a method with those of other threads that read or change the index of images and labels."""

    @wraps(method)
    def call(datastore: "_SharedDatastore", *args: Any, **kwargs: Any) -> Any:
        with datastore.turn:
            return method(datastore, *args, **kwargs)

    return call


class _SharedDatastore(LocalDatastore):
    """MONAI Label's local datastore with an index that the server's threads and the folder watcher can share.

    While the watcher clears and rebuilds the index, other threads would see it empty or lose what they add.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.turn = threading.RLock()
        super().__init__(*args, **kwargs)

    add_image = _in_turn(LocalDatastore.add_image)
    datalist = _in_turn(LocalDatastore.datalist)
    get_image_info = _in_turn(LocalDatastore.get_image_info)
    get_image_uri = _in_turn(LocalDatastore.get_image_uri)
    get_label_info = _in_turn(LocalDatastore.get_label_info)
    get_label_uri = _in_turn(LocalDatastore.get_label_uri)
    get_labeled_images = _in_turn(LocalDatastore.get_labeled_images)
    get_labels_by_image_id = _in_turn(LocalDatastore.get_labels_by_image_id)
    get_unlabeled_images = _in_turn(LocalDatastore.get_unlabeled_images)
    json = _in_turn(LocalDatastore.json)
    list_images = _in_turn(LocalDatastore.list_images)
    refresh = _in_turn(LocalDatastore.refresh)
    remove_image = _in_turn(LocalDatastore.remove_image)
    remove_label = _in_turn(LocalDatastore.remove_label)
    save_label = _in_turn(LocalDatastore.save_label)
    status = _in_turn(LocalDatastore.status)
    update_image_info = _in_turn(LocalDatastore.update_image_info)
    update_label_info = _in_turn(LocalDatastore.update_label_info)
    _init_from_datastore_file = _in_turn(LocalDatastore._init_from_datastore_file)


class TissueDatastore(_SharedDatastore):
    """MONAI Label's local datastore, accepting only names within the folder and valid files.

    Args:
        folder: image folder; labels go into ``labels/TAG``.
        settings: the bundle's classes.
        mpp: micrometres per pixel of slides whose files do not state it.
    """

    def __init__(self, folder: str, settings: BundleSettings, mpp: float | None) -> None:
        self.settings = settings
        self.mpp = mpp
        suffixes = dict.fromkeys((*LABEL_SUFFIXES, *IMAGES))
        super().__init__(
            folder,
            extensions=[f"*{case}" for suffix in suffixes for case in (suffix, suffix.upper())],
            auto_reload=server_settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=server_settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        """List images of the data folder, or labels of a tag's folder: MONAI Label uses the same patterns for both."""
        allowed = IMAGES if Path(path).resolve() == Path(self._datastore.image_path()).resolve() else LABEL_SUFFIXES
        return {name: file for name, file in super()._list_files(path, patterns).items() if _ends(name, allowed)}

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Height and width of an image in pixels, of level 0 if it is a slide.

        Raises:
            HTTPException: 404 if the image does not exist.
            BundleError: if it cannot be read.
        """
        path = self.get_image_uri(image_id)
        if not path:
            raise HTTPException(404, f"`image` must be an image in the data folder, got {image_id!r}.")
        return tuple(Slide(path, self.mpp).level_sizes[0]) if is_slide(path) else picture_size(path)

    def read_label(self, image_id: str, path: str | Path) -> Annotation:
        """Read an image's label file; raises as ``image_size`` does, and a BundleError if the file is invalid."""
        return read_label(path, self.image_size(image_id), self.settings.classes)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Save a label of an image, replacing an older one with the same tag.

        Raises:
            HTTPException: 404 if the image does not exist, 400 if the tag or the file is invalid.
        """
        tag = str(getattr(label_tag, "value", label_tag))
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", tag):
            raise HTTPException(400, f"`tag` must consist of letters, digits, - and _, got {tag!r}.")
        with answered():
            self.read_label(image_id, label_filename)
        older = self.get_label_uri(image_id, tag)
        with tempfile.TemporaryDirectory() as folder:
            named = Path(folder) / f"label{label_suffix(label_filename)}"
            shutil.copyfile(label_filename, named)
            self._init_from_datastore_file()
            saved = super().save_label(image_id, str(named), tag, label_info)
        if older and older != self.get_label_uri(image_id, tag):
            Path(older).unlink(missing_ok=True)
        return saved

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label immediately, without waiting for a file system event."""
        super().remove_label(label_id, label_tag)
        self.refresh()

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Save an image.

        Raises:
            HTTPException: 400 if its name could point outside the data folder, or it is not an image.
        """
        if image_id and (Path(image_id).name != image_id or image_id.startswith(".")):
            raise HTTPException(400, f"`image` must be a plain name without folders, got {image_id!r}.")
        if not _ends(image_filename, IMAGES):
            raise HTTPException(400, f"an image's name must end in one of {list(IMAGES)}.")
        with answered():
            Slide(image_filename, self.mpp) if is_slide(image_filename) else rgb_size(image_filename)
        return super().add_image(image_id, image_filename, image_info)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Update an image's info, after reading what other processes have written meanwhile."""
        self._init_from_datastore_file()
        super().update_image_info(image_id, info)

    @_in_turn
    def update_image_infos(self, infos: Mapping[str, Mapping[str, Any]]) -> None:
        """Update the info of several images at once, skipping those that no longer exist."""
        self._init_from_datastore_file()
        known = {name: info for name, info in infos.items() if name in self._datastore.objects}
        for name, info in known.items():
            self._datastore.objects[name].image.info.update(info)
        if known:
            self._update_datastore_file()


def _ends(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file name has one of the suffixes, case-insensitive."""
    return name.lower().endswith(suffixes)
