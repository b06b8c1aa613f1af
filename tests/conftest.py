"""A tiny demo data set, and one finished run on it that many tests look at."""

import functools
import os
import shutil
from pathlib import Path

# before torch is imported: threads that wait leave the cores to other processes
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import monai.bundle
import numpy as np
import pytest
import torch
from PIL import Image

from scripts.data.preparing.demo import make_demo_data
from scripts.sharing.export import export

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
LITE = ["configs/train.json", "configs/lite.json", "configs/dataset_demo.json"]
TINY = {  # two epochs of two steps in each stage
    "classifier_epochs": 2,
    "classifier_batch_size": 4,
    "epochs": 2,
    "batch_size": 4,
    "eval_batch_size": 3,
}


def method_configs(method, *more, dataset="demo"):
    """The configs of a training of a method with the small networks; ``more`` go last."""
    return [
        "configs/train.json",
        f"configs/method_{method}.json",
        "configs/lite.json",
        f"configs/dataset_{dataset}.json",
        *more,
    ]


os.environ["MONAI_FAIL_ON_DUPLICATE_CONFIG"] = "1"
torch.set_num_threads(2)
try:
    from hypothesis import settings
except ModuleNotFoundError:  # in MONAI Label's environment, whose tests need none
    pass
else:
    settings.register_profile("tests", derandomize=True, deadline=None, max_examples=40, database=None)
    settings.load_profile("tests")


@pytest.fixture()
def one_thread():
    """On maps of a few pixels a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture()
def as_process(monkeypatch):
    """Make this process number ``rank`` of ``world_size``, as far as Ignite's functions tell; none waits for others."""

    def be(rank, world_size):
        for module in ("ignite.distributed", "ignite.distributed.utils"):
            monkeypatch.setattr(f"{module}.get_rank", lambda: rank)
            monkeypatch.setattr(f"{module}.get_world_size", lambda: world_size)
            monkeypatch.setattr(f"{module}.barrier", lambda: None)

    return be


@pytest.fixture(scope="session")
def demo_dir(tmp_path_factory):
    """8 + 3 + 2 patches of 64 px."""
    return make_demo_data(tmp_path_factory.mktemp("data") / "demo", 1, 64, num_train=8, num_val=3, num_test=2)


@pytest.fixture(scope="session")
def few_shot_dir(tmp_path_factory):
    """The same in another stain, other patches, with masks of the train patches too."""
    counts = {"num_train": 8, "num_val": 3, "num_test": 2}
    folder = tmp_path_factory.mktemp("data") / "demo_lab_b"
    return make_demo_data(folder, 2, 64, **counts, stain="lab_b", train_masks=True)


@pytest.fixture(scope="session")
def run_bundle(demo_dir):
    """Run a run id of the bundle in this process, from its folder, with configs and overrides."""

    def run(run_id, output_dir, config_file=LITE, **overrides):
        overrides = {"dataset_dir": str(demo_dir), "output_dir": str(output_dir), "device": "cpu", **overrides}
        here = os.getcwd()
        os.chdir(BUNDLE)
        try:
            monai.bundle.run(run_id=run_id, config_file=config_file, **overrides)
        finally:
            os.chdir(here)

    return run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, run_bundle):
    """The folder of a training that went through all stages."""
    output_dir = tmp_path_factory.mktemp("runs") / "tiny"
    run_bundle("training", output_dir, **TINY)
    return output_dir


@pytest.fixture(scope="session")
def exported_bundle(tmp_path_factory, finished_run):
    """The bundle that is exported from that run."""
    return export("esfan", str(finished_run), str(tmp_path_factory.mktemp("dist")), preset="lite")


@pytest.fixture(scope="session")
def cam_run(tmp_path_factory, run_bundle):
    """The folder of a training without a second stage."""
    output_dir = tmp_path_factory.mktemp("runs") / "cams"
    run_bundle("training", output_dir, config_file=method_configs("sshr"), **TINY)
    return output_dir


@pytest.fixture(scope="session")
def exported_cams(tmp_path_factory, cam_run):
    """The bundle that is exported from that run."""
    return export("sshr", str(cam_run), str(tmp_path_factory.mktemp("dist")), preset="lite")


@pytest.fixture(scope="session")
def device_process(tmp_path_factory):
    """A process with the pretend device."""
    from device_process import DeviceProcess
    from pretend_device import why_unavailable

    if reason := why_unavailable():
        pytest.skip(reason)
    process = DeviceProcess(tmp_path_factory.mktemp("device") / "log")
    yield process
    process.close()


@pytest.fixture(scope="session")
def device_runs(tmp_path_factory, device_process, demo_dir):
    """Give the folder of a method's training on the pretend device, with the settings of ``finished_run``."""
    root = tmp_path_factory.mktemp("device_runs")

    @functools.cache
    def trained(method):
        places = {"dataset_dir": demo_dir, "output_dir": root / method}
        device_process.run_bundle("training", method_configs(method), **TINY, **places)
        return root / method

    return trained


@pytest.fixture(scope="session")
def label_run(tmp_path_factory, finished_run):
    """A finished run's folder that is the server's own, since versions are written into it."""
    from label_server import require_monailabel

    require_monailabel()
    folder = tmp_path_factory.mktemp("label") / "tiny_run"
    shutil.copytree(finished_run, folder)
    return folder


@pytest.fixture(scope="session")
def studies(tmp_path_factory):
    """Eight demo patches of 64 px with masks beside them in ``truth``, and a slide of 0.5 um per pixel."""
    root = tmp_path_factory.mktemp("studies")
    from synthetic_slide import write_slide

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
    """A MONAI Label server with the app of a finished run's folder, started once."""
    from label_server import LabelServer

    log = tmp_path_factory.mktemp("server") / "server.log"
    running = LabelServer(label_run / "scripts" / "label_app", studies / "images", log, label_run, largest_mpx=2)
    running.wait()
    yield running
    running.stop()
