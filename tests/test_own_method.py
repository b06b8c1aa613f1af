"""A method of one's own, that of docs/own_method.md: a Python file, overlays of the method and of the data set."""

import json
import re

import torch
from conftest import BUNDLE, TINY

from scripts.data.items import find_images
from scripts.data.preparing.demo import make_demo_data
from scripts.runs.run_folder import RunFolder

PAGE = (BUNDLE / "docs" / "own_method.md").read_text(encoding="utf-8")
FUSION_BLOCK, METHOD = (re.search(f"```{language}\n(.*?)```", PAGE, re.DOTALL)[1] for language in ("python", "json"))
DATASET = {
    "dataset_name": "toy",
    "class_names": ["epithelium", "fibres", "immune cells"],
    "classifier_values": [1, 2, 3],
    "segmenter_values": [1, 2, 3],
    "mask_values": {"0": 0, "1": 1, "2": 2, "3": 3},
    "palette": [[255, 255, 255], [205, 51, 51], [255, 165, 0], [65, 105, 225]],
    "model_mpp": 0.5,
    "level_weights": [0.2, 0.3, 0.5],
    "threshold": 0.5,
}


def test_a_fusion_block_of_ones_own_trains_both_stages_by_two_overlays(run_bundle, tmp_path, monkeypatch):
    (tmp_path / "channel_gate.py").write_text(FUSION_BLOCK)
    (tmp_path / "method.json").write_text(METHOD)
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    data = make_demo_data(tmp_path / "toy", 5, 64, num_train=8, num_val=2, num_test=2)
    monkeypatch.syspath_prepend(str(tmp_path))
    configs = ["configs/train.json", str(tmp_path / "method.json"), "configs/lite.json", str(tmp_path / "dataset.json")]
    run_bundle("training", tmp_path / "run", configs, dataset_dir=str(data), **TINY)
    stages = RunFolder(tmp_path / "run").stages
    assert list(stages) == ["train_classifier", "generate_pseudo_masks", "train_segmenter"]
    for stage in ("train_classifier", "train_segmenter"):
        assert set(stages[stage]["scores"]["test"]["protocols"]["published"]["classes"]) == set(DATASET["class_names"])
    classifier = torch.load(tmp_path / "run" / "models" / "classifier" / "model.pt", weights_only=True)
    assert classifier["fusion.excite.weight"].shape == (320, 40)
    assert len(find_images(tmp_path / "run" / "pseudo_masks")) == 8
    inference = json.loads((tmp_path / "run" / "configs" / "inference.json").read_text())
    assert (inference["class_names"], inference["model_mpp"]) == (DATASET["class_names"], 0.5)
    run_bundle(
        "run",
        tmp_path / "out",
        [str(tmp_path / "run" / "configs" / "inference.json")],
        bundle_root=str(tmp_path / "run"),
        dataset_dir=str(data / "test" / "img"),
    )
    assert len(find_images(tmp_path / "out" / "masks")) == 2
