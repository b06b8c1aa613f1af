"""Settings that MONAI would take in silence: keys that no config knows, options that nothing reads, wrong types."""

import ast
import difflib
import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ConfigParser, run
from monai.bundle.config_item import ComponentLocator

from ..errors import BundleError
from ..files.foreign_files import read_json
from .run_folder import BUNDLE_ROOT

TRAIN = BUNDLE_ROOT / "configs" / "train.json"
MEANT = {  # words that are text to MONAI, and true as such
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
    """Check the merged config, and the options of the ``python -m monai.bundle run`` that is calling, if one is.

    Args:
        config: the merged config, with what the options set.

    Raises:
        BundleError: if a setting has another type than in the bundle's own configs, a section has a setting that
            nothing knows, or an option sets nothing, or is a word such as ``false``, which MONAI would take as text.
    """
    if Path(sys.argv[0]).match("monai/bundle/__main__.py"):
        _require_options(config)
    _require_known_settings(config)
    _require_own_types(config)


def require_known_keys(names: Iterable[str], config: Mapping[str, Any]) -> None:
    """Refuse settings that are no keys of ``config``, the merged one, and that nothing in it would read.

    Raises:
        BundleError: for the first one; with the nearest key.
    """
    present = set(keys_of(config))
    for name in unknown_options([f"--{name}" for name in names if name not in present], config):
        near = nearest(name, config)
        hint = f"did you mean {near!r}?" if near else "see the configs."
        raise BundleError(f"{name!r} must be a key of the configs, and is none; {hint}")


def _require_options(config: Mapping[str, Any]) -> None:
    """Check the options of the command line."""
    for name in unknown_options(sys.argv[1:], config):
        others = [path.name for path, content in _own_configs().items() if name in keys_of(content)]
        if others:
            raise BundleError(f"--{name} must be a key of the configs; add configs/{others[0]}, which has it, to them.")
        near = nearest(name, config)
        hint = f"did you mean --{near}?" if near else "see the keys of the configs."
        raise BundleError(f"--{name} must be a key of the configs, and is none; {hint}")
    for name in options(sys.argv[1:]):
        _require_read(name, config)
        value = _at(config, name)
        if isinstance(value, str) and value.lower() in MEANT:
            meant = MEANT[value.lower()]
            raise BundleError(
                f"--{name} must be a value as Python writes it, got the text {value!r}; give --{name} {meant}."
            )
        if _is_text(name, config) and not isinstance(value, (str, Mapping, type(None))):
            raise BundleError(
                f"--{name} must be text, but MONAI's command line takes what was given for the value {value!r}; put it "
                f"into two pairs of quotes, --{name} '\"…\"', or use `python -m scripts train`, which keeps it."
            )


def unknown_options(arguments: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """The options among ``arguments`` that set nothing.

    An option is known whose key stands in one of the bundle's configs that are merged, or that ``config`` reads itself,
    or in one of those that ``--config_file`` names; to which another key refers; or that is an argument of the
    ``_target_`` it would be given to.

    Args:
        arguments: of the command line, for instance ``["run", "--seed", "1", "--train#lr=0.1"]``.
        config: the merged config, with what the options set.
    """
    read = set(re.findall(r"configs/(\w+\.json)", json.dumps({key: config[key] for key in config if key != "_desc_"})))
    contents = [*_merged(config), *(content for path, content in _own_configs().items() if path.name in read)]
    contents += [ConfigParser.load_config_file(str(path)) for path in _config_files(arguments) if path.is_file()]
    known = {key for content in contents for key in keys_of(content)} | _parameters() | _references(config)
    return [name for name in options(arguments) if name not in known and not _is_argument(name, config)]


def _require_known_settings(config: Mapping[str, Any]) -> None:
    """Refuse settings that nothing knows in the sections of train.json, and those on top that look like a slip."""
    train = _own_configs()[TRAIN]
    known = {key for content in _own_configs().values() for key in keys_of(content)} | _references(config)
    for stage in config.get("stages", {}).values():  # what one section may set, those that are laid on it may too
        for below, above in stage.get("sections", {}).items():
            known |= {above + key.removeprefix(below) for key in known if key.startswith(f"{below}#")}
            known |= {below + key.removeprefix(above) for key in known if key.startswith(f"{above}#")}
    sections = {
        key: value
        for key, value in train.items()
        if isinstance(value, Mapping) and "_target_" not in value and all(name.isidentifier() for name in value)
    }
    for section in sections.keys() & config.keys():
        for name, value in config[section].items() if isinstance(config[section], Mapping) else ():
            key = f"{section}#{name}"
            if key in known or name.startswith("_") or isinstance(value, Mapping):
                continue
            near = nearest(key, config)
            hint = f"did you mean {near}?" if near else "see the keys of the configs."
            raise BundleError(f"{key} must be a key of the configs, and is none; {hint}")
    for name, value in config.items():
        if name not in known and not isinstance(value, Mapping):
            near = difflib.get_close_matches(name, train, n=1, cutoff=0.8)
            if near:
                raise BundleError(f"{name} must be a key of the configs, and is none; did you mean {near[0]}?")


def _require_read(name: str, config: Mapping[str, Any]) -> None:
    """Refuse an option that nothing reads, since an overlay has fixed what it usually sets."""
    if name in _references(config):
        return
    for content in _own_configs().values():
        for key in keys_of(content):
            if _at(content, key) == f"@{name}" and _at(config, key) is not None:
                raise BundleError(
                    f"--{name} must be read by the configs, but an overlay has fixed what it sets, {key}, to "
                    f"{_at(config, key)!r}; give --{key}."
                )


def _is_text(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a key is a name or a path."""
    usual = (_at(content, name) for content in _merged(config))
    plain = any(isinstance(value, str) and value[:1] not in ("", "$", "@", "%") for value in usual)
    return plain or name.endswith(("_dir", "_file", "_path", "_weights", "_name"))


def texts_as_numbers(config: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that YAML takes as text, such as ``1e-4``, by key, where the bundle's own configs have a number."""
    usual, found = _usual_values(config), {}
    for key in keys_of(config):
        if isinstance(value := _at(config, key), str) and type(usual.get(key)) is float:
            try:
                found[key] = float(value)
            except ValueError:  # an expression, or a mistake
                pass
    return found


def _require_own_types(config: Mapping[str, Any]) -> None:
    """Refuse numbers and truth values that have other types than in the bundle's own configs."""
    rules = {bool: "True or False", int: "a whole number", float: "a number"}
    for key, usual in _usual_values(config).items():
        value, kind = _at(config, key), type(usual)
        is_found_later = _at(value, "_target_") is not None or isinstance(value, str) and value[:1] in ("$", "@", "%")
        if value is None or is_found_later or type(value) is kind or (kind is float and type(value) is int):
            continue
        raise BundleError(
            f"`{key}` must be {rules[kind]}, got {value!r}; the bundle's own configs have {usual!r} there."
        )


def _usual_values(config: Mapping[str, Any]) -> dict[str, bool | int | float]:
    """The numbers and truth values of the bundle's own configs that are merged, by key."""
    found: dict[str, Any] = {}
    for content in _merged(config):
        for key in keys_of(content):
            if type(value := _settled(content, key)) in (bool, int, float):
                found.setdefault(key, value)
    return found


def _settled(config: Mapping[str, Any], key: str) -> Any:
    """What stands in a config under a key, references to other keys followed."""
    value = _at(config, key)
    while isinstance(value, str) and re.fullmatch(r"@[\w#]+", value):
        value = _at(config, value[1:])
    return value


@cache
def _own_configs() -> dict[Path, dict[str, Any]]:
    """The bundle's own configs by their paths, train.json first."""
    return {path: read_json(path) for path in (TRAIN, *sorted((set(TRAIN.parent.glob("*.json")) - {TRAIN})))}


def _merged(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The bundle's own configs that ``config`` was merged of: those all of whose keys it has."""
    return [
        content
        for content in _own_configs().values()
        if all(key.partition("#")[0].lstrip("+") in config for key in content)
    ]


def _references(config: Mapping[str, Any]) -> set[str]:
    """The keys that a config refers to."""
    return set(re.findall(r"[@%]([\w#]+)", json.dumps(config, default=str).replace("::", "#")))  # MONAI's own sign


def options(arguments: Sequence[str]) -> list[str]:
    """The names of the options among ``arguments``, as Fire reads them."""
    found = (re.match(r"--([A-Za-z][\w#-]*)", text) for text in arguments)
    return [match[1].replace("-", "_") for match in found if match]


def keys_of(config: Any, prefix: str = "") -> Iterator[str]:
    """The keys of a config on all levels, in MONAI's spelling: ``"train#optimizer#lr"``, ``"train#handlers#0"``."""
    children = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for name, child in children:
        for end in (index for index, letter in enumerate(str(name)) if letter == "#"):  # "train#lr" has "train" too
            yield f"{prefix}{str(name)[:end]}".lstrip("+")
        yield f"{prefix}{name}".lstrip("+")
        yield from keys_of(child, f"{prefix}{name}#")


def nearest(name: str, config: Mapping[str, Any]) -> str | None:
    """The known option that is most like an unknown one: of the same section, if there is such a section."""
    section, _, _ = name.rpartition("#")
    parent = _at(config, section) if section else config
    if isinstance(parent, Mapping):
        last = name.rpartition("#")[2]
        siblings = {key for key in (*parent, *_arguments(parent)) if key != last and not key.startswith("_")}
        near = difflib.get_close_matches(last, siblings | (set() if section else _parameters()), n=1)
        return f"{section}#{near[0]}" if near and section else near[0] if near else None
    near = difflib.get_close_matches(name, keys_of(config), n=1)
    return near[0] if near else None


def _is_argument(name: str, config: Mapping[str, Any]) -> bool:
    """Whether an option is an argument of the component in its section."""
    section, _, last = name.rpartition("#")
    parent = _at(config, section) if section else None
    return isinstance(parent, Mapping) and "_target_" in parent and last in _arguments(parent, last)


def _arguments(component: Mapping[str, Any], wanted: str = "") -> set[str]:
    """The arguments that a component's ``_target_`` takes, ``wanted`` among them if it takes any."""
    name = component.get("_target_")
    target = locate(name) if isinstance(name, str) and "." in name else None
    if target is None and isinstance(name, str):
        target = locate(found) if isinstance(found := ComponentLocator().get_component_module_name(name), str) else None
        target = getattr(target, name, None)
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # nothing that tells its arguments
        return {wanted} if isinstance(name, str) else set()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return {parameter.name for parameter in parameters} | ({wanted} if takes_any else set())


def _at(config: Any, key: str) -> Any:
    """What stands in a config under a key such as ``"train#handlers#0"``; ``None`` if nothing."""
    for part in key.split("#"):
        if isinstance(config, Mapping) and part in config:
            config = config[part]
        elif isinstance(config, list) and part.isdecimal() and int(part) < len(config):
            config = config[int(part)]
        else:
            return None
    return config


def _config_files(arguments: Sequence[str]) -> list[Path]:
    """The files that ``--config_file`` names."""
    for position, text in enumerate(arguments):
        match = re.fullmatch(r"--config[-_]file(?:=(.*))?", text, flags=re.DOTALL)
        if match:
            value = match[1] if match[1] is not None else "".join(arguments[position + 1 : position + 2])
            try:
                files = ast.literal_eval(value)
            except (SyntaxError, ValueError):  # a single name, without quotes
                files = value
            return [Path(str(file)) for file in ([files] if isinstance(files, str) else files)]
    return []


def _parameters() -> set[str]:
    """What MONAI's command itself takes."""
    return {name for name in inspect.signature(run).parameters if name != "override"}
