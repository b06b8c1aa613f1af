import json

import numpy as np
import pytest
import tifffile
import torch
from some_classes import some_classes
from synthetic_slide import write_slide
from torch import nn

from scripts.slides.reading.slide import Slide
from scripts.slides.segmenting.blending import Segmenter
from scripts.slides.segmenting.engine import SlideEngine, cells_in_budget, hash_weights
from scripts.slides.segmenting.strip_files import StripFiles

CLASSES = some_classes(["red", "green"])


class RedOrGreen(nn.Module):
    def __init__(self):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(9.0))

    def forward(self, image):
        return self.sharpness * image[:, :2]


def engine(**settings):
    segmenter = Segmenter(RedOrGreen(), CLASSES, torch.device("cpu"), 4)
    return SlideEngine(segmenter, **{"model_mpp": 1.0, "tile_px": 32, **settings})


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """Red and green stripes on glass, 0.5 micrometres per pixel."""
    image = np.full((700, 900, 3), 244, dtype=np.uint8)
    image[100:500, 200:700] = [200, 40, 60]
    image[100:500, 200:700:3] = [40, 200, 60]
    image[200:300, 300:400] = 250
    return Slide(write_slide(tmp_path_factory.mktemp("slides") / "a.tif", image, 0.5, levels=2))


def finished(work, plan, folder, processes=1):
    strips = StripFiles(folder / "strips")
    for rank in range(processes):
        work.compute(plan, strips, rank, processes)
    work.save(plan, strips, folder / "a", {})
    return {path.name: path.read_bytes() for path in (folder / "a").iterdir()}


def test_results_are_complete_and_of_one_size(slide, tmp_path):
    files = finished(engine(), engine().plan(slide), tmp_path)
    maps = ["classes.ome.tif", "entropy.ome.tif"]
    assert sorted(files) == sorted(
        [*maps, "annotations.geojson", "areas.csv", "areas.json", "tissue.png", "overlay.png", "record.json"]
    )
    assert all(tifffile.imread(tmp_path / "a" / name).shape == (350, 450) for name in maps)
    settings = json.loads(files["record.json"])["settings"]
    assert settings["mpp"] == pytest.approx([1, 1], rel=1e-3) and settings["level"] == 1
    classes = tifffile.imread(tmp_path / "a" / "classes.ome.tif")
    assert (classes[101:149, 151:199] == 0).all() and (classes[:40] == 0).all() and classes[60:90, 110:340].min() > 0
    assert sum(path.is_file() for path in tmp_path.rglob(".*")) == 0


def test_several_processes_and_one_write_the_same_bytes(slide, tmp_path):
    plan = engine().plan(slide)
    shares = [plan.share(rank, 3) for rank in range(3)]
    assert sum(shares, []) == plan.busy and min(map(len, shares)) > 0
    one = finished(engine(), plan, tmp_path / "one")
    assert finished(engine(), plan, tmp_path / "three", 3) == one


def test_what_is_there_is_not_computed_again(slide, tmp_path):
    work = engine()
    plan, tiles = work.plan(slide), []
    one = finished(work, plan, tmp_path / "one")
    strips = StripFiles(tmp_path / "two" / "strips")
    work.compute(plan, strips, done=tiles.append)
    assert sum(tiles) == plan.blender.cells.sum()
    for strip in plan.busy[::3]:
        strips.path(*strip).unlink()
    tiles.clear()
    expected = work.tiles_left(plan, strips)
    work.compute(plan, strips, done=tiles.append)
    assert 0 < sum(tiles) == expected < plan.blender.cells.sum()
    work.save(plan, strips, tmp_path / "two" / "a", {})
    assert {path.name: path.read_bytes() for path in (tmp_path / "two" / "a").iterdir()} == one


def test_narrow_bands_change_rounding_alone(slide, tmp_path):
    wide = finished(engine(), engine().plan(slide), tmp_path / "wide")
    narrow = engine()
    narrow.band_cells = 3
    assert len(narrow.plan(slide).grid.bands) > 3
    files = finished(narrow, narrow.plan(slide), tmp_path / "narrow")
    assert (
        files["classes.ome.tif"] == wide["classes.ome.tif"]
        and files["annotations.geojson"] == wide["annotations.geojson"]
    )


def test_a_region_is_that_part_of_the_slide(slide, tmp_path):
    work = engine(smallest_tissue_mm2=0)
    finished(work, work.plan(slide), tmp_path / "whole")
    finished(work, work.plan(slide, (220, 260, 200, 300)), tmp_path / "part")
    whole, part = (tifffile.imread(tmp_path / name / "a" / "classes.ome.tif") for name in ("whole", "part"))
    assert np.array_equal(part, whole[110:210, 130:280])
    coordinates = json.loads((tmp_path / "part" / "a" / "annotations.geojson").read_text())["features"][0]["geometry"]
    points = np.concatenate([np.array(ring) for polygon in coordinates["coordinates"] for ring in polygon])
    assert points.min(axis=0).tolist() == [260, 220] and points.max(axis=0).tolist() == [560, 420]


@pytest.mark.parametrize(
    ("shape", "color"), [((1, 1), 100), ((5, 3), 100), ((300, 200), 244)], ids=["pixel", "tiny", "glass"]
)
def test_slides_of_next_to_nothing_give_valid_results(tmp_path, shape, color):
    image = np.full((*shape, 3), color, dtype=np.uint8)
    image[..., 2] += color == 100
    work = engine()
    slide = Slide(write_slide(tmp_path / "a.tif", image, 0.5))
    files = finished(work, work.plan(slide), tmp_path)
    assert json.loads(files["annotations.geojson"])["features"] == []
    assert json.loads(files["areas.json"])["tissue"]["pixels"] == 0


def test_the_budget_sets_the_bands_and_has_a_least():
    assert cells_in_budget(2.0, 4, 224, 112) * 112 > 10000
    assert cells_in_budget(0.1, 4, 224, 112) < cells_in_budget(0.2, 4, 224, 112)
    with pytest.raises(
        ValueError, match="`budget_gb` must leave room for two tiles of 224 px .* got 0.001; set at least 0.0"
    ):
        cells_in_budget(0.001, 4, 224, 112)


def test_an_unknown_resolution_of_the_network_is_an_error():
    with pytest.raises(ValueError, match="`model_mpp` must be the micrometres per pixel .* pass --model_mpp"):
        engine(model_mpp=None)


def test_the_hash_is_that_of_names_and_values():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.load_state_dict(first.state_dict())
    assert hash_weights(first) == hash_weights(second)
    with torch.no_grad():
        second.bias[0] += 1
    assert hash_weights(first) != hash_weights(second)
