"""List the config files of a training from the names of a data set, a method and a preset."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BundleError
from .run_folder import BUNDLE_ROOT, untrained

PRESETS = {"lite": ["lite.json"], "paper": []}
CONFIGS = BUNDLE_ROOT / "configs"


def config_list(
    dataset: str | Path, method: str = "esfan", preset: str = "lite", more: Sequence[str | Path] = ()
) -> list[Path]:
    """Config files to merge from left to right: ``train.json``, method, preset, data set, further overlays.

    Args:
        dataset: a name, whose overlay is ``configs/dataset_NAME.json`` in the working directory or in the bundle, or
            the path of the overlay.
        method: likewise, for ``configs/method_NAME.json``.
        preset: ``lite`` or ``paper``: the networks.
        more: paths of further overlays.

    Raises:
        BundleError: for an unknown data set, method or preset, or a missing file.
    """
    if preset not in PRESETS:
        raise BundleError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}.")
    missing = [str(path) for path in more if not Path(path).is_file()]
    if missing:
        raise BundleError(f"`config` must name existing files, got {', '.join(missing)}; check the paths.")
    presets = [CONFIGS / name for name in PRESETS[preset]]
    overlays = [overlay_file("method", method), *presets, overlay_file("dataset", dataset)]
    return [untrained("train.json"), *overlays, *(Path(path).resolve() for path in more)]


def overlay_file(kind: str, name: str | Path) -> Path:
    """The overlay of a data set or a method, by name or by path.

    Args:
        kind: ``dataset`` or ``method``.
        name: its name, or the path of its overlay.

    Raises:
        BundleError: if there is none, with the closest name.
    """
    if Path(name).suffix == ".json":
        if not Path(name).is_file():
            raise BundleError(
                f"`{kind}`: {name} must be a JSON file, but it does not exist; pass a name or the path of an overlay."
            )
        return Path(name).resolve()
    folders = [Path.cwd() / "configs", CONFIGS]
    found = (folder / f"{kind}_{name}.json" for folder in folders)
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        files = (path for folder in folders for path in folder.glob(f"{kind}_*.json"))
        names = sorted({path.stem.removeprefix(f"{kind}_") for path in files})
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "or pass the path of an overlay."
        raise BundleError(f"`{kind}` must be one of {', '.join(names)}, got {str(name)!r}; {hint}")
    return path.resolve()


def in_working_directory(key: str, value: Any) -> dict[str, str]:
    """Settings that move a folder which a config places inside the bundle to the working directory.

    Args:
        key: the folder's key.
        value: an expression such as ``$@bundle_root + '/data'``, or a component that takes one as an argument.
    """
    if isinstance(value, Mapping):
        return {k: v for name, child in value.items() for k, v in in_working_directory(f"{key}#{name}", child).items()}
    if isinstance(value, str) and value.startswith("$@bundle_root + "):
        folder = repr(str(Path.cwd())).replace("@", r"\x40")  # in an expression, MONAI reads @ as a reference
        return {key: value.replace("@bundle_root", folder, 1)}
    return {}
