"""Reject merged settings that MONAI would silently accept: unknown keys, wrong types, impossible numbers."""

import difflib
import inspect
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from monai.bundle import run

from ..errors import BundleError
from ..files.foreign_files import read_json
from .components import find_target
from .run_folder import BUNDLE_ROOT

TRAIN = BUNDLE_ROOT / "configs" / "train.json"
SEE_KEYS = "docs/train.md lists the most common keys, docs/keys.md all of them."
SET_BY_US = ("run_id", "init_id", "final_id", "config_file", "args_file", "bundle_root")  # parameters of MONAI's run
TEXTS = ("_dir", "_file", "_path", "_weights", "_name")
COUNT = re.compile(r"(?:^|_|#)(?:epochs|batch_size|val_interval|accumulation_steps|num_images|threads)$")


def require_known_settings(config: Mapping[str, Any]) -> None:
    """Reject settings that are unknown or unread, also in sections and components, and sections that lost parts."""
    train = own_configs()[TRAIN]
    known = _known_keys(config)
    for name, value in config.items():
        if name in train and isinstance(value, Mapping):
            _require_known_parts(name, value, config, known)
        if name not in known and not isinstance(value, Mapping):
            near = difflib.get_close_matches(name, train, n=1, cutoff=0.8)
            if near:
                raise BundleError(f"{name} must be a key of the configs, but is not; did you mean {near[0]}?")
            others = [path.name for path, content in own_configs().items() if name in content]
            if others:
                raise BundleError(f"{name} must be read by the configs; add configs/{others[0]}, which reads it.")


def require_sections(config: Mapping[str, Any]) -> None:
    """Reject what is no section, or no list, where the bundle's own configs have one, and sections that lost parts."""
    for content in merged_of(config):
        for key in keys_of(content):
            usual, value = at(content, key), at(config, key)
            if value is None or isinstance(value, str) and value[:1] in ("$", "@", "%"):
                continue
            is_section = isinstance(usual, Mapping) and "_target_" not in usual and all(map(str.isidentifier, usual))
            if is_section and not isinstance(value, Mapping):
                raise BundleError(f"`{key}` must be a section with keys of its own, got {value!r:.80}.")
            if isinstance(usual, list) and not isinstance(value, (list, Mapping)):
                raise BundleError(f"`{key}` must be a list, got {value!r:.80}.")
            if is_section and content is own_configs()[TRAIN] and key in content:
                _require_all_parts(key, value, usual)


def _require_all_parts(section: str, value: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Reject a section without one of its ``usual`` keys: an overlay that has the section replaces all of it."""
    lost = sorted(usual.keys() - value.keys() - {"_desc_"})
    if lost:
        given = next((name for name in value if name not in usual), next(iter(value), lost[0]))
        near = [given] if given in usual else difflib.get_close_matches(given, usual, n=1)
        raise BundleError(
            f"`{section}` must have {lost[0]!r} and the rest of its keys, got {value!r:.80}, which replaces the whole "
            f"section; set single values by their full key, such as '{section}#{(near or lost)[0]}'."
        )


def _known_keys(config: Mapping[str, Any]) -> set[str]:
    """The keys of the bundle's own configs that are merged, and those that ``config`` itself reads or refers to."""
    own = [*merged_of(config), *read_by(config)]
    known = {key for content in own for key in keys_of(content)} | references(config)
    for stage in config.get("stages", {}).values():  # a section may also set what the section it is merged into may set
        for below, above in stage.get("sections", {}).items():
            known |= {above + key.removeprefix(below) for key in known if key.startswith(f"{below}#")}
            known |= {below + key.removeprefix(above) for key in known if key.startswith(f"{above}#")}
    return known


def _require_known_parts(section: str, value: Mapping[str, Any], config: Mapping[str, Any], known: set[str]) -> None:
    """Check the settings of a section or a component, and of those nested in it."""
    usual = [found for content in merged_of(config) if isinstance(found := at(content, section), Mapping)]
    if "_target_" not in value and usual and all("_target_" in found for found in usual):
        raise BundleError(
            f"{section} must have a `_target_`, got {dict(value)}, which replaces the whole section; set "
            f"single values by their full key, such as {section}#{next(iter(value), 'key')}."
        )
    is_section = bool(usual) and all(name.isidentifier() for found in usual for name in found)
    for name, child in value.items():
        key = f"{section}#{name}"
        if name.startswith("_"):
            continue
        takes = name in arguments_of(value, name) if "_target_" in value else isinstance(child, Mapping)
        if key not in known and is_section and not takes:
            near = nearest(key, config)
            hint = f"did you mean {near}?" if near else SEE_KEYS
            raise BundleError(f"{key} must be a key of the configs, but is not; {hint}")
        if isinstance(child, Mapping):
            _require_known_parts(key, child, config, known)


def texts_as_numbers(config: Mapping[str, Any]) -> dict[str, float]:
    """Numbers that YAML reads as strings, such as ``1e-4``, by key, where the bundle's own configs have a number."""
    usual, found = usual_values(config), {}
    for key in keys_of(config):
        if isinstance(value := at(config, key), str) and type(usual.get(key)) is float:
            try:
                found[key] = float(value)
            except ValueError:  # an expression, or a mistake
                pass
    return found


def require_own_types(config: Mapping[str, Any]) -> None:
    """Reject settings whose type differs from that of the number or Boolean in the bundle's own configs."""
    rules = {bool: "True or False", int: "a whole number", float: "a number"}
    for key, usual in usual_values(config).items():
        value, kind = at(config, key), type(usual)
        is_found_later = at(value, "_target_") is not None or isinstance(value, str) and value[:1] in ("$", "@", "%")
        if value is None or is_found_later or type(value) is kind or (kind is float and type(value) is int):
            continue
        raise BundleError(f"`{key}` must be {rules[kind]}, got {value!r}; {_source(config, key)} has {usual!r}.")


def is_text(key: str, config: Mapping[str, Any]) -> bool:
    """Whether a key holds a name or a path."""
    usual = (at(content, key) for content in merged_of(config))
    plain = any(isinstance(value, str) and value[:1] not in ("", "$", "@", "%") for value in usual)
    return plain or key.endswith(TEXTS)


def require_texts(config: Mapping[str, Any]) -> None:
    """Reject names and paths that YAML or Python has as numbers, such as ``2024_06_16``."""
    for key, value in config.items():
        if type(value) in (bool, int, float) and is_text(key, config):
            raise BundleError(f"`{key}` must be text, got {value!r}; put it in quotes, as it should read.")


def usual_values(config: Mapping[str, Any]) -> dict[str, bool | int | float]:
    """The numbers and Booleans in the bundle's own configs that are merged, by key."""
    found: dict[str, Any] = {}
    for content in merged_of(config):
        for key in keys_of(content):
            if type(value := _settled(content, key)) in (bool, int, float):
                found.setdefault(key, value)
    return found


def _settled(config: Mapping[str, Any], key: str) -> Any:
    """The value of a key in a config, following references to other keys."""
    value = at(config, key)
    while isinstance(value, str) and re.fullmatch(r"@[\w#]+", value):
        value = at(config, value[1:])
    return value


def is_default(config: Mapping[str, Any], key: str) -> bool:
    """Whether a component's parameter has the value that its target takes anyway."""
    section, _, name = key.rpartition("#")
    target = at(config, f"{section}#_target_")
    found = find_target(target) if isinstance(target, str) else None
    try:
        parameter = inspect.signature(found).parameters.get(name)
    except (TypeError, ValueError):  # no signature to inspect
        return False
    return parameter is not None and parameter.default == _settled(config, key)


@cache
def own_configs() -> dict[Path, dict[str, Any]]:
    """The bundle's own configs by path, train.json first.

    Overlays of data sets lie among them, also those of users: of these, only what train.json has too counts, and a file
    that cannot be read is left out, since reading it where it is merged says what is wrong.
    """
    train = read_json(TRAIN)
    found = {TRAIN: train}
    for path in sorted(set(TRAIN.parent.glob("*.json")) - {TRAIN}):
        try:
            content = read_json(path)
        except BundleError:
            continue
        if path.name.startswith("dataset_") and isinstance(content, Mapping):
            content = {key: value for key, value in content.items() if _is_usual(key, value, train)}
        if isinstance(content, Mapping):
            found[path] = content
    return found


def _is_usual(key: str, value: Any, train: Mapping[str, Any]) -> bool:
    """Whether train.json has a key, with a value of the same kind."""
    usual = train.get(key)
    if usual is None or value is None:
        return key.partition("#")[0] in train or isinstance(value, Mapping)
    numbers = type(usual) in (int, float) and type(value) in (int, float)
    return numbers or isinstance(value, type(usual)) and isinstance(value, bool) == isinstance(usual, bool)


def merged_of(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The bundle's own configs that ``config`` was merged from: those whose keys it has all of."""
    return [
        content
        for content in own_configs().values()
        if all(key.partition("#")[0].lstrip("+") in config for key in content)
    ]


def read_by(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The bundle's own configs that ``config`` names, since it reads them itself."""
    text = json.dumps({key: value for key, value in config.items() if key != "_desc_"}, default=str)
    names = set(re.findall(r"configs/(\w+\.json)", text))
    return [content for path, content in own_configs().items() if path.name in names]


def references(config: Mapping[str, Any]) -> set[str]:
    """The keys to which a config refers."""
    return set(re.findall(r"[@%]([\w#]+)", json.dumps(config, default=str).replace("::", "#")))  # MONAI's own separator


def settings_used(config: Mapping[str, Any], keys: Iterable[str], without: Container[str]) -> dict[str, Any]:
    """The settings that ``keys`` name or refer to, directly or indirectly, by key, unless their section is ``without``.

    Args:
        config: the merged config.
        keys: keys to begin with.
        without: top-level keys to leave out, with what only they refer to.
    """
    found: dict[str, Any] = {}
    waiting = set(keys)
    while waiting:
        key = waiting.pop()
        if key not in found and key.partition("#")[0] not in without:
            found[key] = at(config, key)
            waiting |= references(found[key])
    return found


def keys_of(config: Any, prefix: str = "") -> Iterator[str]:
    """The keys of a config at all levels, as MONAI spells them: ``"train#optimizer#lr"``, ``"train#handlers#0"``."""
    children = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for name, child in children:
        for end in (index for index, letter in enumerate(str(name)) if letter == "#"):  # "train#lr" implies "train"
            yield f"{prefix}{str(name)[:end]}".lstrip("+")
        yield f"{prefix}{name}".lstrip("+")
        yield from keys_of(child, f"{prefix}{name}#")


def nearest(name: str, config: Mapping[str, Any]) -> str | None:
    """The known option closest to an unknown one, from the same section if it exists."""
    section, _, _ = name.rpartition("#")
    parent = at(config, section) if section else config
    if isinstance(parent, Mapping):
        last = name.rpartition("#")[2]
        usual = (at(content, section) for content in merged_of(config) if section)
        names = {*parent, *arguments_of(parent), *(key for part in usual if isinstance(part, Mapping) for key in part)}
        siblings = {key for key in names if key != last and not key.startswith("_")}
        near = difflib.get_close_matches(last, siblings | (set() if section else parameters_of_run()), n=1)
        return f"{section}#{near[0]}" if near and section else near[0] if near else None
    near = difflib.get_close_matches(name, keys_of(config), n=1)
    return near[0] if near else None


def arguments_of(component: Mapping[str, Any], wanted: str = "") -> set[str]:
    """The arguments of a component's ``_target_``, including ``wanted`` if it accepts any keyword."""
    name = component.get("_target_")
    target = find_target(name) if isinstance(name, str) else None
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # no signature to inspect
        return {wanted} if isinstance(name, str) else set()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return {parameter.name for parameter in parameters} | ({wanted} if takes_any else set())


def at(config: Any, key: str) -> Any:
    """The value of a key such as ``"train#handlers#0"`` in a config, nested or flat; ``None`` if there is none."""
    if isinstance(config, list):
        first, _, rest = key.partition("#")
        inside = config[int(first)] if first.isdecimal() and int(first) < len(config) else None
        return at(inside, rest) if rest else inside
    if not isinstance(config, Mapping):
        return None
    if key in config:
        return config[key]
    ends = [index for index, letter in enumerate(key) if letter == "#"]
    found = (at(config[key[:end]], key[end + 1 :]) for end in reversed(ends) if key[:end] in config)
    return next((value for value in found if value is not None), None)


def parameters_of_run() -> set[str]:
    """The parameters of MONAI's own ``run`` command."""
    return {name for name in inspect.signature(run).parameters if name != "override"}


def require_possible_numbers(config: Mapping[str, Any]) -> None:
    """Reject counts below 1, negative learning rates and pixel sizes that are not positive, before anything starts."""
    for key in usual_values(config):
        if re.search(r"(?:^|_|#)mpp$", key) and type(value := at(config, key)) in (int, float) and not value > 0:
            raise BundleError(
                f"`{key}` must be a positive number of micrometres per pixel, got {value!r}; a 20x scan has about 0.5."
            )
        value, least = at(config, key), 1 if COUNT.search(key) else 0
        if (least or re.search(r"(?:^|_|#)lr$", key)) and type(value) in (int, float) and not value >= least:
            raise BundleError(f"`{key}` must be at least {least}, got {value!r}; see {_source(config, key)}.")


def _source(config: Mapping[str, Any], key: str) -> str:
    """The bundle's own config that sets a key."""
    own = [path for path, content in own_configs().items() if content in merged_of(config)]
    return next(f"configs/{path.name}" for path in own if at(own_configs()[path], key) is not None)
