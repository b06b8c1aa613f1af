"""A method of one's own: a Python file with a fusion block, an overlay of the method and one of the data set."""

import json

import torch
from conftest import TINY

from scripts.data import find_images
from scripts.demo import make_demo_data
from scripts.run_folder import RunFolder

FUSION_BLOCK = '''
import torch
from torch import nn


class ChannelGate(nn.Module):
    """Weighs each channel by what the others say of the whole patch."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.Linear(channels, channels // reduction), nn.ReLU())
        self.excite = nn.Linear(channels // reduction, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.excite(self.squeeze(x.mean(dim=(2, 3)))))
        return x * gate[:, :, None, None]
'''
METHOD = {
    "method_name": "channel_gate",
    "classifier_def#fusion": {"_target_": "channel_gate.ChannelGate", "_mode_": "callable", "reduction": 8},
    "classification#max_gradient_norm": 1.0,
    "segmenter_loss": {"_target_": "scripts.losses.AdaptiveNoiseAwareLoss", "background": "@background", "gamma": 0.0},
    "train#loss_schedule": {"start": {"tau": 0.1}, "end": {"tau": 0.3}},
}
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
    for name, overlay in (("method", METHOD), ("dataset", DATASET)):
        (tmp_path / f"{name}.json").write_text(json.dumps(overlay))
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
