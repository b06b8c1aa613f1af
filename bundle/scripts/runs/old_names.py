"""Map module names in configs written by earlier versions to where those modules are now."""

import difflib
import logging
import re
from codecs import BOM_UTF8
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ..errors import BundleError
from ..files.foreign_files import read_json

logger = logging.getLogger(__name__)

SHOWN = 2
NAME = re.compile(r"(?<![\w./-])scripts\.(\w+(?:\.\w+)*)")
SCRIPTS = Path(__file__).resolve().parents[1]
MOVED = {  # modules, and single names that moved out of their module
    "devices": "runs.devices",
    "run_folder": "runs.run_folder",
    "workflow": "runs.stages",
    "plain_errors": "runs.plain_errors",
    "handlers": "training.handlers",
    "training_step": "training.step",
    "optimization": "training.optimization",
    "transforms": "data.transforms",
    "classes": "data.classes",
    "mask_values": "data.mask_values",
    "data": "data.items",
    "check": "data.check",
    "few_shot": "data.few_shot",
    "demo": "data.preparing.demo",
    "weights": "weights.state_dicts",
    "cam": "pseudo_masks.cam",
    "class_balance": "pseudo_masks.class_balance",
    "refinement": "pseudo_masks.refinement",
    "pseudo_masks": "pseudo_masks.writing",
    "inference": "inference.images",
    "slides.reading": "slides.reading.slide",
    "slides.blending": "slides.segmenting.blending",
    "slides.engine": "slides.segmenting.engine",
    "slides.run": "slides.segmenting.run",
    "slides.settings": "slides.segmenting.settings",
    "metrics": "evaluation.metrics",
    "scoring": "evaluation.scoring",
    "cam_fitting": "evaluation.cam_fitting",
    "report": "evaluation.report.report",
    "pictures": "files.pictures",
    "published_weights": "weights.published",
    "networks.winograd": "networks.fast.winograd",
    "networks.fused_batch_norm": "networks.fast.fused_batch_norm",
    "data.RGBReader": "data.images.RGBReader",
    "data.image_loading": "data.images.image_loading",
    "data.require_rgb": "data.images.require_rgb",
    "data.ThreadedDataset": "data.batches.ThreadedDataset",
    "data.ReadAheadDataLoader": "data.batches.ReadAheadDataLoader",
    "data.SameSizeBatches": "data.batches.SameSizeBatches",
    "data.same_size_loader": "data.batches.same_size_loader",
    "transforms.BatchTransform": "training.augmentation.BatchTransform",
    "transforms.RandomFlip": "training.augmentation.RandomFlip",
    "transforms.RandomTranspose": "training.augmentation.RandomTranspose",
    "transforms.RandomCutMix": "training.augmentation.RandomCutMix",
    "transforms.RandomStain": "training.augmentation.RandomStain",
    "transforms.RandomGaussianBlur": "training.augmentation.RandomGaussianBlur",
    "transforms.PrepareBatch": "training.augmentation.PrepareBatch",
    "cam.white_background": "data.background.white_background",
    "cam.white_pixels": "data.background.white_pixels",
    "cam.largest_channel": "data.label_maps.largest_channel",
    "cam.require_channels": "data.label_maps.require_channels",
    "cam.label_map": "data.label_maps.label_map",
    "pseudo_masks.mask_paths": "data.mask_folder.mask_paths",
    "pseudo_masks.write_manifest": "data.mask_folder.write_manifest",
    "few_shot.write_comparison": "evaluation.comparison.write_comparison",
    "run_folder.write_inference_config": "inference.config.write_inference_config",
    "handlers.ResumeHandler": "training.checkpoints.ResumeHandler",
    "handlers.BestModelHandler": "training.checkpoints.BestModelHandler",
}


def current_names(config: Any) -> Any:
    """``config``, or a part of one, with the current names of whatever in ``scripts`` has moved; logged once."""
    moved: dict[str, str] = {}
    config = renamed(config, moved)
    if moved:
        _say(tuple(sorted(moved.items())))
    return config


def read_configs(paths: str | Path | Sequence[str | Path]) -> ConfigParser:
    """A parser of config files, merged from left to right, with current names.

    Raises:
        BundleError: if one is not JSON; the message has its line and column.
    """
    parser, files = ConfigParser(), [paths] if isinstance(paths, (str, Path)) else paths
    for path in map(Path, files):
        if path.suffix == ".json" and not isinstance(content := read_json(path), dict):
            raise BundleError(f"{path} must be an object with keys, got a {type(content).__name__}; see lite.json.")
        if path.read_bytes().startswith(BOM_UTF8):
            raise BundleError(f"{path} must be UTF-8 without a byte order mark, which MONAI cannot read; save it so.")
    try:
        parser.read_config([str(path) for path in files])
    except KeyError as error:  # MONAI's, for a key in a section that does not exist
        section = str(error).strip("'\"").rpartition(" ")[2]
        known = {part for path in files for key in ConfigParser.load_config_file(str(path)) for part in key.split("#")}
        near = difflib.get_close_matches(section, known - {section}, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "check the spelling."
        names = ", ".join(Path(path).name for path in files)
        raise BundleError(f"keys in {names} must be in sections that exist, got {section!r}; {hint}") from None
    parser.set(current_names(parser.get()))
    return parser


def renamed(value: Any, moved: dict[str, str], is_target: bool = False) -> Any:
    """``value`` with current names in targets and expressions; ``moved`` gets each old name with its new one."""
    if isinstance(value, dict):
        return {key: renamed(child, moved, key.endswith("_target_")) for key, child in value.items()}
    if isinstance(value, list):
        return [renamed(child, moved) for child in value]
    if isinstance(value, str) and (is_target or value.startswith("$")):
        return NAME.sub(lambda match: _current(match[0], match[1], moved), value)
    return value


def _current(name: str, inside: str, moved: dict[str, str]) -> str:
    module, _, last = inside.rpartition(".")
    if any((SCRIPTS / part.replace(".", "/")).with_suffix(".py").is_file() for part in (inside, module or inside)):
        return name  # a module of today
    place = MOVED.get(inside) or (f"{MOVED[module]}.{last}" if module in MOVED else None)
    if place is None:
        return name
    moved[name] = f"scripts.{place}"
    return moved[name]


@cache
def _say(moved: tuple[tuple[str, str], ...]) -> None:
    shown = ", ".join(f"{old} is now {new}" for old, new in moved[:SHOWN])
    more = f", and {len(moved) - SHOWN} more" if len(moved) > SHOWN else ""
    logger.warning(f"The configs were written by an earlier version; outdated names were updated: {shown}{more}.")
