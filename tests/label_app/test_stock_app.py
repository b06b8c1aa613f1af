"""A finished run in MONAI Label's own app ``monaibundle``, over HTTP."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from label_server import LabelServer, require_monailabel
from monai.bundle import ConfigParser
from PIL import Image

from scripts.weights.state_dicts import load_weights, read_state_dict

NAME = "tiny_run"


@pytest.fixture(scope="module")
def stock_server(finished_run, studies, tmp_path_factory):
    """The stock app with a run's folder among its models."""
    require_monailabel()
    root = tmp_path_factory.mktemp("stock")
    shutil.copytree(Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle", root / "app")
    shutil.copytree(finished_run, root / "app" / "model" / NAME)
    (root / "images").mkdir()
    for number in range(5):
        name = f"demo-val-{number:04d}"
        with Image.open(studies / "images" / f"{name}.png") as patch:
            patch.save(root / "images" / f"{name}.png")
            if number == 0:  # not square, to see which axis is which
                wide = np.array(patch)[:40]
                wide[:, :20] = 255
                Image.fromarray(wide).save(root / "images" / "wide.tif")
    running = LabelServer(
        root / "app", root / "images", root / "server.log", models=NAME, zoo_source="local", sam2="false"
    )
    running.wait()
    yield running
    running.stop()


def network_mask(run, path):
    """The network's mask: without mirror averaging, which the stock app does not know."""
    parser = ConfigParser()
    parser.read_config(run / "configs" / "inference.json")
    network = load_weights(parser.get_parsed_content("network_def"), run / "models" / "model.pt").eval()
    image = parser.get_parsed_content("preprocessing")({"image": str(path), "name": path.name})["image"]
    with torch.inference_mode():
        logits = parser.get_parsed_content("inferer")(image[None], network)[0]
    return parser.get_parsed_content("postprocessing")({"image": image, "pred": logits})["pred"][0].numpy()


@pytest.mark.parametrize("name", ["demo-val-0001.png", "wide.tif"])
def test_masks_of_png_and_tiff_patches(stock_server, finished_run, name):
    params = {"params": json.dumps({"device": "cpu", "result_extension": ".png"})}
    answer = stock_server.post(f"/infer/{NAME}?image={Path(name).stem}&output=image", data=params)
    mask = np.asarray(Image.open(io.BytesIO(answer.content)))
    expected = network_mask(finished_run, stock_server.studies / name)
    assert mask.dtype == np.uint8 and mask.shape == expected.shape
    assert (mask == expected).mean() > 0.999
    assert len(np.unique(expected)) > 1 or name != "wide.tif"


def test_training_from_annotated_masks(stock_server, studies):
    for number in range(5):
        name = f"demo-val-{number:04d}"
        files = {"label": ("m.png", (studies / "truth" / f"{name}.png").read_bytes())}
        assert stock_server.request("put", f"/datastore/label?image={name}&tag=final", files=files).status_code == 200
    run = stock_server.log.parent / "app" / "model" / NAME
    settings = (run / "configs" / "train.json").read_bytes()
    state = stock_server.run_task("train", NAME, max_epochs=1, val_split=0.2, multi_gpu=False, device="cpu")
    details = "\n".join(state["details"])
    assert state["status"] == "DONE", details
    assert "Training the segmenter: 4 patches, 1 epochs" in details
    old, new = (
        read_state_dict(path) for path in (run / "previous" / "1" / "models" / "model.pt", run / "models" / "model.pt")
    )
    assert any(not torch.equal(old[name], new[name]) for name in new)
    assert (run / "configs" / "train.json").read_bytes() == settings
    params = {"params": json.dumps({"device": "cpu", "result_extension": ".png"})}
    answer = stock_server.post(f"/infer/{NAME}?image=wide&output=image", data=params)
    expected = network_mask(run, stock_server.studies / "wide.tif")
    assert (np.asarray(Image.open(io.BytesIO(answer.content))) == expected).mean() > 0.999
