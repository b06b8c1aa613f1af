"""The pages: files that they name exist, commands have their options, examples run, messages are those of the code."""

import ast
import configparser
import os
import re
import shlex
import shutil
import sys
import textwrap
from pathlib import Path

import fire
import monai.bundle
import pytest
from conftest import BUNDLE, TINY
from monai.bundle import ConfigParser
from typer.core import TyperGroup
from typer.main import get_command

from scripts.commands.app import app
from scripts.commands.monai_run import MonaiRun

ROOT = BUNDLE.parent
DOCS = {path.stem: path for path in sorted((BUNDLE / "docs").glob("*.md"))}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", BUNDLE / "models" / "README.md", *DOCS.values()]
FOLLOWED = [DOCS[name] for name in ("start", "train", "use", "adapt", "share")]  # in this order
RUN_HERE = [ROOT / "README.md", *FOLLOWED]
RUN_ELSEWHERE = [ROOT / "CONTRIBUTING.md"]  # by test_contributing.py
BLOCK = re.compile(r"(?:^ *<!-- ([^\n]*) -->\n)?^( *)```bash\n(.*?)^\2```$", flags=re.DOTALL | re.MULTILINE)
NOTE = re.compile(r"not run: .+|(label )?test command")


def blocks(page):
    """Each block of commands on a page: what the comment before it says, or ``""``, and its lines."""
    return [(note, textwrap.dedent(text).splitlines()) for note, _, text in BLOCK.findall(page.read_text("utf-8"))]


def commands(page, only_run=False):
    """The commands of a page's blocks, and of the codes in its text that have options."""
    found = [part for note, lines in blocks(page) if not (only_run and note) for line in lines for part in split(line)]
    if not only_run:
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        codes = (" ".join(code.split()) for code in re.findall(r"`(python -m [^`]*)`", text))
        found += [code for code in codes if " --" in code and "..." not in code and "--help" not in code]
    return found


def split(line):
    """The commands of a line."""
    return [part.strip() for part in line.partition("  # ")[0].split("&&") if part.strip()]


def all_commands(start):
    for page in PAGES:
        for command in commands(page):
            if start in command:
                yield pytest.param(shlex.split(command.split(start, 1)[1]), id=f"{page.stem}: {command[:90]}")


def test_every_block_is_run_or_says_why_not():
    for page in PAGES:
        for note, lines in blocks(page):
            said = bool(NOTE.fullmatch(note)) if note else page in [*RUN_HERE, *RUN_ELSEWHERE]
            assert said, f"{page.name}: put `<!-- not run: REASON -->` before\n{lines[0]}"
    assert sum(page.read_text("utf-8").count("```bash") for page in PAGES) == sum(len(blocks(page)) for page in PAGES)


@pytest.mark.parametrize("words", list(all_commands("-m monai.bundle run")))
def test_the_runs_of_the_pages_name_what_there_is(words, monkeypatch):
    monkeypatch.chdir(BUNDLE)
    run_id = words.pop(0) if not words[0].startswith("--") else "run"
    options = dict(zip(words[::2], words[1::2], strict=True))
    files = options.pop("--config_file")
    files = ast.literal_eval(files) if files.startswith("[") else [files]
    parser = ConfigParser()
    parser.read_config([file for file in files if not file.startswith("FOLDER/")])  # which the reader writes
    assert isinstance(parser[run_id], list)
    for name in options:
        assert name.startswith("--") and name[2:] in parser, name


@pytest.mark.parametrize("words", list(all_commands("python -m scripts ")))
def test_the_commands_of_the_pages_have_their_arguments(words):
    command = get_command(app)
    while isinstance(command, TyperGroup):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words)  # which refuses what it does not know


def test_the_extras_of_the_pages_are_there():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    named = {
        name
        for page in PAGES
        for found in re.findall(r"\.\[([\w,]+)\]", page.read_text("utf-8"))
        for name in found.split(",")
    }
    assert {"lite", "test", "label", "export", "docs"} <= named <= set(setup["options.extras_require"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_the_files_that_a_page_names_are_there(page):
    names = re.findall(r"(?<![\w./])(?:tests|bundle/docs|scripts|weakhisto)/[\w/]+\.\w+", page.read_text("utf-8"))
    new = {"scripts/losses/smoothed_label.py", "scripts/networks/mobilenet_cams.py"}  # which the reader writes
    assert [
        name for name in names if not ((ROOT / name).exists() or (BUNDLE / name).exists()) and name not in new
    ] == []


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_links_from_the_root_lead_to_pages_and_their_headings(page):
    links = re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text("utf-8"))
    assert len(links) >= 3
    for file, anchor in links:
        assert (ROOT / file).exists(), file
        headings = re.findall(r"^#+ (.+)$", (ROOT / file).read_text("utf-8"), flags=re.M) if anchor else []
        names = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in names, f"{file}#{anchor}"


def test_the_readme_is_a_front_door():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.split()) <= 900 and text[: text.index("## More")].count("\n") <= 60


def messages():
    """The texts of the code, with ``…`` for values, in one line each."""
    for path in (BUNDLE / "scripts").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_messages_of_the_page_of_troubles_are_those_of_the_code():
    _, *sections = DOCS["trouble"].read_text("utf-8").split("\n## ")
    rows = [line for part in sections if not part.startswith("Python") for line in part.splitlines() if line[:1] == "|"]
    quoted = [code for row in rows for code in re.findall(r"`([^`]+)`", row.split("|")[1]) if " " in code]
    assert len(quoted) >= 15
    said = list(messages())
    for code in quoted:
        parts = [part.strip(" '") for part in code.split("…")]
        assert any(
            all(part.replace("'", "") in text.replace("'", "").replace("`", "") for part in parts) for text in said
        ), code


def test_the_examples_of_the_page_of_python_run_as_they_stand(finished_run, demo_dir, tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").symlink_to(BUNDLE / "configs")
    shutil.copytree(demo_dir, tmp_path / "demo")
    shutil.copytree(finished_run, tmp_path / "output" / "demo_esfan_lite")  # the run that the page's training makes
    monkeypatch.chdir(tmp_path)
    page = DOCS["python"].read_text("utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(examples) == page.count("```python") >= 5
    exec(compile("\n".join(examples), "python.md", "exec"), {})
    lines = [line for line in capsys.readouterr().out.splitlines() if "INFO" not in line]
    shares = [line.split() for line in lines if line.startswith("demo-test-")]
    assert [name for name, _ in shares] == ["demo-test-0000.png", "demo-test-0001.png"]
    mean_iou, dice = map(float, lines[-1].split())
    assert mean_iou == pytest.approx(0.14, abs=0.01) and dice == pytest.approx(0.25, abs=0.02)  # of random masks


# --- the pages' commands, in this process, on patches of 64 px with two epochs


@pytest.fixture(scope="module")
def place(tmp_path_factory, finished_run, demo_dir, few_shot_dir):
    """A folder like ``bundle`` with small data, and the run of the demo."""
    folder = tmp_path_factory.mktemp("pages")
    for part in ("configs", "scripts"):
        (folder / part).symlink_to(BUNDLE / part)
    for data in (demo_dir, few_shot_dir):
        shutil.copytree(data, folder / "data" / data.name)
    shutil.copytree(finished_run, folder / "output" / "demo_esfan_lite")
    return folder


@pytest.fixture
def follow(place, monkeypatch):
    """Run a command as a shell in ``place`` would, with small data and few epochs where it trains."""

    def run_monai(words):
        monkeypatch.setattr(sys, "argv", [str(Path("monai", "bundle", "__main__.py")), "run", *words])
        fire.Fire({"run": monai.bundle.run}, command=["run", *words])

    def start(run):
        os.chdir(run.root)
        run_monai(run.command[4:])

    def small(words):
        if "demo_lab_b" in words or any("train.json" in word for word in words) or words[0] == "train":
            data = place / "data" / ("demo_lab_b" if "demo_lab_b" in words else "demo")
            settings = {**TINY, "dataset_dir": data, "device": "cpu"}
            return [*words, *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]
        return words

    def follow(command):
        monkeypatch.chdir(place)
        words = shlex.split(command)
        if words[:3] == ["python", "-m", "scripts"]:
            app(small(words[3:]), standalone_mode=False)
        elif words[:4] == ["python", "-m", "monai.bundle", "run"]:
            run_monai(small(words[4:]))
        else:
            assert words == ["cd", "bundle"], f"a command that is run by no test: {command}"

    monkeypatch.setattr(MonaiRun, "start", start)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # restored, since the configs replace it
    return follow


MADE = {
    "start": ["results/demo/masks/demo-test-0000.png"],
    "train": ["output/demo_ibdr_lite/report.html", "output/demo_esfan_lite_second_round/report.html"],
    "adapt": ["output/demo_lab_b_esfan_lite_adapted_masks_5_0/scores/adaptation.csv"],
    "share": ["dist/esfan_histopathology_segmentation.zip"],
}


@pytest.mark.e2e
@pytest.mark.parametrize("page", RUN_HERE, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_in_its_order(page, follow, place):
    todo = commands(page, only_run=True)
    assert todo
    for command in todo:
        follow(command)
    for name in MADE.get(page.stem, []):
        assert (place / name).exists(), name
