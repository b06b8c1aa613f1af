"""List the images of a folder to be segmented, whatever else lies in it."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..files.foreign_files import open_image
from .images import require_rgb
from .items import IMAGE_SUFFIXES, list_images, name_in, require_different_names

logger = logging.getLogger(__name__)

SMALL_COPY = re.compile(r"(?:^|[\W_])thumb(?:nail)?s?(?:$|[\W_])|^@eaDir$|^__MACOSX$", re.IGNORECASE)
RESULTS = {"masks", "overlays"}  # folders that a segmentation of images makes beside each other
SHOWN = 3


def images_to_segment(source: str | Path, leave_out: str | Path | None = None) -> list[dict[str, Any]]:
    """The image ``source``, or those of the folder ``source`` and its subfolders, sorted by name.

    Hidden files and folders, thumbnails, masks beside a folder ``img`` and earlier results are left out.

    Args:
        source: the file or folder.
        leave_out: a folder not to look into, for instance of earlier results.

    Returns:
        Per image ``image`` and ``path``, its path, the former to be replaced by its pixels; ``name``, its path below
        ``source``; ``error``, why it cannot be segmented as far as its header tells, else ``""``; and ``size``, (width,
        height) in pixels, unless there is an ``error``.

    Raises:
        FileNotFoundError: if ``source`` does not exist or has no images.
        BundleError: if two images differ only in their suffix, since their masks would have the same name.
    """
    source = Path(source)
    if source.is_file():
        return [_item(source, source.name)]
    if not source.is_dir():
        raise FileNotFoundError(f"{source} must be an image or a folder of images; it does not exist: check the path.")
    earlier = None if leave_out is None else Path(leave_out).resolve()

    def skip(folder: Path, beside: Sequence[str]) -> bool:
        is_mask = folder.name == "mask" and "img" in beside
        is_result = folder.name in RESULTS and RESULTS <= set(beside)
        return is_mask or is_result or SMALL_COPY.search(folder.name) is not None or folder.resolve() == earlier

    found = list_images(source, skip=skip)
    images = [path for path in found if not SMALL_COPY.search(path.stem)]
    if len(images) < len(found):
        names = [path.name for path in found if path not in set(images)]
        logger.info(f"Left out {len(names)} thumbnails in {source}, such as {names[:SHOWN]}.")
    if not images:
        raise FileNotFoundError(
            f"{source} must contain images ({', '.join(IMAGE_SUFFIXES)}), also in subfolders, but has none; check the "
            "path."
        )
    require_different_names([name_in(source, path) for path in images], source)
    return [_item(path, name_in(source, path)) for path in images]


def _item(path: Path, name: str) -> dict[str, Any]:
    item = {"image": str(path), "path": str(path), "name": name, "error": ""}
    try:
        with open_image(path) as image:
            return item | {"size": require_rgb(image).size}
    except (BundleError, OSError) as error:
        return item | {"error": str(error)}


def require_none_failed(failures: Mapping[str, str], output_dir: str | Path) -> None:
    """Raise a ``BundleError`` that names the images without a mask, if any, and says why.

    Args:
        failures: the reason by name.
        output_dir: where the masks of the others are.
    """
    if failures:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in sorted(failures.items()))
        raise BundleError(f"{len(failures)} images failed, the masks of the others are in {output_dir}:\n{reasons}")
