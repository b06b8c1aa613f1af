"""Who may import whom: modules of a floor import from their own floor and those below it."""

import ast

import pytest
from conftest import BUNDLE

SCRIPTS = BUNDLE / "scripts"
FLOORS = [
    ["errors", "files", "losses", "networks"],
    ["runs", "training"],
    ["data", "weights"],
    ["inference", "pseudo_masks", "slides"],
    ["evaluation", "label_app", "sharing"],
    ["commands"],
    ["__main__"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(path for path in SCRIPTS.rglob("*.py") if path != SCRIPTS / "__init__.py")


def imported_rooms(path):
    """The rooms that a module of ours imports from, each with the line."""
    package = ["scripts", *path.relative_to(SCRIPTS).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            imported = [[*base, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            imported = [alias.name.split(".") for alias in node.names]
        else:
            continue
        for names in imported:
            if names[0] == "scripts":
                yield names[1], node.lineno


@pytest.mark.parametrize("room", FLOOR)
def test_imports_run_downwards(room):
    for path in MODULES:
        name = path.relative_to(SCRIPTS)
        if name.with_suffix("").parts[0] != room:
            continue
        for other, line in imported_rooms(path):
            assert FLOOR[other] <= FLOOR[room], f"{name}:{line}: {room} must not import from {other}, a floor above it."


def test_every_room_says_what_lives_there():
    folders = {path.parent for path in MODULES} | {SCRIPTS}
    for folder in folders:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= 15, f"{folder} has {len(modules)} modules."
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))), folder
    assert {path.name for path in SCRIPTS.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}
    assert {path.relative_to(SCRIPTS).with_suffix("").parts[0] for path in MODULES} == set(FLOOR)
