"""Find the packages that an exported bundle needs, with their installed versions."""

import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from modulefinder import ModuleFinder
from pathlib import Path

from ..errors import BundleError

MODULE = re.compile(r"\bscripts(?:\.\w+)+")  # in a `_target_` or an expression
PACKAGE = re.compile(r'"_target_": "(\w+)\.')


def required_packages(configs: Sequence[Path], root: Path, always: Iterable[str] = ()) -> dict[str, str]:
    """The installed version of each distribution that is needed, by pip's name for it.

    Args:
        configs: JSON configs; what they name, or their modules import, is needed.
        root: the bundle's folder, with the modules in ``scripts``.
        always: distributions that are needed whatever the configs say.

    Raises:
        BundleError: if one is not installed, or a config names something in ``scripts`` that does not exist.
    """
    names = {name for config in configs for name in PACKAGE.findall(config.read_text(encoding="utf-8"))}
    names |= {name.split(".")[0] for name in _imported_modules(configs, root).badmodules}
    names -= {"scripts", *sys.stdlib_module_names}
    distributions, versions, missing = packages_distributions(), {}, []
    for name in sorted({distributions.get(name, [name])[0] for name in names} | set(always), key=str.lower):
        try:
            found = distribution(name)
            versions[found.metadata["Name"]] = found.version
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        raise BundleError(
            f"the packages {missing} must be installed, since the bundle records their versions; install them."
        )
    return versions


def _imported_modules(configs: Iterable[Path], root: Path) -> ModuleFinder:
    """What configs import from ``root``: modules found there in ``modules``, all others in ``badmodules``."""
    finder = ModuleFinder(path=[str(root)])
    for config in configs:
        for name in MODULE.findall(config.read_text(encoding="utf-8")):
            with suppress(ImportError):  # the last part is a class or function; the module before it is found
                finder.import_hook(name)
            if not {name, name.rpartition(".")[0]} & finder.modules.keys():
                raise BundleError(f"{config} must name existing modules, got {name!r}; fix the name.")
    return finder
