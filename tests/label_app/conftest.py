"""A real MONAI Label server with the app of a finished run's folder, on a folder of demo patches and a slide."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from synthetic_slide import write_slide

from scripts.demo import make_demo_data

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
        conf: settings of the app.
    """

    def __init__(self, app_dir, studies, log, **conf):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log, self.studies = Path(log), Path(studies)
        command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", app_dir, "--studies", studies]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        for name, value in conf.items():
            command += ["--conf", name, str(value)]
        environment = {**os.environ, "MONAI_LABEL_SESSION_PATH": str(self.log.parent / "sessions")}
        environment |= {"OMP_NUM_THREADS": "1"}
        with open(log, "w") as output:
            self.process = subprocess.Popen(
                list(map(str, command)), cwd=self.log.parent, env=environment, stdout=output, stderr=output
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


@pytest.fixture(scope="session")
def label_run(tmp_path_factory, finished_run):
    """A finished run's folder that is this module's own, since versions are written into it."""
    require_monailabel()
    folder = tmp_path_factory.mktemp("label") / "tiny_run"
    shutil.copytree(finished_run, folder)
    return folder


@pytest.fixture(scope="session")
def studies(tmp_path_factory):
    """Eight demo patches of 64 px with masks beside them in ``truth``, and a slide of 0.5 um per pixel."""
    root = tmp_path_factory.mktemp("studies")
    data = make_demo_data(root / "demo", 3, 64, num_train=1, num_val=8, num_test=1)
    shutil.copytree(data / "val" / "img", root / "images")
    shutil.copytree(data / "val" / "mask", root / "truth")
    tiles = [np.asarray(Image.open(path)) for path in sorted((root / "images").glob("*.png"))]
    rows = [np.concatenate([tiles[(row * 3 + column) % 8] for column in range(3)], axis=1) for row in range(2)]
    slide = np.full((128 + 64, 192 + 64, 3), 245, np.uint8)
    slide[32:160, 32:224] = np.concatenate(rows)
    write_slide(root / "images" / "slide.tif", np.kron(slide, np.ones((2, 2, 1), np.uint8)), mpp=0.5, levels=3)
    return root


@pytest.fixture(scope="session")
def server(label_run, studies, tmp_path_factory):
    """The server, started once."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    running = LabelServer(label_run / "scripts" / "label_app", studies / "images", log, largest_mpx=2)
    running.wait()
    yield running
    running.stop()
