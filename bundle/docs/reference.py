"""Write the pages ``commands.md`` and ``keys.md`` from commands and configs: ``python bundle/docs/reference.py``."""

import html
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
CONFIGS = DOCS.parent / "configs"
SPLIT = ("train", "classification", "validate", "pseudo_masks", "cam_segmenter", "run_settings")  # described by part
LONGEST = 50  # characters of a default
BY_SCRIPT = "Written by `python bundle/docs/reference.py`; do not edit."


def config_keys() -> dict[str, dict[str, Any]]:
    """The keys of the bundle's configs: the value of each by the config's name, ``train`` first."""
    found: dict[str, dict[str, Any]] = {}
    files = sorted(CONFIGS.glob("*.json"), key=lambda path: (path.stem != "train", path.stem))
    for path in (path for path in files if path.stem != "metadata"):
        for name, value in json.loads(path.read_text(encoding="utf-8")).items():
            name = name.removeprefix("+")
            parts = value if name in SPLIT and isinstance(value, Mapping) else {}
            for key, part in {name: value, **{f"{name}#{part}": one for part, one in parts.items()}}.items():
                if not key.rpartition("#")[2].startswith("_"):
                    found.setdefault(key, {})[path.stem] = part
    return found


def descriptions() -> dict[str, dict[str, str]]:
    """What each key means, by section: the file ``keys.json``."""
    return json.loads((DOCS / "keys.json").read_text(encoding="utf-8"))


def described_as(key: str) -> str:
    """The key whose description ``key`` shares: a part of ``classification`` is one of ``train`` in stage 1."""
    return key.replace("classification#", "train#", 1)


def keys_page() -> str:
    """The page of the keys."""
    keys = config_keys()
    lines = [
        "# Config keys",
        "",
        f"<!-- {BY_SCRIPT} -->",
        "",
        "Every key can be set on the command line, `--key value`, or by an overlay of your own, which is merged last; "
        "a part of a section by its full key, such as `--train#optimizer#weight_decay 0`. Defaults are those of "
        "`train.json`, or of the first config in the last column, which names the configs that set a key to something "
        "else. `…` is a component or an expression: see the config. Where `classification` has the same part as "
        "`train`, it means the same in stage 1.",
    ]
    for section, entries in descriptions().items():
        lines += ["", f"## {section}", "", "| key | meaning | default | also set by |", "|---|---|---|---|"]
        for key, meaning in entries.items():
            values = keys.get(key) or keys[key.replace("train#", "classification#", 1)]
            first = next(iter(values.values()))
            others = {
                re.sub("^dataset_.*", "dataset_*", name): None for name, value in values.items() if value != first
            }
            others = others or {name: None for name in values if name != "train" and "train" not in values}
            lines.append(f"| `{key}` | {meaning} | {shown(first)} | {', '.join(f'`{name}`' for name in others)} |")
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A value as in JSON, if it is short and plain."""
    text = json.dumps(value, ensure_ascii=False)
    plain = not isinstance(value, (Mapping, list)) or not any(isinstance(one, (Mapping, list)) for one in value)
    expression = isinstance(value, str) and value[:1] in ("$", "@", "%")
    return f"`{text}`" if plain and not expression and not isinstance(value, Mapping) and len(text) <= LONGEST else "…"


def commands_page() -> str:
    """The page of the commands, by Typer's own generator."""
    typer = [sys.executable, "-m", "typer", "scripts.commands.app", "utils", "docs", "--name", "python -m scripts"]
    result = subprocess.run(typer, cwd=DOCS.parent, check=True, capture_output=True, text=True, encoding="utf-8")
    commands = re.split(r"^(?=## )", html.unescape(result.stdout), flags=re.MULTILINE)[1:]
    commands = [re.sub(r"^(#+) `python -m scripts (.*)`$", r"## \2", text, flags=re.MULTILINE) for text in commands]
    introduction = (
        f"# Commands\n\n<!-- {BY_SCRIPT} -->\n\n"
        "`python -m scripts COMMAND` in the folder `bundle` or a run's folder; `weakhisto COMMAND`, once installed, in "
        "any other. `--help` says the same. Hyphens may be underscores, as in MONAI's options.\n\n"
    )
    return introduction + "".join(commands).rstrip() + "\n"


PAGES = {"commands.md": commands_page, "keys.md": keys_page}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (DOCS / page).write_text(write(), encoding="utf-8")
