"""A real MONAI Label server, started, asked and ended by its own process."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

SECONDS = 120  # until the server must answer


def require_monailabel():
    """Skip where MONAI Label is not installed: it needs an environment of its own (docs/label.md)."""
    if importlib.util.find_spec("monailabel") is None:
        pytest.skip(
            "monailabel is not installed here; .ci/run installs it in .venv-label and runs tests/label_app there"
        )


class LabelServer:
    """A running server.

    Args:
        app_dir: the app's folder.
        studies: the data folder.
        log: file of what it writes.
        bundle: folder of the app's bundle, whose own command starts it; else MONAI Label's does.
        conf: settings of the app.
    """

    def __init__(self, app_dir, studies, log, bundle=None, **conf):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log, self.studies = Path(log), Path(studies)
        start = ["scripts", "label"] if bundle else ["monailabel.main", "start_server", "--host", "127.0.0.1"]
        command = [sys.executable, "-m", *start, "--app", app_dir, "--studies", studies, "--port", str(self.port)]
        for name, value in conf.items():
            command += ["--conf", name, str(value)]
        environment = {**os.environ, "MONAI_LABEL_SESSION_PATH": str(self.log.parent / "sessions")}
        environment |= {"OMP_NUM_THREADS": "1"}
        with open(log, "w") as output:
            self.process = subprocess.Popen(
                list(map(str, command)), cwd=bundle or self.log.parent, env=environment, stdout=output, stderr=output
            )

    def wait(self):
        """Wait until it answers."""
        until = time.monotonic() + SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with urlopen(f"{self.url}/info/", timeout=10):
                    return
            except OSError:
                time.sleep(0.3)
        self.stop()
        raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def stop(self):
        """End this process, and no other."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def request(self, method, path, **options):
        """The answer to a request."""
        import requests

        return requests.request(method, self.url + path, timeout=300, **options)

    def post(self, path, **options):
        """The answer to a POST request, which must be a good one."""
        answer = self.request("post", path, **options)
        assert answer.status_code == 200, (answer.status_code, answer.text[:500], self.log.read_text()[-2000:])
        return answer

    def run_task(self, kind, name, **params):
        """Start a task in the background, and wait for its end: what the server says of it."""
        self.post(f"/{kind}/{name}", json=params)
        while True:
            state = self.request("get", f"/{kind}").json()
            if state["status"] in ("DONE", "ERROR"):
                return state
            time.sleep(0.5)
