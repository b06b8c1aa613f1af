import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.errors import BundleError
from scripts.files import job_lock
from scripts.files.job_lock import LOCK, new_folder, only_job

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
HOLD = (
    "import sys; from scripts.files.job_lock import only_job\nwith only_job(sys.argv[1]): print(1, flush=True); input()"
)


def other_job(folder):
    """A process that holds the lock of a folder until it reads a line."""
    job = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=BUNDLE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert job.stdout.readline() == b"1\n", job.stderr.read()
    return job


def test_a_second_job_is_told_which_one_is_at_work_until_that_one_is_killed(tmp_path):
    job = other_job(tmp_path)
    holder = rf"process {job.pid} on {re.escape(socket.gethostname())}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    with (
        pytest.raises(BundleError, match=rf"`output_dir` must not .* {tmp_path} is \({holder}\); wait"),
        only_job(tmp_path),
    ):
        pass
    job.kill()
    job.wait()
    with only_job(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_ends_frees_the_folder_and_leaves_nothing(tmp_path):
    job = other_job(tmp_path / "new" / "run")
    job.communicate(b"\n")
    assert job.returncode == 0 and list(tmp_path.iterdir()) == []


def test_two_jobs_in_one_process_exclude_each_other_too(tmp_path):
    with only_job(tmp_path):
        with pytest.raises(BundleError, match="another job"), only_job(tmp_path):
            pass
        with only_job(tmp_path / "part"):
            pass
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        other = subprocess.run(command, cwd=BUNDLE, input=b"\n", stderr=subprocess.PIPE)
        assert other.returncode and b"another job" in other.stderr  # having been asked has not freed the lock
    with only_job(tmp_path):
        pass


def test_a_lock_beside_makes_no_folder_and_names_its_option(tmp_path):
    with only_job(tmp_path / "new", beside=True):
        assert not (tmp_path / "new").exists()
        with pytest.raises(BundleError, match="`output` must not be"), only_job(tmp_path / "new", True, "output"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_second_job_on_a_new_folder_leaves_the_work_of_the_first(tmp_path):
    with new_folder(tmp_path / "data") as folder:
        folder.mkdir()
        (folder / "a").touch()
        with pytest.raises(BundleError, match="another job"), new_folder(tmp_path / "data"):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "a"]


def test_what_a_job_has_written_stays(tmp_path):
    with only_job(tmp_path / "run"):
        (tmp_path / "run" / "a").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["a"]


def test_a_file_system_without_locks_warns_and_works(tmp_path, monkeypatch, caplog):
    def refuse(descriptor):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(job_lock, "_lock", refuse)
    with only_job(tmp_path):
        assert "cannot be locked (Operation not supported): make sure that no other job writes there" in caplog.text
