"""Describe a data set of your own, so that the bundle can train on it.

python -m scripts.data.new_dataset NAME --dataset-dir DIR --class-names tumor,stroma,other [--nobackground]
    [--colors COLORS]
"""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import fire
import numpy as np
from scipy.spatial.distance import cdist
from skimage.color import rgb2lab

from ..errors import BundleError
from ..files.atomic import atomic_path
from ..files.pictures import Palette
from ..runs import plain_errors
from .classes import require_class_names

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"
WHITE, REST = (255, 255, 255), (239, 239, 239)  # colours of mask value 0: background, or a class "rest"
OKABE_ITO = (  # told apart by colour-blind eyes too; Okabe and Ito, Color Universal Design (2008)
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
    """``count`` RGB colours: those of Okabe and Ito, then each as far from the ones before as 216 colours allow."""
    colors = [list(color) for color in OKABE_ITO]
    grid = np.stack(np.meshgrid(*3 * [np.arange(0, 256, 51)]), axis=-1).reshape(-1, 3)
    while len(colors) < count:
        distances = cdist(rgb2lab(grid / 255), rgb2lab(np.array([WHITE, *colors]) / 255)).min(axis=1)
        colors.append(grid[distances.argmax()].tolist())
    return colors[:count]


def require_names(name: str, class_names: Sequence[str], background: bool) -> None:
    """Raise a BundleError unless the data set's name fits a file name and the class names differ."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise BundleError(f"`name` must be made of letters, digits, '-' and '_', got {name!r}; it names a file.")
    least = 1 if background else 2
    if len(class_names) < least or not all(class_names) or len(set(class_names)) < len(class_names):
        raise BundleError(
            f"`class_names` must be {least} or more different names, none empty, got {list(class_names)}; "
            "give them in the order of the labels."
        )
    require_class_names(class_names)


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
    """The overlay of a data set whose masks hold our values.

    With background its mask value is 0 and the classes are 1..K. Without, the last class is the rest and has 0, as in
    GlaS: the classifier's channels stay in label order, the segmenter's are in the order of the mask values.

    Args:
        name: of the data set, usable in a file name.
        dataset_dir: its folder.
        class_names: the K classes in label order.
        background: whether pixels may belong to no class.
        colors: RGB colour of each class; default: the ones of ``distinct_colors``, light grey for the rest.
        mpp: micrometres per pixel of the patches; ``None`` if they are not known.
    """
    dataset_dir = str(Path(dataset_dir).resolve())
    if "#" in dataset_dir or "::" in dataset_dir:
        raise BundleError(
            f"`dataset_dir` must have no # and no :: in it, which part keys in MONAI's configs, got {dataset_dir}; "
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
        "_desc_": f"{name}: {count} tissues{'' if background else ', no background'}. "
        "Made by scripts.data.new_dataset.",
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
    *words: str,
    dataset_dir: str,
    class_names: Sequence[str],
    background: bool = True,
    colors: Palette | None = None,
    mpp: float | None = None,
) -> Path:
    """Write ``configs/dataset_NAME.json``, which is then yours to edit (see ``describe_dataset``).

    Args:
        name: of the data set.
        words: none; what follows a space in a list of class names comes to lie here.
        dataset_dir: its folder, in the layout of ``scripts.data.items``.
        class_names: in the order of the labels, separated by commas.
        background: whether pixels may belong to no class; ``--nobackground``: the last class is the rest.
        colors: of the classes, e.g. ``[[205,51,51],[255,165,0]]``.
        mpp: micrometres per pixel of the patches, for a network that is to work on slides.

    Raises:
        BundleError: if there are ``words``, or names, colours or ``mpp`` do not fit.
        FileExistsError: if there is such a config already.
    """
    if words:
        raise BundleError(
            f"`class_names` must be separated by commas, without spaces, got {list(words)} apart from them."
        )
    names = class_names.split(",") if isinstance(class_names, str) else class_names  # Fire splits the simple ones
    class_names = [str(item).strip() for item in names]
    overlay = describe_dataset(str(name), str(dataset_dir), class_names, background, colors, mpp)
    path = CONFIG_DIR / f"dataset_{name}.json"
    if path.exists():
        raise FileExistsError(f"`name` must be new, got {name!r}, but {path} exists; remove it or give another name.")
    lines = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in overlay.items()]
    with atomic_path(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return path


def next_commands(path: Path) -> str:
    """What to type after the overlay ``path`` is written."""
    dataset_dir = json.loads(path.read_text(encoding="utf-8"))["dataset_dir"]
    files = ["configs/train.json", "configs/lite.json", f"configs/{path.name}"]
    return (
        f"Wrote {path}. With patches in {dataset_dir}, next:\n"
        f"python -m scripts.data.check {shlex.quote(dataset_dir)} --dataset configs/{path.name}\n"
        f'python -m monai.bundle run training --config_file "[{",".join(map(repr, files))}]"'
    )


if __name__ == "__main__":
    plain_errors.install()
    fire.Fire(new_dataset, serialize=next_commands)
