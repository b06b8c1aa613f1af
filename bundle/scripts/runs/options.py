"""Reject command-line options that MONAI would silently accept: those that set nothing, or not what was meant."""

import ast
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ..errors import BundleError, command_here
from .components import require_components
from .settings import (
    SEE_KEYS,
    arguments_of,
    at,
    is_text,
    keys_of,
    merged_of,
    nearest,
    own_configs,
    parameters_of_run,
    read_by,
    references,
    require_known_settings,
    require_own_types,
    require_possible_numbers,
    require_sections,
    require_texts,
)

PATHS = ("_dir", "_path", "_file", "_weights")  # the names of options that are paths end so
MEANT = {  # words that MONAI reads as strings, which are truthy
    "true": "True",
    "yes": "True",
    "on": "True",
    "false": "False",
    "no": "False",
    "off": "False",
    "null": '"$None"',
    "none": '"$None"',
}


def require_known_options(config: Mapping[str, Any]) -> None:
    """Check the merged config and, when called from ``python -m monai.bundle run``, its command-line options.

    Args:
        config: the merged config, including what the options set.

    Raises:
        BundleError: if a setting's type differs from that in the bundle's own configs, a section has an unknown
            setting, or an option sets nothing or is a word such as ``false``, which MONAI would read as a string.
    """
    if Path(sys.argv[0]).match("monai/bundle/__main__.py"):
        _require_options(config)
    require_sections(config)
    require_known_settings(config)
    require_components(config, merged_of(config))
    require_possible_settings(config)


def require_possible_settings(config: Mapping[str, Any]) -> None:
    """Check the types of a config's settings, and its counts."""
    require_texts(config)
    require_own_types(config)
    require_possible_numbers(config)


def require_known_keys(names: Iterable[str], config: Mapping[str, Any]) -> None:
    """Reject settings that are neither keys of the merged ``config`` nor read by anything in it.

    Raises:
        BundleError: for the first such setting, with the closest key.
    """
    present = set(keys_of(config))
    for name in unknown_options([f"--{name}" for name in names if name not in present], config):
        near = nearest(name, config)
        hint = f"did you mean {near!r}?" if near else SEE_KEYS
        raise BundleError(f"{name!r} must be a key of the configs, but is not; {hint}")


def _require_options(config: Mapping[str, Any]) -> None:
    """Check the options of the command line."""
    words = sys.argv[2:]  # after MONAI's command, `run`
    stray = stray_words(words[1:] if words and not words[0].startswith("-") else words)
    if stray:
        raise BundleError(
            f"the command line must consist of a run ID and of --key value, but has {stray[0]!r}; MONAI would take it "
            "for an argument of its own. Remove it, or quote a value that has spaces."
        )
    for name in unknown_options(sys.argv[1:], config):
        others = [path.name for path, content in own_configs().items() if name in keys_of(content)]
        if others:
            raise BundleError(f"--{name} must be a key of the configs; add configs/{others[0]}, which defines it.")
        near = nearest(name, config)
        hint = f"did you mean --{near}?" if near else SEE_KEYS
        raise BundleError(f"--{name} must be a key of the configs, but is not; {hint}")
    for name in options(sys.argv[1:]):
        _require_read(name, config)
        value = at(config, name)
        if isinstance(value, str) and value.lower() in MEANT and not _is_name(name, config):
            meant = MEANT[value.lower()]
            raise BundleError(f"--{name} must be a Python literal, got the string {value!r}; pass --{name} {meant}.")
        if is_text(name, config) and not isinstance(value, (str, Mapping, type(None))):
            raise BundleError(
                f"--{name} must be a string, but MONAI's command line reads it as the value {value!r}; quote it "
                f"twice, --{name} '\"…\"', or use `{command_here('train')}`, which keeps strings."
            )


def unknown_options(arguments: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """The options among ``arguments`` that set nothing.

    An option is known if its key is in one of the bundle's configs that are merged, in one that ``config`` reads
    itself, or in one that ``--config_file`` names; if another key refers to it; or if the ``_target_`` of its section
    takes it as an argument.

    Args:
        arguments: the command line, for instance ``["run", "--seed", "1", "--train#lr=0.1"]``.
        config: the merged config, including what the options set.
    """
    contents = [*merged_of(config), *read_by(config)]
    contents += [ConfigParser.load_config_file(str(path)) for path in _config_files(arguments) if path.is_file()]
    known = {key for content in contents for key in keys_of(content)} | parameters_of_run() | references(config)
    return [name for name in options(arguments) if name not in known and not _is_argument(name, config)]


def _require_read(name: str, config: Mapping[str, Any]) -> None:
    """Reject an option that nothing reads because an overlay has fixed what it usually sets."""
    if name in references(config):
        return
    for content in own_configs().values():
        for key in keys_of(content):
            if at(content, key) == f"@{name}" and at(config, key) is not None:
                raise BundleError(
                    f"--{name} must be read by the configs, but an overlay has set {key}, which usually follows it, "
                    f"to {at(config, key)!r}; pass --{key} instead."
                )


def _is_name(key: str, config: Mapping[str, Any]) -> bool:
    """Whether a key holds a name, which may be ``true``, and is no path, which may be unset."""
    return is_text(key, config) and not key.endswith(PATHS)


def options(arguments: Sequence[str]) -> list[str]:
    """The names of the options among ``arguments``, as Fire and MONAI read them."""
    found = (re.match(r"--([A-Za-z][\w#:-]*)", text) for text in arguments)
    return [match[1].replace("-", "_").replace("::", "#") for match in found if match]


def stray_words(arguments: Iterable[str]) -> list[str]:
    """The words among ``arguments`` that are neither ``--name`` nor the one value after it.

    Fire would read them as positional arguments of MONAI's ``run``, or as further options.
    """
    stray, takes_value = [], False
    for word in arguments:
        if re.match(r"--[A-Za-z]", word):
            takes_value = "=" not in word
        elif takes_value and not re.match(r"-[A-Za-z-]", word):
            takes_value = False
        else:
            stray.append(word)
    return stray


def _is_argument(name: str, config: Mapping[str, Any]) -> bool:
    """Whether an option is an argument of the component in its section."""
    section, _, last = name.rpartition("#")
    parent = at(config, section) if section else None
    return isinstance(parent, Mapping) and "_target_" in parent and last in arguments_of(parent, last)


def _config_files(arguments: Sequence[str]) -> list[Path]:
    """The files that ``--config_file`` names."""
    for position, text in enumerate(arguments):
        match = re.fullmatch(r"--config[-_]file(?:=(.*))?", text, flags=re.DOTALL)
        if match:
            value = match[1] if match[1] is not None else "".join(arguments[position + 1 : position + 2])
            try:
                files = ast.literal_eval(value)
            except (SyntaxError, ValueError):  # a single unquoted name
                files = value
            return [Path(str(file)) for file in ([files] if isinstance(files, str) else files)]
    return []
