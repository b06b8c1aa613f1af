"""Describe your own data set so that the bundle can train on it.

python -m scripts new-dataset NAME --dataset-dir DIR --class-names tumor,stroma,other
"""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist
from skimage.color import rgb2lab

from ...errors import BundleError, command_here
from ...files.atomic import atomic_path
from ...files.pictures import Palette
from ..classes import Classes, require_class_names, require_no_background_class, single_class_warning

WHITE, REST = (255, 255, 255), (239, 239, 239)  # colours of mask value 0: background, or a class "rest"
OKABE_ITO = (  # distinguishable with colour blindness; Okabe and Ito, Color Universal Design (2008)
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (0, 0, 0),
)


def distinct_colors(count: int) -> list[list[int]]:
    """``count`` RGB colours: Okabe and Ito's, then those of a grid of 216 that are farthest from the previous ones."""
    colors = [list(color) for color in OKABE_ITO]
    grid = np.stack(np.meshgrid(*3 * [np.arange(0, 256, 51)]), axis=-1).reshape(-1, 3)
    while len(colors) < count:
        distances = cdist(rgb2lab(grid / 255), rgb2lab(np.array([WHITE, *colors]) / 255)).min(axis=1)
        colors.append(grid[distances.argmax()].tolist())
    return colors[:count]


def require_names(name: str, class_names: Sequence[str], background: bool) -> None:
    """Raise a BundleError unless the data set's name is valid in a file name and the class names differ."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise BundleError(
            f"`name` must be made of letters, digits, '-' and '_', got {name!r}; it becomes part of a file name."
        )
    if isinstance(class_names, str):
        raise BundleError(f"`class_names` must be a list of names, got {class_names!r}; quote each name separately.")
    joined = [item for item in class_names if ";" in item or "\t" in item]
    if joined:
        raise BundleError(f"`class_names` must be separated by commas, got {joined}; write them as tumor,stroma.")
    least = 1 if background else 2
    if len(class_names) < least or not all(class_names) or len(set(class_names)) < len(class_names):
        raise BundleError(
            f"`class_names` must be {least} or more different, non-empty names, got {list(class_names)}; "
            "list them in label order."
        )
    require_class_names(class_names)
    if background:
        require_no_background_class(class_names)


def require_colors(colors: Palette, count: int) -> None:
    """Raise a BundleError unless ``colors`` are ``count`` RGB colours."""
    array = np.asarray(colors)
    if array.shape != (count, 3) or array.dtype.kind != "i" or array.min() < 0 or array.max() > 255:
        raise BundleError(
            f"`colors` must be {count} RGB colours in 0..255, one per class, got {colors}; "
            'write them as "[[205,51,51],[255,165,0]]".'
        )


def describe_dataset(
    name: str,
    dataset_dir: str | Path,
    class_names: Sequence[str],
    background: bool,
    colors: Palette | None = None,
    mpp: float | None = None,
) -> dict:
    """The overlay of a data set whose masks use our values.

    With background, its mask value is 0 and the classes are 1..K. Without, the last class is the rest and has value 0,
    as in GlaS: the classifier's channels stay in label order, the segmenter's follow the order of the mask values.

    Args:
        name: name of the data set, usable in a file name.
        dataset_dir: its folder.
        class_names: the K classes in label order.
        background: whether pixels may belong to no class.
        colors: RGB colour of each class; default: those of ``distinct_colors``, light grey for the rest.
        mpp: micrometres per pixel of the patches; ``None`` if unknown.
    """
    dataset_dir = str(Path(dataset_dir).resolve())
    if "#" in dataset_dir or "::" in dataset_dir:
        raise BundleError(
            f"`dataset_dir` must not contain # or ::, which separate keys in MONAI's configs, got {dataset_dir}; "
            "rename the folder."
        )
    if mpp is not None and not (isinstance(mpp, (int, float)) and mpp > 0):
        raise BundleError(f"`mpp` must be a positive number of micrometres per pixel such as 0.5, got {mpp!r}.")
    require_names(name, class_names, background)
    count = len(class_names)
    values = [*range(1, count + 1)] if background else [*range(1, count), 0]
    if colors is None:
        colors = distinct_colors(count) if background else [*distinct_colors(count - 1), list(REST)]
    require_colors(colors, count)
    color_of = {0: list(WHITE), **dict(zip(values, colors, strict=True))}
    return {
        "_desc_": f"{name}: {count} tissues{'' if background else ', no background'}. Created by new-dataset.",
        "dataset_name": name,
        "dataset_dir": dataset_dir,
        "class_names": list(class_names),
        "classifier_values": values,
        "segmenter_values": sorted(values),
        "mask_values": {str(value): value for value in sorted(color_of)},
        "palette": [list(color_of[value]) for value in sorted(color_of)],
        "model_mpp": mpp,
        "level_weights": [0.2, 0.3, 0.5],
        "threshold": 0.5,
    }


def new_dataset(
    name: str,
    dataset_dir: str,
    class_names: Sequence[str],
    background: bool = True,
    colors: Palette | None = None,
    mpp: float | None = None,
    config_dir: str | Path = "configs",
) -> Path:
    """Write ``CONFIG_DIR/dataset_NAME.json``, which you can then edit (see ``describe_dataset``).

    Args:
        name: name of the data set.
        dataset_dir: its folder, in the layout described in ``scripts.data.items``.
        class_names: the classes in label order.
        background: whether pixels may belong to no class; if not, the last class is the rest.
        colors: RGB colours of the classes, e.g. ``[[205, 51, 51], [255, 165, 0]]``.
        mpp: micrometres per pixel of the patches, for a network that will segment slides.
        config_dir: the folder in which overlays are found by name.

    Raises:
        BundleError: if names, colours or ``mpp`` are invalid.
        FileExistsError: if the config already exists.
    """
    overlay = describe_dataset(name, dataset_dir, class_names, background, colors, mpp)
    path = Path(config_dir) / f"dataset_{name}.json"
    if path.exists():
        raise FileExistsError(f"`name` must be new, got {name!r}, but {path} exists; remove it or choose another name.")
    lines = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in overlay.items()]
    with atomic_path(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return path


def next_commands(path: Path) -> str:
    """The commands to run after the overlay ``path`` is written."""
    overlay = json.loads(path.read_text(encoding="utf-8"))
    name, folder = shlex.quote(overlay["dataset_name"]), shlex.quote(overlay["dataset_dir"])
    warning = single_class_warning(Classes.of(overlay))
    return "\n".join(
        [
            *([f"Warning: {warning}"] if warning else []),
            f"Wrote {path}. Once the patches are in {folder}, run:",
            command_here(f"check {folder} --dataset {name}"),
            command_here(f"train --dataset {name}"),
        ]
    )
