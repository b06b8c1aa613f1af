"""Find the code that configs reach: our modules, the files beside them that they read, and the packages they import."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path

from ..errors import BundleError

MODULE = re.compile(r"\bscripts(?:\.\w+)+")  # in a `_target_` or an expression
PACKAGE = re.compile(r'"_target_": "(\w+)\.')


def reached_files(configs: Sequence[Path], root: Path) -> list[Path]:
    """The files of ``root / "scripts"`` that configs need, directly or through one another's imports.

    Args:
        configs: JSON configs.
        root: the bundle's folder.

    Returns:
        Modules, the ``__init__.py`` of their packages and data files whose names they mention, sorted, relative to
        ``root``.

    Raises:
        BundleError: if a config names something of ``scripts`` that is not there.
    """
    waiting = []
    for config in configs:
        for name in MODULE.findall(config.read_text(encoding="utf-8")):
            found = list(_modules(name.split("."), root))
            if len(found) == 1:  # the package `scripts` alone
                raise BundleError(f"{config} must name modules that exist, got {name!r}; correct it.")
            waiting += found
    reached = set()
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for parts in _own_imports(tree, path.relative_to(root).with_suffix("").parts):
            waiting += _modules(parts, root)
        reached.update(_files_beside(tree, path))
    return sorted(path.relative_to(root) for path in reached)


def _modules(parts: Sequence[str], root: Path) -> Iterator[Path]:
    """The ``__init__.py`` files on the way to a dotted name and, if it is or is in one, the module."""
    folder = root
    for part in parts:
        if (folder / f"{part}.py").is_file():
            yield folder / f"{part}.py"
        folder = folder / part
        if not (folder / "__init__.py").is_file():
            return
        yield folder / "__init__.py"


def _own_imports(tree: ast.Module, module: Sequence[str]) -> Iterator[list[str]]:
    """The dotted names that a module of ours, ``("scripts", "data")``, imports from ``scripts``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = list(module[: -node.level]) if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ([*base, alias.name] for alias in node.names if base[0] == "scripts")
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names if alias.name.split(".")[0] == "scripts")


def _files_beside(tree: ast.Module, path: Path) -> Iterator[Path]:
    """Data files in a module's folder whose names are texts in it, such as a style sheet."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w-]+\.\w+", node.value):
            beside = path.parent / node.value
            if beside.is_file():
                yield beside


def required_packages(configs: Iterable[Path], modules: Iterable[Path]) -> dict[str, str]:
    """The installed version of each distribution that configs name or modules import, by the name pip has for it.

    Raises:
        BundleError: if one is not installed.
    """
    names = {name for config in configs for name in PACKAGE.findall(config.read_text(encoding="utf-8"))}
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    distributions = packages_distributions()
    names -= {"scripts", *sys.stdlib_module_names}
    missing = sorted(names - distributions.keys())
    if missing:
        raise BundleError(
            f"the packages {missing} must be installed, since their versions are written down; install them."
        )
    return {name: version(name) for name in sorted({distributions[name][0] for name in names}, key=str.lower)}
