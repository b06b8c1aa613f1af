import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
import pytest
import tifffile
import torch
from conftest import BUNDLE
from monai.bundle import ConfigParser
from some_classes import some_classes
from synthetic_slide import write_slide
from torch import nn

from scripts.errors import BundleError
from scripts.runs.plain_errors import plain_cause
from scripts.slides.reading.files import find_slides, list_slides
from scripts.slides.segmenting.blending import Segmenter
from scripts.slides.segmenting.engine import SlideEngine
from scripts.slides.segmenting.run import segment_slides
from scripts.slides.segmenting.strip_files import StripFiles

CLASSES = some_classes(["red", "green"])
CONFIG = ["configs/inference_slides.json"]


class RedOrGreen(nn.Module):
    def forward(self, image):
        return 9 * image[:, :2]


def engine(**settings):
    segmenter = Segmenter(RedOrGreen(), CLASSES, torch.device("cpu"), 4)
    return SlideEngine(segmenter, **{"model_mpp": 1.0, "tile_px": 32, **settings})


def tissue(height=260, width=300, seed=0):
    """Noise in red and green with a white frame, (H, W, 3) uint8."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[..., 2] = 90
    image[:30] = image[-20:] = image[:, :25] = image[:, -40:] = 245
    return image


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Two slides, one of them without a resolution."""
    folder = tmp_path_factory.mktemp("slides")
    write_slide(folder / "one.tif", tissue(), 0.5)
    write_slide(folder / "two [x].svs", tissue(300, 200, 1), None)
    return folder


def contents(output_dir):
    """The bytes of all results but the records."""
    paths = (path for path in output_dir.rglob("*") if path.is_file() and path.name != "record.json")
    return {str(path.relative_to(output_dir)): path.read_bytes() for path in paths}


def test_one_bad_slide_does_not_stop_the_others(slides, tmp_path):
    for name, content in (("empty.svs", b""), ("text.tif", b"no slide")):
        (tmp_path / name).write_bytes(content)
    shutil.copy(slides / "one.tif", tmp_path)
    with pytest.raises(BundleError, match="2 of 3 slides failed, the others are complete") as error:
        segment_slides(engine(), tmp_path, tmp_path / "out")
    for name in ("empty", "text"):
        assert f"  {name}: {tmp_path}" in str(error.value)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".") == ["one"]


def test_slides_without_a_resolution_need_mpp(slides, tmp_path):
    with pytest.raises(BundleError, match=r"1 of 2 slides failed.*\n  two \[x\]: .* pass them with --mpp"):
        segment_slides(engine(), slides, tmp_path)
    segment_slides(engine(), slides, tmp_path, mpp=0.5)
    record = json.loads((tmp_path / "two [x]" / "record.json").read_text())
    assert record["settings"]["mpp_from"] == "argument" and record["versions"]["torch"] == version("torch")
    assert list(tmp_path.glob(".*")) == []


def test_a_run_that_was_cut_short_goes_on_to_the_same_bytes(slides, tmp_path, monkeypatch):
    segment_slides(engine(), slides, tmp_path / "whole", mpp=0.5)
    write, written = StripFiles.write, []

    def interrupted(self, *strip):
        if len(written) in (2, 5, 6, 11):
            written.append("interruption")
            raise KeyboardInterrupt
        write(self, *strip)
        written.append(strip[:2])

    monkeypatch.setattr(StripFiles, "write", interrupted)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            segment_slides(engine(), slides, tmp_path / "cut", mpp=0.5)
    segment_slides(engine(), slides, tmp_path / "cut", mpp=0.5)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    computed = [strip for strip in written if strip != "interruption"]
    segment_slides(engine(), slides, tmp_path / "cut", mpp=0.5)  # complete: nothing is done again
    assert [strip for strip in written if strip != "interruption"] == computed


def test_results_of_other_settings_are_left_alone(slides, tmp_path):
    path = slides / "one.tif"
    segment_slides(engine(), path, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(
        BundleError,
        match=r"one must be new or come from the same slide and settings; \['band_cells', 'step_px'\] differ",
    ):
        segment_slides(engine(overlap=0.25), path, tmp_path)
    assert contents(tmp_path) == before
    (tmp_path / "two [x]").mkdir()
    with pytest.raises(BundleError, match="must be new or hold a slide's results; move it away"):
        segment_slides(engine(), slides / "two [x].svs", tmp_path, mpp=0.5)


def test_slides_are_found_in_folders_and_lists(tmp_path):
    for name in ("b.SVS", "a.ome.tif", "notes.txt", "scan/1.dcm", "scan/2.dcm", "c.mrxs", "c/Slidedat.ini"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x" * len(name) if name != "scan/2.dcm" else "x" * 99)
    names = [str(path.relative_to(tmp_path)) for path in find_slides(str(tmp_path))]
    assert names == ["a.ome.tif", "b.SVS", "c.mrxs", "scan/2.dcm"]
    assert find_slides([tmp_path / "b.SVS", "x.svs"])[1].name == "x.svs"
    with pytest.raises(FileNotFoundError, match="`slides` must be slide files or a folder of them"):
        find_slides(tmp_path / "c")
    assert [slide.name for slide in list_slides([tmp_path / "a.ome.tif", tmp_path / "other/a.svs"])] == ["a", "other/a"]
    (tmp_path / "a.svs").touch()
    with pytest.raises(ValueError, match=r"must have unique names, ignoring suffixes, got \['a'\] twice; rename"):
        find_slides(tmp_path)


# --- the config


def test_the_config_takes_what_it_does_not_say_from_inference_json(monkeypatch):
    monkeypatch.chdir(BUNDLE)
    parser = ConfigParser()
    parser.read_config([*CONFIG])
    slides_config, inference = parser.config, json.loads((BUNDLE / "configs" / "inference.json").read_text())
    shared = {"imports", "bundle_root", "config", "device", "initialize", "run", "output_dir", "_desc_"}
    assert (slides_config.keys() & inference.keys()) - {"_meta_"} <= shared


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "after inference.json"])
def test_a_finished_run_segments_slides(finished_run, run_bundle, slides, tmp_path, monkeypatch, alone):
    settings = {"slides": str(slides / "one.tif"), "model_mpp": 1.0}
    if alone:
        folder = tmp_path / "moved"
        shutil.copytree(finished_run, folder)
        assert json.loads((folder / "configs" / "inference.json").read_text())["model_mpp"] == 1.0
        command = [
            sys.executable,
            "-m",
            "monai.bundle",
            "run",
            "--config_file",
            *CONFIG,
            "--slides",
            settings["slides"],
        ]
        subprocess.run([*command, "--output_dir", str(tmp_path / "out")], cwd=folder, check=True, capture_output=True)
    else:
        configs = ["configs/inference.json", "configs/lite.json", "configs/dataset_demo.json", *CONFIG]
        settings["segmenter_path"] = str(finished_run / "models" / "model.pt")
        settings["patch_size"] = [64, 64]
        run_bundle("run", tmp_path / "out", configs, **settings)
    record = json.loads((tmp_path / "out" / "one" / "record.json").read_text())
    assert record["settings"]["names"] == ["background", "tumor", "stroma", "lymphocytes"]
    assert record["settings"]["tile_px"] == 64 and record["settings"]["step_px"] == 32
    assert record["settings"]["network_usage"] == {"precision": "float32", "mirror_averaging": True}  # lite's
    assert record["config"]["slides"] == str(slides / "one.tif")


def test_data_sets_without_background_have_a_value_for_outside(run_bundle, slides, tmp_path, monkeypatch):
    monkeypatch.chdir(BUNDLE)
    configs = ["configs/inference.json", "configs/lite.json", "configs/dataset_glas.json"]
    parser = ConfigParser()
    parser.read_config(configs)
    torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "model.pt")
    settings = {"slides": str(slides / "one.tif"), "segmenter_path": str(tmp_path / "model.pt"), "patch_size": [64, 64]}
    run_bundle("run", tmp_path / "out", [*configs, *CONFIG], **settings)
    folder = tmp_path / "out" / "one"
    classes = tifffile.imread(folder / "classes.ome.tif")
    assert json.loads((folder / "record.json").read_text())["settings"]["mpp"] == pytest.approx([0.62, 0.62])
    assert classes[0, 0] == classes[-1, -1] == 2 and set(np.unique(classes[40:150, 60:180])) <= {0, 1}
    rows = json.loads((folder / "areas.json").read_text())
    assert [row["class"] for row in rows["classes"]] == ["rest", "gland"]
    assert rows["tissue"]["pixels"] == (classes < 2).sum() > 10000


@pytest.mark.e2e
def test_errors_are_plain_words_and_an_exit_status(finished_run, slides, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", *CONFIG, "--slides", str(slides)]
    result = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "out")], cwd=finished_run, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "Stopped: 1 of 2 slides failed" in result.stderr and "Traceback" not in result.stderr


def test_a_network_of_unknown_resolution_is_an_error(run_bundle, finished_run, slides, tmp_path):
    configs = ["configs/inference.json", "configs/lite.json", "configs/dataset_demo.json", *CONFIG]
    settings = {
        "slides": str(slides),
        "model_mpp": "$None",
        "segmenter_path": str(finished_run / "models" / "model.pt"),
    }
    with pytest.raises(RuntimeError) as error:
        run_bundle("run", tmp_path, configs, **settings)
    assert "`model_mpp` must be the micrometres per pixel" in str(plain_cause(error.value))


def command_of(finished_run, slides, output_dir, processes=1):
    command = [sys.executable, "-m"]
    command += ["torch.distributed.run", f"--nproc_per_node={processes}", "-m"] if processes > 1 else []
    command += ["monai.bundle", "run", "--config_file", *CONFIG, "--slides", str(slides), "--mpp", "0.5"]
    return [*command, "--output_dir", str(output_dir), "--device", "$torch.device('cpu')"], {
        "cwd": finished_run,
        "env": {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        "capture_output": True,
        "text": True,
    }


@pytest.mark.e2e
def test_two_processes_write_what_one_writes(finished_run, slides, tmp_path):
    for number in (1, 2):
        command, settings = command_of(finished_run, slides, tmp_path / str(number), number)
        result = subprocess.run(command, **settings)
        assert result.returncode == 0, result.stderr[-3000:]
    one, two = (contents(tmp_path / str(number)) for number in (1, 2))
    assert len(one) == 14 and one == two


@pytest.mark.slow
def test_killed_ten_times_it_still_comes_to_the_same_bytes(finished_run, tmp_path):
    write_slide(tmp_path / "a.tif", tissue(1500, 1600), 1.0)
    command, settings = command_of(finished_run, tmp_path / "a.tif", tmp_path / "whole")
    started = time.monotonic()
    subprocess.run(command, **settings, check=True)
    seconds, chance, stages = time.monotonic() - started, random.Random(0), set()
    command, settings = command_of(finished_run, tmp_path / "a.tif", tmp_path / "killed")
    del settings["capture_output"], settings["text"]
    for _ in range(10):
        process = subprocess.Popen(command, **settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(chance.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        stages.add((len(list(tmp_path.glob("killed/.a.work/strips/*"))), any(tmp_path.glob("killed/.a.partial-*"))))
        if (tmp_path / "killed" / "a").exists():
            shutil.rmtree(tmp_path / "killed")  # it was faster: begin again
    subprocess.run(command, **settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    assert len(stages) >= 3  # strips that were there, and whether results were being written
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
