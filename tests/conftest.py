"""A tiny demo data set, and one finished run on it that many tests look at."""

import os
from pathlib import Path

import monai.bundle
import pytest
import torch

from scripts.demo import make_demo_data

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
LITE = ["configs/train.json", "configs/lite.json", "configs/dataset_demo.json"]
TINY = {  # two epochs of two steps in each stage
    "classification#epochs": 2,
    "classification#batch_size": 4,
    "train#epochs": 2,
    "train#batch_size": 4,
    "eval_batch_size": 3,
}

os.environ["MONAI_FAIL_ON_DUPLICATE_CONFIG"] = "1"
torch.set_num_threads(2)


@pytest.fixture()
def one_thread():
    """On maps of a few pixels a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
