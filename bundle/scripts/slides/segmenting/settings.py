"""Settings of ``inference.json`` for the slide config, which only defines what differs for slides."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ...data.classes import KEYS, Classes
from ...runs.devices import chosen_precision
from ...runs.old_names import read_configs

IDS = ("model_mpp", "patch_size", "eval_batch_size")


def inference_settings(path: str | Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Combine ``inference.json`` with the running config: the network, its classes, its patch size and mpp.

    Keys of the running config, from a file or the command line, take precedence over ``inference.json``. The network is
    thus defined once, and ``inference_slides.json`` runs on its own as well as after ``inference.json`` and its
    overlays.

    Args:
        path: path of ``inference.json``.
        config: the running config, merged.

    Returns:
        ``network``, ready to run, ``classes``, the values of ``IDS``, and ``usage``, the settings that affect the
        output but are not part of the weights.
    """
    parser = ConfigParser(read_configs(path).get() | dict(config))
    settings = {name: parser.get_parsed_content(name) for name in IDS}
    precision, device, mirrored = map(parser.get_parsed_content, ("precision", "device", "mirror_averaging"))
    usage = {"precision": chosen_precision(precision, device), "mirror_averaging": mirrored}
    settings["classes"] = Classes(**{key: parser.get_parsed_content(key) for key in KEYS})
    return settings | {"network": parser.get_parsed_content("evaluator#network").eval(), "usage": usage}
