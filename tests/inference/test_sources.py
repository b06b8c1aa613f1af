from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_slide import write_slide

from scripts.inference.sources import sources_in


def test_slides_are_found_in_subfolders_and_by_pattern(tmp_path):
    (tmp_path / "case").mkdir()
    pixels = np.full((300, 300, 3), 240, np.uint8)
    paths = [write_slide(tmp_path / name, pixels) for name in ("a.tif", "case/b.tif")]
    Image.fromarray(pixels).save(tmp_path / "patch.png")
    assert sources_in(tmp_path) == paths == sources_in(f"{tmp_path}/**/*.tif")
    assert sources_in(f"{tmp_path}/a.tif,{tmp_path}/case/b.tif") == paths
    assert sources_in(tmp_path / "a.tif") is None and sources_in(tmp_path / "patch.png") is None
    with pytest.raises(FileNotFoundError, match="none.tif must be an image, a slide or a folder of either"):
        sources_in(f"{tmp_path}/none.tif")


def test_a_folder_without_slides_is_one_of_images(tmp_path):
    for name in ("b.png", "a.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    assert list(map(Path, sources_in(str(tmp_path)))) == [tmp_path / "a.png", tmp_path / "b.png"]
