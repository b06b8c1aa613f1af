"""The settings of inference.json for a config that says what is different with slides."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ...data.classes import KEYS, Classes
from ...runs.devices import chosen_precision
from ...runs.old_names import read_configs

IDS = ("model_mpp", "patch_size", "eval_batch_size")


def inference_settings(path: str | Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``inference.json`` and the running config say together: the network, its classes, its patch size and mpp.

    What the running config says itself, in a file or on the command line, holds; ``inference.json`` gives the rest.
    There is therefore one definition of the network, and ``inference_slides.json`` runs alone as well as after
    ``inference.json`` and its overlays.

    Args:
        path: of ``inference.json``.
        config: the running config, merged.

    Returns:
        ``network``, ready to run, ``classes``, the values of ``IDS``, and as ``usage`` how the network is used, which
        its weights do not tell.
    """
    parser = ConfigParser(read_configs(path).get() | dict(config))
    settings = {name: parser.get_parsed_content(name) for name in IDS}
    precision, device, mirrored = map(parser.get_parsed_content, ("precision", "device", "mirror_averaging"))
    usage = {"precision": chosen_precision(precision, device), "mirror_averaging": mirrored}
    settings["classes"] = Classes(**{key: parser.get_parsed_content(key) for key in KEYS})
    return settings | {"network": parser.get_parsed_content("evaluator#network").eval(), "usage": usage}
