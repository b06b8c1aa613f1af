"""Nothing that comes in as data is executed: ruff's rules in ``pyproject.toml`` see to that, and tests to the rest."""

import json
import re
import subprocess
import sys

import pytest
from conftest import BUNDLE

UNSEEN = re.compile(
    r"(?<![\w.])(?:compile|__import__)\(|allow_pickle=(?!False)|weights_only=(?!True)|torch\.load\((?!.*weights_only)"
)
FORBIDDEN = """\
import pickle
from pickle import loads
import yaml as y
import zipfile
eval('1')
exec('1')
import numpy as np; np.load('x')
from numpy import load
import os; os.system('x')
import subprocess; subprocess.run('x', shell=True)
import shutil; shutil.unpack_archive('x')
import importlib; importlib.import_module('x')
import torch; torch.load('x', weights_only=True)
torch.jit.load('x')
torch.hub.load('x', 'x')
from PIL import Image; Image.open('x')
from safetensors.torch import load_file
"""


def test_ruff_forbids_what_could_run_data():
    command = [sys.executable, "-m", "ruff", "check", "--output-format=json"]
    command += [f"--stdin-filename={BUNDLE / 'scripts' / 'x.py'}", "-"]
    result = subprocess.run(command, cwd=BUNDLE.parent, input=FORBIDDEN, capture_output=True, text=True)
    offences = [offence for offence in json.loads(result.stdout) if offence["code"].startswith(("S", "TID251"))]
    assert {offence["location"]["row"] for offence in offences} == {*range(1, FORBIDDEN.count("\n") + 1)}


def test_no_module_has_what_ruff_does_not_see():
    sources = {path.relative_to(BUNDLE): path.read_text(encoding="utf-8") for path in BUNDLE.rglob("scripts/**/*.py")}
    assert len(sources) > 50
    assert {path: match[0] for path, text in sources.items() if (match := UNSEEN.search(text))} == {}


@pytest.mark.parametrize("source", ["compile('1', '', 'eval')", "f('x', allow_pickle=True)", "torch.load('x')"])
def test_the_search_finds(source):
    assert UNSEEN.search(source) and not UNSEEN.search("re.compile('x')\ntorch.load('x', weights_only=True)")
