"""A process with the pretend device, which does one task after another; run as a script it is that process.

Registering a device changes torch for good, so that pytest's own process must not; and one process for many tests
imports torch and MONAI once.
"""

import importlib
import json
import os
import select
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
BUNDLE = TESTS.parent / "bundle"
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive"}  # beside other processes, threads that spin take several times the time
DEVICE = "$torch.device('pretend:0')"


class DeviceError(RuntimeError):
    """A task failed; the message is the traceback of what led to it."""


class DeviceProcess:
    """The process, from outside; it is started with its first task, and again after it died.

    Args:
        log: file for its output.
        seconds: how long a task may take.
    """

    def __init__(self, log: Path, seconds: float = 240) -> None:
        self.log = log
        self.seconds = seconds
        self._process: subprocess.Popen | None = None

    def run_bundle(self, run_id: str, config_file: list[str], folder: Path = BUNDLE, **overrides: Any) -> None:
        """Do a run of a bundle on the device, in the bundle's ``folder``."""
        overrides = {"device": DEVICE, **{name: _plain(value) for name, value in overrides.items()}}
        self._ask({"folder": str(folder), "run_id": run_id, "config_file": config_file, "overrides": overrides})

    def call(self, function: str, **arguments: Any) -> Any:
        """Call ``module.function`` of this folder in the bundle's; arguments and result are JSON."""
        arguments = {name: _plain(value) for name, value in arguments.items()}
        return self._ask({"folder": str(BUNDLE), "function": function, "arguments": arguments})

    def _ask(self, task: dict[str, Any]) -> Any:
        if self._process is None or self._process.poll() is not None:
            with open(self.log, "a") as log:
                command = [sys.executable, "-W", "ignore", __file__]
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
                self._process = subprocess.Popen(command, env=os.environ | ENVIRONMENT, **pipes)
        self._process.stdin.write(json.dumps(task).encode() + b"\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], self.seconds)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self.close()
            end = self.log.read_text(errors="replace")[-3000:]
            raise DeviceError(f"The process {'died' if ready else f'took more than {self.seconds} s'}:\n{end}")
        answer = json.loads(line)
        if "error" in answer:
            raise DeviceError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def serve() -> None:
    """Read tasks from standard input, one JSON a line, and answer each with a line on standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what tasks print goes to the log
    sys.path[:0] = [str(BUNDLE), str(TESTS)]
    import pretend_device
    import torch

    pretend_device.install()
    torch.set_num_threads(2)
    for line in sys.stdin:
        try:
            answer = {"result": _do(json.loads(line))}
        except Exception as error:
            answer = {"error": "".join(traceback.format_exception(_root(error), chain=False))}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:  # MONAI wraps errors in one another
        error = error.__cause__
    return error


def _do(task: dict[str, Any]) -> Any:
    os.chdir(task["folder"])
    if "function" in task:
        module, _, name = task["function"].rpartition(".")
        return getattr(importlib.import_module(module), name)(**task["arguments"])
    import monai.bundle

    monai.bundle.run(run_id=task["run_id"], config_file=task["config_file"], **task["overrides"])
    return None


if __name__ == "__main__":
    serve()
