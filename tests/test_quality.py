"""What the product is for, on whole data sets: minutes each, so not part of the usual run (-m slow, -m realdata)."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import BUNDLE
from PIL import Image

from scripts.data.preparing.demo import make_demo_data
from scripts.data.preparing.prepare import prepare


def scores(output_dir, stage, split):
    result = json.loads((output_dir / "scores" / f"{stage}_{split}.json").read_text())
    return result["protocols"]["published"]


def pixels(data_dir, split):
    """Colours, in 16 steps per channel, and true values of all pixels of a split."""
    colours, values = [], []
    for path in sorted((data_dir / split / "img").iterdir()):
        with Image.open(path) as image, Image.open(data_dir / split / "mask" / path.name) as mask:
            red, green, blue = np.moveaxis(np.asarray(image).astype(int) // 16, 2, 0)
            colours.append((red * 256 + green * 16 + blue).ravel())
            values.append(np.asarray(mask).ravel())
    return np.concatenate(colours), np.concatenate(values)


def mean_iou_of_colour(data_dir):
    """Mean IoU on test of the best tissue for each colour, learnt from the true masks of val."""
    counts = np.zeros((4096, 4))
    np.add.at(counts, pixels(data_dir, "val"), 1)
    counts[:, 0] = 0
    counts /= np.maximum(counts.sum(axis=0), 1)
    colours, true = pixels(data_dir, "test")
    pred = np.where(true > 0, counts.argmax(axis=1)[colours], 0)
    return np.mean([((pred == c) & (true == c)).sum() / ((pred == c) | (true == c)).sum() for c in (1, 2, 3)])


@pytest.mark.slow
def test_demo_beats_colour_alone(run_bundle, tmp_path):
    data_dir = make_demo_data(tmp_path / "demo")
    run_bundle("training", tmp_path / "run", dataset_dir=str(data_dir))
    colour = mean_iou_of_colour(data_dir)
    masks = {stage: scores(tmp_path / "run", stage, "test")["mean_iou"] for stage in ("classifier", "segmenter")}
    print(f"mean IoU on the demo's test patches: colour alone {colour:.3f}, {masks}")
    assert masks["segmenter"] >= colour + 0.15


@pytest.mark.slow
@pytest.mark.realdata
def test_real_tissue_is_learnt_from_labels(run_bundle, tmp_path):
    source = os.environ.get("REALDATA_DIR")
    if source is None:
        pytest.skip("REALDATA_DIR names no folder with real H&E images")
    overlay = "configs/dataset_luad_tissue.json"
    data_dir = tmp_path / "luad_tissue"
    prepare(str(Path(source) / "luad_tissue"), str(data_dir), str(BUNDLE / overlay))
    configs = ["configs/train.json", "configs/lite.json", overlay]
    run_bundle("training", tmp_path / "run", configs, dataset_dir=str(data_dir))
    for stage in ("classifier", "segmenter"):
        classes = scores(tmp_path / "run", stage, "val")["classes"]
        assert classes["tumor epithelium"]["iou"] > 0.6 and classes["tumor-associated stroma"]["iou"] > 0.55
