"""What the server learns from annotators, over HTTP. The tests go on from one another, in this order."""

import io
import json
import os
import signal

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from scripts.data.mask_values import read_mask
from scripts.label_app.annotations.nifti import write_nifti
from scripts.weights.state_dicts import read_state_dict

NAME = "tiny_run"
PATCHES = [f"demo-val-{number:04d}" for number in range(8)]


def send_label(server, image, name, content, tag="final"):
    """Keep a label, as a client does when the annotator submits it."""
    answer = server.request("put", f"/datastore/label?image={image}&tag={tag}", files={"label": (name, content)})
    assert answer.status_code == 200, answer.text


def entropy_of(label_run, path):
    """Mean entropy over an image's pixels, background as 0, with the bundle's own network and transforms."""
    parser = ConfigParser()
    parser.read_config(label_run / "configs" / "inference.json")
    parser.update({"bundle_root": str(label_run), "device": "$torch.device('cpu')"})
    image = parser.get_parsed_content("preprocessing")({"image": str(path), "name": path.name})["image"]
    network = parser.get_parsed_content("evaluator#network").eval()
    with torch.inference_mode():
        logits = network(image[None])[0]
    prob = logits.double().softmax(dim=0).numpy()
    entropy = -(prob * np.log(prob)).sum(axis=0) / np.log(3)
    mask = parser.get_parsed_content("postprocessing")({"image": image, "pred": logits})["pred"][0].numpy()
    return np.where(mask > 0, entropy, 0).mean()


def test_the_most_uncertain_image_comes_next(server, label_run, studies):
    send_label(server, "slide", "empty.geojson", b'{"type": "FeatureCollection", "features": []}')  # leaves the patches
    expected = {name: entropy_of(label_run, studies / "images" / f"{name}.png") for name in PATCHES}
    best = max(expected, key=expected.get)
    answer = server.post("/activelearning/entropy").json()
    assert answer["id"] == best and answer["bbox"] == [0, 0, 64, 64]
    assert answer["entropy"] == pytest.approx(expected[best], abs=1e-4)
    assert (answer["unlabeled"], answer["scored"]) == (8, 8)
    send_label(server, best, "tags.json", b'["tumor"]')
    second = sorted(expected, key=expected.get)[-2]
    assert server.post("/activelearning/entropy").json()["id"] == second
    assert server.post("/activelearning/random").json()["id"] in set(PATCHES) - {best}
    state = server.run_task("scoring", "entropy")
    assert state["status"] == "DONE", state["details"]
    kept = server.request("get", f"/datastore/image/info?image={best}").json()["uncertainty"]
    assert kept["entropy"] == pytest.approx(expected[best], abs=1e-4)
    for name in ("slide", best):
        assert server.request("delete", f"/datastore/label?id={name}&tag=final").status_code == 200
    assert server.request("get", "/datastore/").json()["completed"] == 0


def test_the_place_in_a_slide_to_annotate_next_lies_in_its_tissue(server):
    answer = server.post("/activelearning/entropy", json={"image": "slide"}).json()
    left, top, width, height = answer["bbox"]
    assert answer["id"] == "slide" and (width, height) == (128, 128)  # a patch of 64 px at twice the resolution
    assert 0 <= left <= 512 - 128 and 0 <= top <= 384 - 128
    mask = server.post(
        f"/infer/{NAME}?image=slide&output=json",
        data={"params": json.dumps({"location": [left, top], "size": [width, height]})},
    ).json()
    assert 0 < answer["entropy"] <= 1 and mask["pixels"]["background"] < 0.9 * width * height


def square(left, top, side, name):
    """A feature of GeoJSON as QuPath exports it."""
    ring = [[left, top], [left + side, top], [left + side, top + side], [left, top + side], [left, top]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}


def test_two_annotated_masks_make_a_new_version(server, label_run, studies, tmp_path):
    png = (studies / "truth" / f"{PATCHES[0]}.png").read_bytes()
    write_nifti(tmp_path / "m.nii.gz", read_mask(studies / "truth" / f"{PATCHES[1]}.png"))
    send_label(server, PATCHES[0], "m.png", png)
    send_label(server, PATCHES[1], "m.nii.gz", (tmp_path / "m.nii.gz").read_bytes())
    before = server.post(f"/infer/{NAME}?image={PATCHES[0]}&output=json").json()
    state = server.run_task("train", NAME, max_epochs=1)
    assert state["status"] == "DONE", "\n".join(state["details"])
    version = label_run / "versions" / "0001"
    for number in (0, 1):  # it learnt from what was annotated
        learnt = read_mask(version / "pseudo_masks" / f"{PATCHES[number]}.png")
        assert np.array_equal(learnt, read_mask(studies / "truth" / f"{PATCHES[number]}.png"))
    old, new = (read_state_dict(folder / "models" / "model.pt") for folder in (label_run, version))
    changed = [name for name in new if not torch.equal(old[name], new[name])]
    assert len(changed) > len(new) / 2
    after = server.post(f"/infer/{NAME}?image={PATCHES[0]}&output=json").json()  # without a restart
    assert (before["version"], after["version"]) == ("base", "0001")
    assert after["uncertainty"] != before["uncertainty"]
    again = server.post(
        f"/infer/{NAME}?image={PATCHES[0]}&output=json", data={"params": json.dumps({"version": "base"})}
    ).json()
    assert again["uncertainty"] == before["uncertainty"] and again["pixels"] == before["pixels"]
    assert server.request("get", "/info/").json()["models"][NAME]["config"]["version"] == ["newest", "0001", "base"]
    log = (version / "run.log").read_text()
    assert "segmenter, epoch 1 of 1" in log and not (version / "checkpoints").exists()


def test_image_level_labels_make_a_new_version(server, label_run):
    for number, tissues in ((2, ["tumor"]), (3, ["Stroma", "lymphocytes"])):
        send_label(server, PATCHES[number], "tags.json", json.dumps(tissues).encode())
    state = server.run_task("train", f"{NAME}_image_labels", max_epochs=1)
    assert state["status"] == "DONE", "\n".join(state["details"])
    version = label_run / "versions" / "0002"
    assert list(json.loads((version / "run.json").read_text())["stages"]) == [
        "train_classifier",
        "generate_pseudo_masks",
        "train_segmenter",
    ]
    allowed = {2: {0, 1}, 3: {0, 2, 3}}  # the labels gate the pseudo masks
    for number, values in allowed.items():
        found = set(np.unique(read_mask(version / "pseudo_masks" / f"{PATCHES[number]}.png")).tolist())
        assert found <= values and found - {0}
    learnt = read_mask(version / "pseudo_masks" / f"{PATCHES[0]}.png")  # drawn masks stay what they are
    assert np.array_equal(learnt, read_mask(label_run / "versions" / "0001" / "pseudo_masks" / f"{PATCHES[0]}.png"))
    for name in ("classifier/model.pt", "model.pt"):
        source = label_run if "classifier" in name else label_run / "versions" / "0001"
        old, new = (read_state_dict(folder / "models" / name) for folder in (source, version))
        assert any(not torch.equal(old[part], new[part]) for part in new)
    assert server.post(f"/infer/{NAME}?image={PATCHES[0]}&output=json").json()["version"] == "0002"


def test_drawings_on_a_slide_are_learnt_at_its_resolution(server, label_run):
    shapes = [square(100, 80, 64, "tumor"), square(200, 160, 40, "stroma")]
    send_label(server, "slide", "a.geojson", json.dumps({"type": "FeatureCollection", "features": shapes}).encode())
    state = server.run_task("train", NAME, max_epochs=1, val_split=0.4)
    assert state["status"] == "DONE", "\n".join(state["details"])
    data = label_run / "versions" / "0003" / "data"
    masks = {path.stem: read_mask(path) for path in data.glob("*/mask/*.png")}
    drawn = np.zeros((192, 256), np.uint8)  # the slide at the network's 1 um per pixel
    drawn[40:72, 50:82], drawn[80:100, 100:120] = 1, 2
    cut = {name: mask for name, mask in masks.items() if name.startswith("slide")}
    assert len(cut) >= 3
    for name, mask in cut.items():
        left, top = (int(part[1:]) for part in name.split("_")[1:])
        assert np.array_equal(mask, drawn[top : top + 64, left : left + 64])
    stats = server.request("get", "/info/").json()["train_stats"][NAME]
    assert stats["version"] == "0003" and 0 <= stats["mean_iou"]["val"] <= 1


def test_many_images_are_segmented_and_kept_as_original(server, studies):
    state = server.run_task("batch/infer", NAME, images="all", label_tag="original")
    assert state["status"] == "DONE", "\n".join(state["details"])
    kept = server.request("get", f"/datastore/label?label={PATCHES[4]}&tag=original")
    asked = server.post(f"/infer/{NAME}?image={PATCHES[4]}&output=image")
    masks = [np.asarray(Image.open(io.BytesIO(answer.content))) for answer in (kept, asked)]
    assert np.array_equal(*masks)
    features = server.request("get", "/datastore/label?label=slide&tag=original").json()["features"]
    assert {f["properties"]["name"] for f in features} <= {"tumor", "stroma", "lymphocytes"} and features


def test_a_requests_device_is_not_run_as_code(server, label_run, tmp_path):
    device = f"cpu') if open('{tmp_path / 'victim'}', 'w') else torch.device('cpu"
    state = server.run_task("train", NAME, max_epochs=1, device=device)
    assert state["status"] == "ERROR" and "`device` must be a device such as" in "\n".join(state["details"])
    assert not (tmp_path / "victim").exists()
    assert not (label_run / "versions" / "0004").exists()


def test_training_that_cannot_work_says_so_and_leaves_no_version(server, label_run):
    for number in range(4):
        server.request("delete", f"/datastore/label?id={PATCHES[number]}&tag=final")
    state = server.run_task("train", f"{NAME}_image_labels", max_epochs=1)
    assert state["status"] == "ERROR"
    assert "training from image-level labels needs at least two patches" in "\n".join(state["details"])
    assert server.request("get", "/info/").json()["models"][NAME]["config"]["version"][1] == "0003"
    assert not (label_run / "versions" / "0004").exists()


def test_the_server_ends_by_its_own_process(server):
    os.kill(server.process.pid, signal.SIGTERM)
    server.process.wait(30)
    with pytest.raises(OSError):
        server.request("get", "/info/")
