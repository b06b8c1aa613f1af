"""Describe a data set so that a run can tell when it has changed, without reading an image."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from .items import labelled_images, list_images, name_in
from .labels import label_text

FOLDERS = ("train/img", "train/mask", "val/img", "val/mask", "test/img", "test/mask")


def fingerprint(
    dataset_dir: str | Path, class_names: Sequence[str], label_file: str | Path | None = None
) -> dict[str, dict[str, str]]:
    """The size in bytes of each file of a data set, by folder and name, followed by the label of training patches.

    Names are relative, so that the folder may move. If labels cannot be read, which ``check`` tells, they are left out.

    Args:
        dataset_dir, class_names, label_file: as for ``labelled_images``.

    Returns:
        ``{"train/img": {"a.png": "1234 1 0 1"}, "val/img": {"v.png": "5678"}, …}``, without folders that are empty.
    """
    found = {}
    for name in FOLDERS:
        folder = Path(dataset_dir) / name
        files = {name_in(folder, path): str(path.stat().st_size) for path in list_images(folder) if path.is_file()}
        if files:
            found[name] = files
    try:
        for item in labelled_images(dataset_dir, class_names, label_file):
            found["train/img"][item["name"]] += f" {label_text(item['label'])}"
    except (OSError, TypeError, ValueError):
        pass
    return {
        folder: {unicodedata.normalize("NFC", name): facts for name, facts in sorted(files.items())}
        for folder, files in found.items()
    }
