import ast
import re
import shlex
import shutil

import pytest
from conftest import BUNDLE
from monai.bundle import ConfigParser
from typer.core import TyperGroup
from typer.main import get_command

from scripts.commands.app import app

PAGES = [
    BUNDLE.parent / "README.md",
    BUNDLE.parent / "CONTRIBUTING.md",
    BUNDLE / "docs" / "README.md",
    BUNDLE / "models" / "README.md",
]


def commands(start):
    """The words after ``start`` in each command of the pages."""
    for page in PAGES:
        for line in page.read_text().splitlines():
            for part in re.split(r"&&|`", line):
                if start in part and "..." not in part:
                    yield pytest.param(shlex.split(part.split(start, 1)[1]), id=part.strip()[:100])


@pytest.mark.parametrize("words", list(commands("-m monai.bundle run")))
def test_the_runs_of_the_pages_name_what_there_is(words, monkeypatch):
    monkeypatch.chdir(BUNDLE)
    run_id = words.pop(0) if not words[0].startswith("--") else "run"
    options = dict(zip(words[::2], words[1::2]))
    files = options.pop("--config_file").replace("dataset_mydata", "dataset_demo")  # which the reader makes
    parser = ConfigParser()
    parser.read_config(ast.literal_eval(files) if files.startswith("[") else files)
    assert isinstance(parser[run_id], list)
    for name in options:
        assert name.startswith("--") and name[2:] in parser, name


@pytest.mark.parametrize("page", [*PAGES, *sorted((BUNDLE / "docs").glob("*.md"))], ids=lambda page: page.stem)
def test_the_files_that_a_page_names_are_there(page):
    names = re.findall(r"(?<![\w./])(?:tests|bundle/docs|scripts|weakhisto)/[\w/]+\.\w+", page.read_text())
    new = {"scripts/losses/smoothed_label.py", "scripts/networks/mobilenet_cams.py"}  # which the reader writes
    assert [
        name
        for name in names
        if not any((root / name).exists() for root in (BUNDLE.parent, BUNDLE)) and name not in new
    ] == []


def our_commands():
    """The words after ``python -m scripts`` in each line of a block, and in each code in a text that has arguments."""
    for page in [*PAGES, *sorted((BUNDLE / "docs").glob("*.md"))]:
        text = page.read_text()
        lines = [
            line.strip()
            for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
            for line in block.splitlines()
        ]
        codes = re.findall(r"`(python -m scripts [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for line in [
            *lines,
            *(" ".join(code.split()) for code in codes if "..." not in code and " --" in code and "--help" not in code),
        ]:
            if line.startswith("python -m scripts "):
                yield pytest.param(shlex.split(line)[3:], id=line[:100])


@pytest.mark.parametrize("words", list(our_commands()))
def test_the_commands_of_the_pages_have_their_arguments(words):
    command = get_command(app)
    while isinstance(command, TyperGroup):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words)  # which refuses what it does not know


def test_the_examples_of_the_api_page_run_as_they_stand(finished_run, demo_dir, tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").symlink_to(BUNDLE / "configs")
    shutil.copytree(demo_dir, tmp_path / "demo")
    shutil.copytree(finished_run, tmp_path / "output" / "demo_esfan_lite")  # the run that the page's training makes
    monkeypatch.chdir(tmp_path)
    page = (BUNDLE / "docs" / "api.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(examples) == page.count("```python") >= 5
    exec(compile("\n".join(examples), "api.md", "exec"), {})
    lines = [line for line in capsys.readouterr().out.splitlines() if "INFO" not in line]
    shares = [line.split() for line in lines if line.startswith("demo-test-")]
    assert [name for name, _ in shares] == ["demo-test-0000.png", "demo-test-0001.png"]
    mean_iou, dice = map(float, lines[-1].split())
    assert mean_iou == pytest.approx(0.14, abs=0.01) and dice == pytest.approx(0.25, abs=0.02)  # of random masks
