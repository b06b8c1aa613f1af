"""Train in this process, from Python."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai.bundle

from ..errors import BundleError
from .config_lists import CONFIGS, config_list, in_working_directory
from .old_names import read_configs
from .options import require_known_keys
from .plain_errors import plainly
from .run_folder import BUNDLE_ROOT
from .settings import SET_BY_US

PLACES = ("dataset_dir", "output_dir", "label_file")


def train(
    dataset: str | Path,
    method: str = "esfan",
    preset: str = "lite",
    output_dir: str | Path | None = None,
    config: str | Path | Sequence[str | Path] = (),
    **settings: Any,
) -> Path:
    """Train on patches with image-level labels: classifier, pseudo masks, segmentation network.

    Complete stages are kept: repeat the call to resume an interrupted run. Data and runs are in ``data`` and ``output``
    in the working directory, unless ``dataset_dir`` and ``output_dir`` say otherwise.

    Args:
        dataset: name of a data set, whose overlay is ``configs/dataset_NAME.json`` in the working directory or in the
            bundle, or the path of its overlay.
        method: ``esfan``, ``ibdr``, ``sshr``, or a method of your own, found in the same way.
        preset: ``lite`` or ``paper``: the networks.
        output_dir: the run's folder; default: ``output/DATASET_METHOD_PRESET``.
        config: an additional overlay, or several.
        settings: overrides for keys of the configs, such as ``epochs=3``, ``dataset_dir="…"`` or
            ``**{"train#optimizer#weight_decay": 0}``.

    Returns:
        The run's folder, which ``load`` opens.

    Raises:
        BundleError: for an unknown data set, method, preset or setting, or data that cannot be trained on.

    >>> train("dmeo")
    Traceback (most recent call last):
    scripts.errors.BundleError: `dataset` must be one of ..., got 'dmeo'; did you mean 'demo'?
    """
    files = config_list(dataset, method, preset, [config] if isinstance(config, (str, Path)) else config)
    parser = read_configs(files)
    own = sorted(settings.keys() & set(SET_BY_US))
    if own:
        raise BundleError(f"`{own[0]}` is MONAI's and set by this function; pass overlays as `config`.")
    require_known_keys(settings, parser.get())
    if output_dir is not None:
        settings["output_dir"] = output_dir
    for key in PLACES:
        if settings.get(key) is not None:
            settings[key] = str(Path(settings[key]).resolve())
        else:
            settings |= in_working_directory(key, parser[key])
    parser.update({"bundle_root": str(BUNDLE_ROOT), **settings})
    folder = Path(parser.get_parsed_content("output_dir"))
    report = sys.excepthook  # the configs replace it with the commands' hook
    try:
        with plainly():
            settings = {"logging_file": str(CONFIGS / "logging.conf"), **settings}  # else nothing is seen in a notebook
            monai.bundle.run("training", config_file=list(map(str, files)), bundle_root=str(BUNDLE_ROOT), **settings)
    finally:
        sys.excepthook = report
    return folder
