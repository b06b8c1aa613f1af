"""Find the code that configs use: our modules, the files beside them that they read, and the packages they import."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import packages_distributions, version
from modulefinder import ModuleFinder
from pathlib import Path

from ..errors import BundleError

MODULE = re.compile(r"\bscripts(?:\.\w+)+")  # in a `_target_` or an expression
PACKAGE = re.compile(r'"_target_": "(\w+)\.')


def reached_files(configs: Sequence[Path], root: Path) -> list[Path]:
    """The files of ``root / "scripts"`` that configs need, directly or through imports.

    Args:
        configs: JSON configs.
        root: the bundle's folder.

    Returns:
        Modules, the ``__init__.py`` of their packages and data files whose names they mention, sorted, relative to
        ``root``.

    Raises:
        BundleError: if a config names something in ``scripts`` that does not exist.
    """
    modules = _reached_modules(configs, root).modules.values()
    reached = {Path(module.__file__) for module in modules if module.__file__}  # built-in modules have none
    reached |= {beside for path in reached for beside in _files_beside(path)}
    return sorted(path.relative_to(root) for path in reached)


def _reached_modules(configs: Iterable[Path], root: Path) -> ModuleFinder:
    """What configs import from ``root``: modules found there in ``modules``, all others in ``badmodules``."""
    finder = ModuleFinder(path=[str(root)])
    for config in configs:
        for name in MODULE.findall(config.read_text(encoding="utf-8")):
            with suppress(ImportError):  # the last part is a class or function; the module before it is found
                finder.import_hook(name)
            if not {name, name.rpartition(".")[0]} & finder.modules.keys():
                raise BundleError(f"{config} must name existing modules, got {name!r}; fix the name.")
    return finder


def _files_beside(path: Path) -> Iterator[Path]:
    """Data files in a module's folder whose names occur in it as strings, such as templates."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w-]+\.\w+", node.value):
            beside = path.parent / node.value
            if beside.is_file():
                yield beside


def required_packages(configs: Sequence[Path], root: Path) -> dict[str, str]:
    """The installed version of each distribution that configs name or their modules import, by pip's name for it.

    Args:
        configs: JSON configs.
        root: the bundle's folder.

    Raises:
        BundleError: if one is not installed.
    """
    names = {name for config in configs for name in PACKAGE.findall(config.read_text(encoding="utf-8"))}
    names |= {name.split(".")[0] for name in _reached_modules(configs, root).badmodules}
    distributions = packages_distributions()
    names -= {"scripts", *sys.stdlib_module_names}
    missing = sorted(names - distributions.keys())
    if missing:
        raise BundleError(
            f"the packages {missing} must be installed, since the bundle records their versions; install them."
        )
    return {name: version(name) for name in sorted({distributions[name][0] for name in names}, key=str.lower)}
