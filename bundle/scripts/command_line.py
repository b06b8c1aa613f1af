"""Options of the command line that no config knows, which MONAI would take in silence."""

import difflib
import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import run

from .foreign_files import read_json
from .run_folder import BUNDLE_ROOT
from .workflow import running_config


def require_known_options() -> None:
    """Look through the options of the ``python -m monai.bundle run`` that is calling; see ``unknown_options``.

    Raises:
        ValueError: if one of them sets nothing.
    """
    if not Path(sys.argv[0]).match("monai/bundle/__main__.py"):  # a function's caller names its settings itself
        return
    config = running_config()
    unknown = unknown_options(sys.argv[1:], config)
    if unknown:
        near = difflib.get_close_matches(unknown[0], ({*config} | _parameters()) - {*unknown}, n=1)
        hint = f"did you mean --{near[0]}?" if near else "see the keys of the configs."
        raise ValueError(f"--{unknown[0]} must be a key of the configs, and is none; {hint}")


def unknown_options(arguments: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """The options among ``arguments`` that set no key which a config of the bundle has, or another key refers to.

    Args:
        arguments: of the command line, for instance ``["run", "--seed", "1", "--train#lr=0.1"]``.
        config: the merged config, with what the options set.

    Returns:
        The part of each name before its first ``#``.
    """
    found = (re.match(r"--([A-Za-z][\w-]*)", text) for text in arguments)
    names = [match[1].replace("-", "_") for match in found if match]  # as Fire reads them
    known = {key.split("#")[0] for path in (BUNDLE_ROOT / "configs").glob("*.json") for key in read_json(path)}
    known |= _parameters() | set(re.findall(r"[@%](\w+)", json.dumps(config, default=str)))
    return [name for name in names if name not in known]


def _parameters() -> set[str]:
    """What MONAI's command itself takes."""
    return {name for name in inspect.signature(run).parameters if name != "override"}
