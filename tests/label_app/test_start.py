import subprocess
import sys

import pytest
from conftest import BUNDLE
from label_server import require_monailabel

from scripts.label_app.start import command_line


def listening(port):
    """The IPv4 addresses, as the kernel writes them, on which a port is listened to."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}


def test_the_server_listens_to_this_machine_alone(server):
    assert listening(server.port) == {"0100007F"}  # 127.0.0.1, the bytes backwards; nothing in the test says so


@pytest.mark.parametrize(("given", "host"), [([], "127.0.0.1"), (["--host", "0.0.0.0"], "0.0.0.0"), (["-i", "x"], "x")])
def test_the_host_is_the_one_asked_for(given, host):
    require_monailabel()
    code = (
        "import sys, uvicorn; from monailabel.main import Main; from scripts.label_app.start import command_line;"
        "uvicorn.run = lambda *args, host, **options: print('host', host);"
        "sys.argv[1:] = command_line(sys.argv[1:]); Main().run()"
    )
    command = [sys.executable, "-c", code, "--studies", str(BUNDLE), *given]
    result = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True)
    assert f"host {host}\n" in result.stdout, result.stderr[-2000:]


def test_the_app_is_this_one():
    words = command_line(["--studies", "x"])
    assert words[:3] == ["start_server", "--app", str(BUNDLE / "scripts" / "label_app")]
    assert words[-2:] == ["--studies", "x"]
