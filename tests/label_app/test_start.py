import subprocess
import sys

import pytest
from conftest import BUNDLE
from label_server import require_monailabel

from scripts.label_app.start import APP, command_line


@pytest.mark.parametrize(("given", "host"), [([], "127.0.0.1"), (["--host", "0.0.0.0"], "0.0.0.0"), (["-i", "x"], "x")])
def test_the_host_is_the_one_asked_for(given, host):
    require_monailabel()
    code = (
        "import sys, uvicorn; from scripts.label_app.start import start;"
        "uvicorn.run = lambda *args, host, **options: print('host', host);"
        "start(None, sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "--studies", str(BUNDLE), *given]
    result = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True)
    assert f"host {host}\n" in result.stdout, result.stderr[-2000:]


def test_the_app_is_this_one():
    words = command_line(APP, ["--studies", "x"])
    assert words[:3] == ["start_server", "--app", str(BUNDLE / "scripts" / "label_app")]
    assert words[-2:] == ["--studies", "x"]
