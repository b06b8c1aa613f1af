"""A disk that is full, and one that is read-only: a small file system in memory, mounted for one command alone."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import BUNDLE, LITE, TINY
from PIL import Image

SMALL_DISK = """
mount -t tmpfs -o size=$SIZE tmpfs "$DISK" && cp -a "$BEFORE/." "$DISK" && mount -o "remount,$ACCESS" "$DISK" || exit 99
"$@"
code=$?
cp -a "$DISK/." "$AFTER"
exit $code
"""


def can_mount():
    """Whether this machine lets its users mount a file system that they alone see."""
    try:
        return not subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).returncode
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not can_mount(), reason="needs Linux with user namespaces")


@pytest.fixture()
def on_small_disk(tmp_path):
    """Run ``python -m`` with arguments, of which DISK is a small disk that begins with the files of ``before``.

    Gives its exit status and stderr, and the folder to which all that it left on the disk is copied.
    """

    def run(arguments, size, before=None, access="rw", cwd=BUNDLE):
        folders = {name: tmp_path / name.lower() for name in ("DISK", "BEFORE", "AFTER")}
        for folder in folders.values():
            folder.mkdir()
        folders["BEFORE"] = before or folders["BEFORE"]
        settings = {**os.environ, **folders, "SIZE": size, "ACCESS": access, "OMP_NUM_THREADS": torch.get_num_threads()}
        command = [part.replace("DISK", str(folders["DISK"])) for part in arguments]
        result = subprocess.run(
            ["unshare", "-Urm", "bash", "-c", SMALL_DISK, "bash", sys.executable, "-W", "ignore", "-m", *command],
            cwd=cwd,
            env={name: str(value) for name, value in settings.items()},
            capture_output=True,
            text=True,
        )
        return result.returncode, result.stderr, folders["AFTER"]

    return run


def assert_stopped(code, stderr, *fragments):
    """It ended with one sentence, not with a traceback."""
    last = stderr.strip().splitlines()[-1]
    assert code == 1 and "Traceback" not in stderr, stderr[-3000:]
    for fragment in fragments:
        assert fragment in last


def training(demo_dir, output_dir, **settings):
    settings = {**TINY, "dataset_dir": demo_dir, "output_dir": output_dir, "device": "cpu", **settings}
    command = ["monai.bundle", "run", "training", "--config_file", str(LITE)]
    return command + [part for name, value in settings.items() for part in (f"--{name}", str(value))]


@pytest.mark.e2e
def test_training_stops_and_goes_on_when_there_is_room(demo_dir, finished_run, on_small_disk, tmp_path):
    arguments = training(demo_dir, "DISK", redo="train_segmenter")
    code, stderr, after = on_small_disk(arguments, "150m", before=finished_run)
    assert_stopped(code, stderr, "No space left on device", "disk/", "free some space and repeat the command")
    assert list(json.loads((after / "run.json").read_text())["stages"]) == ["train_classifier", "generate_pseudo_masks"]
    earlier = [path for path in finished_run.rglob("*") if path.parts[-2] in ("classifier", "pseudo_masks")]
    assert len(earlier) > 8
    for path in earlier:
        assert (after / path.relative_to(finished_run)).read_bytes() == path.read_bytes()
    kept = after / "previous" / "1" / "models" / "model.pt"
    assert kept.read_bytes() == (finished_run / "models" / "model.pt").read_bytes()
    command = [sys.executable, "-m", *training(demo_dir, after)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(command, cwd=BUNDLE, env=environment, check=True, capture_output=True)
    again, first = (torch.load(run / "models" / "model.pt") for run in (after, finished_run))
    assert all(torch.equal(again[name], first[name]) for name in first)


@pytest.mark.e2e
def test_preparation_leaves_nothing_half_done(few_shot_dir, on_small_disk):
    source = ["--source", str(few_shot_dir), "--output", "DISK/data", "--dataset", "configs/dataset_demo.json"]
    arguments = ["scripts", "prepare", *source, "--patch-size", "32", "--stride", "4"]
    code, stderr, after = on_small_disk(arguments, "200k")
    assert_stopped(code, stderr, "No space left on device", "disk/data")
    assert list(after.iterdir()) == []


@pytest.mark.e2e
def test_masks_are_whole_or_missing(finished_run, demo_dir, on_small_disk):
    images = ["--dataset_dir", str(demo_dir / "val" / "img"), "--output_dir", "DISK/results", "--device", "cpu"]
    arguments = ["monai.bundle", "run", "--config_file", "configs/inference.json", *images]
    code, stderr, after = on_small_disk(arguments, "24k", cwd=finished_run)
    assert_stopped(code, stderr, "No space left on device", "disk/results/")
    for path in after.rglob("*.png"):
        Image.open(path).load()
    assert list(after.rglob("*.partial-*")) == []


@pytest.mark.e2e
@pytest.mark.parametrize("run", ["training", "inference"])
def test_a_read_only_folder_is_named(finished_run, demo_dir, on_small_disk, run):
    arguments = training(demo_dir, "DISK/new")
    if run == "inference":
        arguments = ["monai.bundle", "run", "--config_file", str(finished_run / "configs" / "inference.json")]
        arguments += ["--bundle_root", str(finished_run), "--dataset_dir", str(demo_dir / "val" / "img")]
        arguments += ["--output_dir", "DISK/new", "--device", "cpu"]
    code, stderr, after = on_small_disk(arguments, "1m", access="ro")
    assert_stopped(code, stderr, "Read-only file system", "disk/new", "write elsewhere")
    assert list(after.iterdir()) == []
