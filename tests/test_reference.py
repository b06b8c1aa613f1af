"""The pages of commands and config keys, which ``bundle/docs/reference.py`` writes."""

import importlib.util
import json
import re

import pytest
import typer.main
from conftest import BUNDLE
from typer.core import TyperGroup

from scripts.commands.app import app

DOCS = BUNDLE / "docs"
spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


def test_every_key_has_a_meaning_and_every_meaning_a_key():
    found = reference.config_keys()
    described = [key for section in reference.descriptions().values() for key in section]
    assert {reference.described_as(key) for key in found} - set(described) == set(), "describe them in docs/keys.json"
    assert set(described) - {reference.described_as(key) for key in found} == set(), "remove them from docs/keys.json"
    assert len(described) == len(set(described))


def test_keys_are_those_of_all_configs_and_of_the_parts_that_are_described_singly(tmp_path, monkeypatch):
    train = {"_desc_": "d", "seed": 0, "train": {"_desc_": "d", "lr": 0.1}, "network": {"_target_": "t", "size": 1}}
    (tmp_path / "train.json").write_text(json.dumps(train))
    (tmp_path / "lite.json").write_text(json.dumps({"+imports": [], "train#lr": 0.2, "seed": 1}))
    monkeypatch.setattr(reference, "CONFIGS", tmp_path)
    assert reference.config_keys() == {
        "seed": {"train": 0, "lite": 1},
        "train": {"train": {"_desc_": "d", "lr": 0.1}},
        "train#lr": {"train": 0.1, "lite": 0.2},
        "network": {"train": {"_target_": "t", "size": 1}},
        "imports": {"lite": []},
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "`0.5`"), (None, "`null`"), ([1, 2], "`[1, 2]`"), ("$1 + 1", "…"), ({"a": 1}, "…"), (["x" * 50], "…")],
)
def test_defaults_are_shown_if_they_are_short_and_plain(value, text):
    assert reference.shown(value) == text


def test_the_page_of_keys_is_up_to_date():
    text = (DOCS / "keys.md").read_text(encoding="utf-8")
    assert text == reference.keys_page(), "run python bundle/docs/reference.py"
    assert re.search(r"^\| `seed` \| .+ \| `0` \|", text, flags=re.MULTILINE)


def commands_of(group, prefix=""):
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands_of(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


@pytest.mark.parametrize(("name", "command"), list(commands_of(typer.main.get_command(app))))
def test_the_page_of_commands_has_every_option_with_its_meaning(name, command):
    _, *sections = (DOCS / "commands.md").read_text(encoding="utf-8").split("\n## ")
    (section,) = [section for section in sections if section.startswith(f"{name}\n")]
    lines = [line for line in section.splitlines() if line.startswith("* `")]
    for parameter in command.params:
        spelled = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar or parameter.name
        said = [line for line in lines if line.startswith((f"* `{spelled}", f"* `[{spelled}]"))]
        assert said and (parameter.help or "") in said[0], f"{name} {spelled}: run python bundle/docs/reference.py"
    assert len(lines) == len({*command.params}) + 1, "run python bundle/docs/reference.py"  # and --help
