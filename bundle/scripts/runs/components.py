"""Check the components of users' overlays: their targets exist, and take the parameters given."""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from pydoc import ErrorDuringImport, locate
from typing import Any

from monai.bundle.config_item import ComponentLocator

from ..errors import BundleError

SHOWN = 12


def require_components(config: Mapping[str, Any], own: list[Mapping[str, Any]]) -> None:
    """Reject components of a merged config that cannot be built: unknown targets, unknown or missing parameters.

    Args:
        config: the merged config.
        own: the bundle's own configs, whose components are not checked again.
    """
    trusted = {_form(component) for content in own for _, component in _components(content)}
    for key, component in _components(config):
        if _form(component) not in trusted and not component.get("_disabled_"):
            require_target(key, component["_target_"])
            require_parameters(key, component)


def _components(value: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every component with a target by name, with its key."""
    children = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, Mapping) and isinstance(target := value.get("_target_"), str) and target[:1] not in "$@%":
        yield key, value
    for name, child in children:
        yield from _components(child, f"{key}#{name}" if key else str(name))


def _form(component: Mapping[str, Any]) -> tuple[str, frozenset[str]]:
    return component["_target_"], frozenset(component)


def find_target(name: str) -> Any:
    """What a ``_target_`` names, by its path or, within MONAI, by its name alone; ``None`` if nothing."""
    try:
        found = locate(name) if "." in name else None
        if found is None and "." not in name:
            modules = _locator().get_component_module_name(name)  # several where MONAI re-exports it
            module = modules[0] if isinstance(modules, list) else modules
            found = getattr(locate(module), name, None) if module else None
    except ErrorDuringImport:  # a mistake within the module
        return None
    return found


def require_target(key: str, name: str) -> None:
    """Raise a ``BundleError`` unless the ``_target_`` of the component ``key`` exists, with the closest name."""
    if find_target(name) is not None:
        return
    module, _, last = name.rpartition(".")
    try:
        place = locate(module) if module else None
    except ErrorDuringImport as error:
        raise BundleError(f"`{key}#_target_` must name a class or function, got {name!r}; {error}") from error
    while place is None and "." in module:  # the longest part that exists
        module, _, last = module.rpartition(".")
        place = locate(module)
    names = dir(place) if place is not None else () if "." in name else _locator()._components_table
    near = difflib.get_close_matches(last, [one for one in names if not one.startswith("_")], n=1)
    near = [f"{module}.{near[0]}" if place is not None else near[0]] if near else []
    hint = f"did you mean {near[0]!r}?" if near else "check the spelling, or install what it is part of."
    raise BundleError(f"`{key}#_target_` must name a class or function that exists, got {name!r}; {hint}")


def require_parameters(key: str, component: Mapping[str, Any]) -> None:
    """Raise a ``BundleError`` unless the target of the component ``key`` takes its parameters, and needs no others."""
    name = component["_target_"]
    try:
        parameters = inspect.signature(find_target(name)).parameters
    except (TypeError, ValueError):  # no signature to inspect
        return
    kinds = {parameter.kind for parameter in parameters.values()}
    given = {one for one in component if not (one.startswith("_") and one.endswith("_"))}
    unknown = sorted(given - parameters.keys())
    takes = ", ".join(list(parameters)[:SHOWN]) + (", ..." if len(parameters) > SHOWN else "")
    if unknown and inspect.Parameter.VAR_KEYWORD not in kinds:
        near = difflib.get_close_matches(unknown[0], parameters, n=1)
        hint = f"did you mean {near[0]!r}? It takes" if near else "it takes"
        raise BundleError(f"`{key}` must have only parameters of {name}, got {unknown[0]!r}; {hint} {takes or 'none'}.")
    required = [
        one.name
        for one in parameters.values()
        if one.default is one.empty and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    missing = [one for one in required if one not in given]
    if missing and component.get("_mode_", "default") == "default":
        raise BundleError(f"`{key}` must have the parameter {missing[0]!r} of {name}; it takes {takes}.")


@cache
def _locator() -> ComponentLocator:
    return ComponentLocator()  # scans all of MONAI once
