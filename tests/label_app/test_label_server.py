"""What annotators' clients ask of a real server, over HTTP. The tests go on from one another, in this order."""

import io
import json
import os
import re
from http.client import HTTPConnection
from xml.etree import ElementTree

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from shapely.geometry import shape

NAME = "tiny_run"
REGION = {"location": [100, 60], "size": [260, 220]}  # x, y and width, height in pixels of level 0
PATCHES = [f"demo-val-{number:04d}" for number in range(8)]


def mask_of(answer):
    """The PNG of an answer as (H, W) uint8."""
    with Image.open(io.BytesIO(answer.content)) as picture:
        return np.asarray(picture)


@pytest.fixture(scope="module")
def own_masks(label_run, studies, tmp_path_factory):
    """The bundle's own inference on the patches, by its own command."""
    output = tmp_path_factory.mktemp("own")
    images = output / "images"
    images.mkdir()
    for name in PATCHES:
        os.symlink(studies / "images" / f"{name}.png", images / f"{name}.png")
    here = os.getcwd()
    os.chdir(label_run)
    try:
        monai.bundle.run(
            config_file="configs/inference.json", dataset_dir=str(images), output_dir=str(output), device="cpu"
        )
    finally:
        os.chdir(here)
    return {name: np.asarray(Image.open(output / "masks" / f"{name}.png")) for name in PATCHES}


def test_info_lists_the_models(server):
    info = server.request("get", "/info/").json()
    assert list(info["models"]) == [NAME]
    assert info["models"][NAME]["labels"] == {"tumor": 1, "stroma": 2, "lymphocytes": 3}
    assert info["models"][NAME]["config"]["version"] == ["newest", "base"]
    assert list(info["trainers"]) == [NAME, f"{NAME}_image_labels"]
    assert list(info["strategies"]) == ["entropy", "random"] and list(info["scoring"]) == ["entropy"]
    assert info["datastore"]["total"] == 9


def listening(port):
    """The IPv4 addresses, as the kernel writes them, on which a port is listened to."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}


def test_the_server_listens_to_this_machine_alone(server):
    assert listening(server.port) == {"0100007F"}  # 127.0.0.1, the bytes backwards; nothing in the test says so


def test_masks_of_patches_are_the_bundles_own(server, own_masks):
    for name, mask in own_masks.items():
        assert np.array_equal(mask_of(server.post(f"/infer/{NAME}?image={name}&output=image")), mask)
    assert len({mask.tobytes() for mask in own_masks.values()}) > 1
    params = server.post(f"/infer/{NAME}?image={PATCHES[0]}&output=json").json()
    values, counts = np.unique(own_masks[PATCHES[0]], return_counts=True)
    names = ["background", "tumor", "stroma", "lymphocytes"]
    assert {name: n for name, n in params["pixels"].items() if n} == dict(
        zip([names[v] for v in values], counts.tolist())
    )


def test_masks_come_as_nifti_and_of_pictures_that_are_sent(server, own_masks, studies, tmp_path):
    mask = own_masks[PATCHES[1]]
    data = {"params": json.dumps({"result_extension": ".nii.gz"})}
    answer = server.post(f"/infer/{NAME}?image={PATCHES[1]}&output=image", data=data)
    (tmp_path / "m.nii.gz").write_bytes(answer.content)
    image = nib.load(tmp_path / "m.nii.gz")
    assert image.shape == (64, 64, 1) and np.array_equal(np.asarray(image.dataobj)[..., 0].T, mask)
    sent = {"file": ("x.png", (studies / "images" / f"{PATCHES[1]}.png").read_bytes())}
    assert np.array_equal(mask_of(server.post(f"/infer/{NAME}?output=image", files=sent)), mask)
    wsi = {"wsi": json.dumps({**REGION, "level": 0, "tile_size": [1024, 1024]})}  # as QuPath's plugin asks
    sent = {"file": ("x.png", (studies / "images" / f"{PATCHES[1]}.png").read_bytes())}
    root = ElementTree.fromstring(server.post(f"/infer/wsi_v2/{NAME}?output=asap", data=wsi, files=sent).content)
    x, y = ([int(point.get(axis)) for point in root.iter("Coordinate")] for axis in "XY")
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    assert (min(x), max(x)) == (100 + columns[0], 100 + columns[-1] + 1)
    assert (min(y), max(y)) == (60 + rows[0], 60 + rows[-1] + 1)


def ring_area(ring):
    """Inside a ring, by the shoelace formula, whichever way it runs."""
    x, y = np.array(ring, dtype=float).T[:2]
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2


def test_outlines_of_a_slides_region_have_the_masks_area(server):
    answer = server.post(f"/infer/{NAME}?image=slide&output=image", data={"params": json.dumps(REGION)})
    mask = mask_of(answer)
    assert mask.shape == (220, 260)
    names = {1: "tumor", 2: "stroma", 3: "lymphocytes"}
    areas = {names[value]: int((mask == value).sum()) for value in np.unique(mask) if value}
    assert sum(areas.values()) > 20000

    def outlines(query, **params):
        query = f"&output={query}" if query else ""
        return server.post(f"/infer/wsi/{NAME}?image=slide{query}", json={**REGION, "params": params}).content

    geojson = json.loads(outlines(None, output="geojson"))
    assert {f["properties"]["name"]: shape(f["geometry"]).area for f in geojson["features"]} == areas
    bounds = np.array([shape(f["geometry"]).bounds for f in geojson["features"]])
    assert bounds[:, 0].min() >= 100 and bounds[:, 1].min() >= 60 and bounds[:, 2].max() <= 360
    annotation = json.loads(outlines("json"))["annotations"][0]["annotation"]
    assert {e["label"]: sum(map(ring_area, e["contours"])) for e in annotation["elements"]} == areas
    found = dict.fromkeys(areas, 0)
    for element in json.loads(outlines("dsa"))["elements"]:
        found[element["group"]] += ring_area(element["points"]) - sum(map(ring_area, element.get("holes", [])))
    assert found == areas
    found = dict.fromkeys(areas, 0)
    for element in ElementTree.fromstring(outlines("asap")).iter("Annotation"):
        points = [[float(p.get("X")), float(p.get("Y"))] for p in element.iter("Coordinate")]
        found[element.get("Name")] += ring_area(points)
    assert found == areas


def test_all_of_a_slide_is_what_the_bundle_makes_of_it(server, label_run, studies, tmp_path, monkeypatch):
    monkeypatch.chdir(label_run)
    slides = {"slides": str(studies / "images" / "slide.tif"), "output_dir": str(tmp_path), "device": "cpu"}
    monai.bundle.run(config_file="configs/inference_slides.json", **slides)
    own = json.loads((tmp_path / "slide" / "annotations.geojson").read_text())
    request = {"location": [0, 0], "size": [0, 0], "params": {"output": "geojson"}}
    assert server.post(f"/infer/wsi/{NAME}?image=slide", json=request).json() == own
    assert mask_of(server.post(f"/infer/{NAME}?image=slide&output=image")).shape == (384, 512)


WRONG = [
    ("post", f"/infer/nothing?image={PATCHES[0]}", {}, 404, r"the model must be one of \['tiny_run'\]"),
    ("post", f"/infer/{NAME}?image=nothing", {}, 404, "must be an image in the data folder, got 'nothing'"),
    ("post", f"/infer/{NAME}?image=/etc/hostname", {}, 404, "must be an image in the data folder"),
    ("post", f"/infer/{NAME}?image=../truth/{PATCHES[0]}.png", {}, 404, "must be an image in the data folder"),
    ("post", f"/infer/{NAME}", {}, 400, "Neither Image nor File"),
    ("post", f"/infer/{NAME}?image={PATCHES[0]}", {"data": {"params": "{"}}, 400, "must be a JSON object"),
    ("post", f"/infer/{NAME}?image={PATCHES[0]}", {"data": {"params": "[1]"}}, 400, "in the form that the endpoint"),
    ("post", f"/infer/{NAME}?image={PATCHES[0]}", {"data": {"params": '{"image": "/etc/hostname"}'}}, 404, "`image`"),
    ("post", f"/infer/{NAME}?image={PATCHES[0]}", {"data": {"params": '{"image": 3}'}}, 400, "`image`"),
    ("post", f"/infer/{NAME}?image={PATCHES[0]}", {"data": {"params": '{"version": "0009"}'}}, 400, "`version`"),
    ("post", f"/infer/{NAME}?image={PATCHES[0]}", {"data": {"params": '{"result_extension": ".py"}'}}, 400, "`result_"),
    ("post", f"/infer/{NAME}", {"files": {"file": ("x.png", b"x")}}, 400, "cannot identify image file"),
    ("post", f"/infer/wsi/{NAME}?image=nothing", {"json": REGION}, 404, "must be an image in the data folder"),
    ("post", "/infer/wsi/nothing?image=slide", {"json": REGION}, 404, "the model must be one of"),
    ("post", f"/infer/wsi/{NAME}?image=slide", {"json": {"location": [-1, 0]}}, 400, "`location` must be within"),
    ("post", f"/infer/wsi/{NAME}?image=slide", {"json": {"location": [600, 0]}}, 400, "`location` must be within"),
    ("post", f"/infer/wsi/{NAME}?image=slide", {"json": {"size": [10**6] * 2}}, 400, "must not be larger than"),
    ("post", f"/infer/wsi/{NAME}?image=slide", {"json": {"size": [5, 0]}}, 400, "`size` must be a positive"),
    ("post", f"/infer/wsi/{NAME}?image=slide", {"json": {"level": 7}}, 400, "`level` must be one of"),
    ("post", f"/infer/wsi/{NAME}?image=slide", {"json": {"params": {"output": "pdf"}}}, 400, "`output` must be one of"),
    ("post", f"/infer/wsi/{NAME}?image=slide&output=pdf", {"json": REGION}, 422, "asap"),
    ("post", f"/infer/wsi_v2/{NAME}?image=slide", {"data": {"wsi": "no"}}, 400, "must be a JSON object"),
    ("post", "/train/nothing", {}, 404, "/train/NAME must be one of"),
    ("post", f"/train/{NAME}", {}, 400, "there is nothing to train on"),
    ("post", "/scoring/nothing", {}, 404, "/scoring/NAME must be one of"),
    ("post", "/batch/infer/nothing", {}, 404, "/batch/infer/NAME must be one of"),
    ("post", "/activelearning/nothing", {}, 400, "no such strategy 'nothing'"),
    ("post", "/activelearning/entropy", {"json": {"image": "nothing"}}, 400, "`image` must be an image"),
    ("put", "/datastore/label?image=nothing", {"files": {"label": ("x.json", b'["tumor"]')}}, 404, "`image` must be"),
    (
        "put",
        f"/datastore/label?image={PATCHES[0]}&tag=../x",
        {"files": {"label": ("x.json", b'["tumor"]')}},
        400,
        "`tag`",
    ),
    (
        "put",
        f"/datastore/label?image={PATCHES[0]}",
        {"files": {"label": ("x.json", b'["bone"]')}},
        400,
        "must be a list",
    ),
    ("put", f"/datastore/label?image={PATCHES[0]}", {"files": {"label": ("x.pkl", b"x")}}, 400, "must end in one of"),
    ("put", "/datastore/image?image=../x", {"files": {"file": ("x.png", b"x")}}, 400, "a plain name without folders"),
    ("put", "/datastore/image?image=x", {"files": {"file": ("x.png", b"x")}}, 400, "cannot identify image file"),
    ("put", "/datastore/image?image=x", {"files": {"file": ("x.sh", b"x")}}, 400, "must end in one of"),
    ("post", f"/infer/wsi_v2/{NAME}", {"files": {"file": ("x.png", b"x")}, "data": {"wsi": "3"}}, 400, "in the form"),
    ("put", f"/model/{NAME}", {"files": {"file": ("x.pt", b"x")}}, 400, "NOT configured"),
]


@pytest.mark.parametrize(("method", "path", "options", "status", "sentence"), WRONG)
def test_wrong_requests_are_answered_in_words(server, method, path, options, status, sentence):
    answer = server.request(method, path, **options)
    assert answer.status_code == status, answer.text
    assert re.search(sentence, str(answer.json()["detail"])), answer.text
    assert server.request("get", "/info/").status_code == 200 and server.process.poll() is None
    assert server.request("get", "/datastore/").json()["total"] == 9


def test_a_sessions_id_is_no_path(server):
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)  # which sends the path as it is
    connection.request("DELETE", "/session/..")
    answer = connection.getresponse()
    assert answer.status == 404 and b"a session's id must consist of" in answer.read()
    connection.close()
