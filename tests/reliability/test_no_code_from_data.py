"""Nothing that comes in as data is executed: no pickles, no evaluation, no archives; what is opened is limited."""

import ast

import pytest
from conftest import BUNDLE

SOURCES = sorted((BUNDLE / "scripts").rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "yaml", "zipfile", "tarfile", "code"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "import_module",
    "np.load",
    "numpy.load",
    "os.system",
    "os.popen",
    "shutil.unpack_archive",
    "torch.hub.load",
    "torch.jit.load",
    "torch.package.PackageImporter",
}
FOREIGN_FILES = {"torch.load", "Image.open", "load_file", "safetensors.torch.load_file"}  # foreign_files.py has them
OWN_FILES = {("deploy.py", "torch.jit.load")}  # reads back what it has itself just written, and nothing else


def dotted(node):
    """``"a.b.c"`` of a name or an attribute."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(source, name="x.py"):
    """What a module has that could run data: its line and words."""
    found = []
    for node in ast.walk(ast.parse(source)):
        line = f"line {getattr(node, 'lineno', 0)}: "
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"{line}import {module}" for module in modules if module.split(".")[0] in FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        call, options = dotted(node.func), {option.arg: option.value for option in node.keywords}
        if (name, call) in OWN_FILES:
            continue
        if call in FORBIDDEN_CALLS or call.endswith((".extractall", ".unsafe_load")):
            found.append(f"{line}{call}")
        if call in FOREIGN_FILES and name != "foreign_files.py":
            found.append(f"{line}{call} outside foreign_files.py")
        if call == "torch.load" and getattr(options.get("weights_only"), "value", None) is not True:
            found.append(f"{line}torch.load without weights_only=True")
        if getattr(options.get("shell"), "value", False) or getattr(options.get("allow_pickle"), "value", False):
            found.append(f"{line}{call} with a shell or pickles")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(BUNDLE)))
def test_no_module_runs_what_it_reads(path):
    assert offences(path.read_text(encoding="utf-8"), path.name) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import yaml as y",
        "eval('1')",
        "import numpy as np\nnp.load('x')",
        "torch.load('x')",
        "torch.load('x', weights_only=False)",
        "torch.load('x', weights_only=True)",  # must be in foreign_files.py
        "Image.open('x')",
        "subprocess.run('x', shell=True)",
        "archive.extractall()",
        "open_memmap('x', allow_pickle=True)",
    ],
)
def test_the_search_finds(source):
    assert offences(source)


def test_the_search_lets_pass():
    assert offences("torch.load('x', weights_only=True)\nsafetensors.torch.load_file('x')", "foreign_files.py") == []
    assert offences("network.eval()\nre.compile('x')\nnib.load('x')\nsubprocess.run(['x'])") == []
