"""Numbers of classes, sizes and batches at their ends, from patches to scores; and what is not a number."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from scripts.data.label_maps import label_map
from scripts.data.mask_values import read_mask
from scripts.data.preparing.new_dataset import describe_dataset
from scripts.data.preparing.prepare import prepare
from scripts.pseudo_masks.cam import gate_and_normalize
from scripts.runs.plain_errors import plain_cause

FAST = {
    "classifier_epochs": 1,
    "epochs": 1,
    "eval_batch_size": 3,
    "cam_segmenter#flips": False,
    "mirror_averaging": False,
}
COLORS = np.random.default_rng(5).integers(20, 180, (8, 3))


def write_source(folder, size, num_values, missing_in_val=(), glass=False):
    """Images of coloured stripes of noise with masks, (height, width) each: 2 to train, 2 and 1 to score."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 2), ("test", 1)):
        (folder / split / "img").mkdir(parents=True)
        (folder / split / "mask").mkdir()
        values = [value for value in range(num_values) if split == "train" or value not in missing_in_val]
        for number in range(count):
            stripes = np.repeat(rng.permutation(np.resize(values, size[1] // 5 + 1)), 5)[: size[1]]
            mask = np.repeat(stripes[None], size[0], axis=0).astype(np.uint8)
            image = np.clip(COLORS[mask] + rng.integers(-20, 21, (*size, 3)), 0, 255).astype(np.uint8)
            if glass:
                image[mask == 0] = 245
                if split == "val" and number == 0:  # an image that is glass and nothing else
                    image[:], mask[:] = 245, 0
            Image.fromarray(image).save(folder / split / "img" / f"{split}{number}.png")
            Image.fromarray(mask).save(folder / split / "mask" / f"{split}{number}.png")


def train(run_bundle, tmp_path, overlay, patch_size, method, **settings):
    """Prepare the source, train through all stages, and give the scores of ``val``."""
    (tmp_path / "dataset_x.json").write_text(json.dumps(overlay))
    prepare(str(tmp_path / "source"), str(tmp_path / "data"), str(tmp_path / "dataset_x.json"), patch_size, patch_size)
    configs = ["configs/train.json", f"configs/method_{method}.json", "configs/lite.json", tmp_path / "dataset_x.json"]
    run_bundle("training", tmp_path / "run", configs, dataset_dir=str(tmp_path / "data"), **FAST | settings)
    return json.loads((tmp_path / "run" / "scores" / "segmenter_val.json").read_text())["protocols"]


def test_seven_classes_of_odd_sizes_with_a_class_missing_in_val_and_an_image_without_tissue(run_bundle, tmp_path):
    write_source(tmp_path / "source", (61, 75), 8, missing_in_val=(3,), glass=True)
    overlay = describe_dataset("x", tmp_path / "data", [f"tissue {number}" for number in range(1, 8)], True)
    scores = train(run_bundle, tmp_path, overlay, 53, "esfan", **{"classifier_batch_size": 4, "batch_size": 4})
    classes = scores["with_background"]["classes"]
    assert len(classes) == 8 and classes["tissue 3"]["recall"] is None and classes["tissue 3"]["pixels"] == 0
    assert all(0 <= scores[name]["mean_iou"] <= 1 for name in ("published", "with_background"))
    pred = read_mask(tmp_path / "run" / "predictions" / "segmenter_val" / "val0.png")
    assert pred.shape == (61, 75) and not pred.any()  # glass alone: background alone
    masks = [read_mask(path) for path in (tmp_path / "run" / "pseudo_masks").glob("*.png")]
    assert {mask.shape for mask in masks} == {(53, 53)} and max(mask.max() for mask in masks) <= 7


def test_two_classes_in_batches_of_one_or_two(run_bundle, tmp_path):
    write_source(tmp_path / "source", (43, 50), 2)
    overlay = describe_dataset("x", tmp_path / "data", ["gland", "rest"], False)
    sizes = {"classifier_batch_size": 1, "batch_size": 2, "eval_batch_size": 1}
    scores = train(run_bundle, tmp_path, overlay, 43, "ibdr", **sizes)
    assert list(scores) == ["published"] and set(scores["published"]["classes"]) == {"gland", "rest"}
    assert sum(map(sum, scores["published"]["confusion"])) == 2 * 43 * 50


def test_batches_of_one_for_the_segmentation_network_are_refused_before_the_first_stage(run_bundle, tmp_path):
    with pytest.raises(RuntimeError) as error:
        run_bundle("training", tmp_path / "run", **{"classifier_batch_size": 4, "batch_size": 1})
    assert "`batch_size` must be at least 2, since batch norm needs it" in str(plain_cause(error.value))
    assert not (tmp_path / "run").exists()


def test_one_seed_gives_the_same_bytes_again(finished_run, run_bundle, tmp_path):
    run_bundle("training", tmp_path / "again", **TINY)
    names = [path.relative_to(finished_run) for path in finished_run.rglob("*") if path.is_file()]
    results = [name for name in names if name.parts[0] in ("models", "pseudo_masks", "predictions", "scores")]
    assert {name.parts[0] for name in results} == {"models", "pseudo_masks", "predictions", "scores"}
    for name in results:
        assert (tmp_path / "again" / name).read_bytes() == (finished_run / name).read_bytes(), name


# --- CAMs that are no numbers, or say nothing


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_cam_that_is_not_finite_stops_instead_of_becoming_a_mask(value):
    cam = torch.rand(1, 3, 4, 4)
    cam[0, 1, 2, 2] = value
    scores = gate_and_normalize(cam, torch.ones(1, 3))
    with pytest.raises(ValueError, match="`scores` must not be NaN; the network's weights or its input image"):
        label_map(scores, torch.zeros(1, 3, 4, 4), background=True)


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("num_classes", [2, 7])
def test_a_constant_cam_gives_the_lowest_class_that_is_present(value, num_classes):
    present = torch.zeros(1, num_classes, dtype=torch.bool)
    present[0, 1:] = True
    scores = gate_and_normalize(torch.full((1, num_classes, 5, 3), value), present)
    assert (label_map(scores, torch.zeros(1, 3, 5, 3), background=True) == 1).all()
