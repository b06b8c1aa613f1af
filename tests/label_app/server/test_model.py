import os
import shutil

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from scripts.label_app.server.model import ModelStore, picture_size
from scripts.label_app.server.options import Options
from scripts.label_app.server.settings import bundle_settings
from scripts.weights.state_dicts import load_weights, read_state_dict


@pytest.fixture()
def run(finished_run, tmp_path):
    """A copy of a finished run's folder."""
    shutil.copytree(finished_run / "configs", tmp_path / "run" / "configs")
    shutil.copytree(finished_run / "models", tmp_path / "run" / "models")
    return tmp_path / "run"


def expected(run, path):
    """The mask and the entropy of an image, step by step."""
    parser = ConfigParser()
    parser.read_config(run / "configs" / "inference.json")
    network = load_weights(parser.get_parsed_content("network_def"), run / "models" / "model.pt").eval()
    image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        mirrored = [(), (3,), (2,), (2, 3)]  # lite averages over mirror images
        logits = sum(network(image.flip(axes)).flip(axes) for axes in mirrored) / 4
    prob = logits[0].softmax(dim=0).double().numpy()
    entropy = -(prob * np.log(prob)).sum(axis=0) / np.log(len(prob))
    return prob.argmax(axis=0) + 1, entropy


def test_float32_is_exact_on_a_gpu_as_in_the_bundle_s_own_runs(run, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    ModelStore(Options(bundle=run, device="cpu")).get()
    assert not torch.backends.cudnn.allow_tf32


def test_masks_and_entropy_are_the_networks(run, demo_dir, one_thread):
    model = ModelStore(Options(bundle=run, device="cpu")).get()
    for path in sorted((demo_dir / "val" / "img").glob("*.png")):
        result = model.predict(path)
        mask, entropy = expected(run, path)
        tissue = result.mask > 0
        assert tissue.any() and (result.mask[tissue] == mask[tissue]).mean() > 0.999  # but for ties
        assert np.allclose(result.entropy[tissue], entropy[tissue], atol=1e-3)
        assert not result.entropy[~tissue].any()
        again = model.predict(np.asarray(Image.open(path)))
        assert np.array_equal(again.mask, result.mask) and np.array_equal(again.entropy, result.entropy)


def test_a_network_stays_in_memory_until_its_file_changes(run, demo_dir):
    store = ModelStore(Options(bundle=run, device="cpu"))
    first, state = store.get(), store.state()
    assert store.get() is first and store.get("base") is first and state.startswith("base ")
    path = run / "models" / "model.pt"
    weights = {name: value + 1 if value.is_floating_point() else value for name, value in read_state_dict(path).items()}
    torch.save(weights, path)
    os.utime(path, (1, 1))
    assert store.get() is not first and store.state() != state


def test_files_that_are_no_images_are_refused(run, tmp_path):
    model = ModelStore(Options(bundle=run, device="cpu")).get()
    (tmp_path / "x.png").write_bytes(b"x")
    Image.new("L", (8, 8)).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match="must be a readable image"):
        model.predict(tmp_path / "x.png")
    with pytest.raises(ValueError, match="x.png must be a readable image"):
        picture_size(tmp_path / "x.png")
    with pytest.raises(ValueError, match="8-bit RGB"):
        model.predict(tmp_path / "grey.png")
    assert picture_size(tmp_path / "grey.png") == (8, 8)


def test_the_engine_shares_the_network(run):
    model = ModelStore(Options(bundle=run, device="cpu")).get()
    assert model.engine.segmenter.network is model.network
    assert (model.engine.model_mpp, model.engine.tile_px, model.patch_size) == (1.0, 64, [64, 64])


def test_the_classes_are_the_bundles(run):
    settings = bundle_settings(run)
    assert settings.labels == {"tumor": 1, "stroma": 2, "lymphocytes": 3}
    assert settings.classes.value_names == ["background", "tumor", "stroma", "lymphocytes"]
    assert settings.patch_size == [64, 64] and settings.classes.background and settings.model_mpp == 1.0
