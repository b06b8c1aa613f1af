import json
from types import SimpleNamespace

import pytest

pytest.importorskip("monailabel")

from scripts.label_app.server.training import MaskTrainTask
from scripts.label_app.server.versions import Versions


@pytest.mark.parametrize("second_stage", [True, False])
def test_a_training_starts_from_the_newest_network_that_masks_have_trained(tmp_path, second_stage):
    bundle = tmp_path / "bundle"
    (bundle / "configs").mkdir(parents=True)
    (bundle / "models").mkdir()
    (bundle / "models" / "model.pt").write_bytes(b"weights")
    train = {"second_stage": second_stage, "train": {"pretrained": "that of a new training"}}
    (bundle / "configs" / "train.json").write_text(json.dumps(train))
    store = SimpleNamespace(versions=Versions(bundle, tmp_path / "versions"), options=SimpleNamespace(bundle=bundle))
    task = MaskTrainTask("", store, None)
    new = {"train#pretrained": "that of a new training"}
    assert task._start(False) == new
    assert task._start(True) == ({"source_dir": str(bundle)} if second_stage else new)
