import json

import numpy as np
import pytest
from PIL import Image
from some_classes import some_classes
from synthetic_slide import write_slide

from scripts.data.items import labelled_images
from scripts.data.mask_values import read_mask
from scripts.label_app.annotations.label_files import Annotation, Shape
from scripts.label_app.server.settings import BundleSettings
from scripts.label_app.server.training_set import AnnotatedImage, cut, write_labelled_patches, write_masked_patches

SETTINGS = BundleSettings(some_classes(["tumor", "stroma"]), patch_size=[16, 16], model_mpp=1.0)


def image_of(folder, name, pixels, annotation):
    Image.fromarray(pixels).save(folder / f"{name}.png")
    return AnnotatedImage(name, folder / f"{name}.png", annotation)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_larger_images_are_cut_into_patches_where_something_is_drawn(tmp_path):
    pixels, mask = noise(32, 40), np.zeros((32, 40), np.uint8)
    mask[:16, :20], mask[20:, 30:] = 1, 2
    patches = {p.name: p for p in cut(image_of(tmp_path, "a", pixels, Annotation(mask=mask)), SETTINGS, None)}
    places = {"a_x0_y0": (0, 0), "a_x16_y0": (0, 16), "a_x24_y16": (16, 24), "a_x16_y16": (16, 16)}
    assert set(patches) == set(places)  # a_x0_y16 is empty, a_x24_y0 ends where a_x16_y0 does, a few pixels further
    for name, (top, left) in places.items():
        assert np.array_equal(patches[name].image, pixels[top : top + 16, left : left + 16])
        assert np.array_equal(patches[name].mask, mask[top : top + 16, left : left + 16])


def test_slides_are_cut_at_the_networks_resolution_where_something_is_drawn(tmp_path):
    pixels = np.kron(noise(40, 48), np.ones((2, 2, 1), np.uint8))  # 80 x 96 at 0.5 um per pixel
    path = write_slide(tmp_path / "s.tif", pixels, mpp=0.5, levels=2)
    square = np.array([[40.0, 36.0], [62.0, 36.0], [62.0, 62.0], [40.0, 62.0]])
    slide = AnnotatedImage("s", path, Annotation(shapes=[Shape(2, square)]))
    patches = {p.name: p for p in cut(slide, SETTINGS, None)}
    small, truth = pixels[::2, ::2], np.zeros((40, 48), np.uint8)
    truth[18:31, 20:31] = 2
    assert set(patches) == {"s_x16_y16", "s_x16_y24"}  # the last one is moved back to end at the border
    for top, patch in ((16, patches["s_x16_y16"]), (24, patches["s_x16_y24"])):
        assert np.array_equal(patch.image, small[top : top + 16, 16:32])
        assert np.array_equal(patch.mask, truth[top : top + 16, 16:32])


def test_masks_of_slides_are_brought_to_the_networks_resolution(tmp_path):
    path = write_slide(tmp_path / "s.tif", noise(64, 64), mpp=0.5, levels=2)
    mask = np.kron(np.random.default_rng(1).integers(0, 3, (32, 32)), np.ones((2, 2))).astype(np.uint8)
    patches = list(cut(AnnotatedImage("s", path, Annotation(mask=mask)), SETTINGS, None))
    assert len(patches) == 4
    assert np.array_equal(patches[0].mask, mask[:32:2, :32:2])


def test_masked_patches_are_written_as_a_data_set(tmp_path):
    images = [
        image_of(
            tmp_path, f"i{number}", noise(16, 16, number), Annotation(mask=np.full((16, 16), 1 + number % 2, np.uint8))
        )
        for number in range(5)
    ]
    tagged = image_of(tmp_path, "t", noise(16, 16), Annotation(label=[1, 0]))
    assert write_masked_patches([*images, tagged], tmp_path / "data", SETTINGS, None, val_split=0.4) == 3
    written = {
        split: sorted(p.name for p in (tmp_path / "data" / split / "img").iterdir()) for split in ("train", "val")
    }
    assert len(written["val"]) == 2 and sorted(written["train"] + written["val"]) == [f"i{n}.png" for n in range(5)]
    for split, names in written.items():
        for name in names:
            mask = read_mask(tmp_path / "data" / split / "mask" / name)
            assert np.unique(mask).tolist() == [1 + int(name[1]) % 2]
            assert np.array_equal(
                np.asarray(Image.open(tmp_path / "data" / split / "img" / name)), noise(16, 16, int(name[1]))
            )


def test_too_little_to_train_on_is_refused(tmp_path):
    one = image_of(tmp_path, "a", noise(16, 16), Annotation(mask=np.ones((16, 16), np.uint8)))
    empty = image_of(tmp_path, "b", noise(16, 16), Annotation(mask=np.zeros((16, 16), np.uint8)))
    with pytest.raises(ValueError, match="needs at least two patches with masks.*got 1 from 2 images"):
        write_masked_patches([one, empty], tmp_path / "data", SETTINGS, None, 0.0)
    with pytest.raises(ValueError, match=r"`val_split` must be in \[0, 1\), got 1"):
        write_masked_patches([one], tmp_path / "data2", SETTINGS, None, 1)
    small = image_of(tmp_path, "c", noise(8, 20), Annotation(mask=np.ones((8, 20), np.uint8)))
    with pytest.raises(ValueError, match="c.png must be at least 16 x 16 pixels"):
        list(cut(small, SETTINGS, None))


def test_image_level_labels_are_written_with_the_masks_that_there_are(tmp_path):
    mask = np.zeros((16, 16), np.uint8)
    mask[:4] = 2
    images = [
        image_of(tmp_path, "t1", noise(16, 16, 1), Annotation(label=[1, 0])),
        image_of(tmp_path, "t2", noise(16, 16, 2), Annotation(label=[1, 1])),
        image_of(tmp_path, "m", noise(16, 16, 3), Annotation(mask=mask)),
    ]
    assert write_labelled_patches(images, tmp_path / "data", tmp_path / "masks", SETTINGS) == 3
    items = labelled_images(tmp_path / "data", SETTINGS.classes.class_names, tmp_path / "data" / "labels.json")
    assert {item["name"]: item["label"] for item in items} == {"t1.png": [1, 0], "t2.png": [1, 1], "m.png": [0, 1]}
    assert [p.name for p in (tmp_path / "masks").iterdir()] == ["m.png"]
    assert np.array_equal(read_mask(tmp_path / "masks" / "m.png"), mask)
    json.loads((tmp_path / "data" / "labels.json").read_text())


def test_labels_of_slides_and_of_several_sizes_are_refused(tmp_path):
    tag = Annotation(label=[1, 0])
    slide = AnnotatedImage("s", write_slide(tmp_path / "s.tif", noise(32, 32), levels=2), tag)
    patches = [image_of(tmp_path, "a", noise(16, 16), tag), image_of(tmp_path, "b", noise(16, 20), tag)]
    with pytest.raises(ValueError, match="labels must be on patches, got the slide s; draw on it"):
        write_labelled_patches([*patches, slide], tmp_path / "data", tmp_path / "masks", SETTINGS)
    with pytest.raises(ValueError, match=r"at least two patches of one size.*\(16, 16\), \(20, 16\)"):
        write_labelled_patches(patches, tmp_path / "data", tmp_path / "masks", SETTINGS)
    drawn = image_of(tmp_path, "c", noise(16, 16), Annotation(mask=np.ones((16, 16), np.uint8)))
    with pytest.raises(ValueError, match="got 1 patches, 0 with lists"):
        write_labelled_patches([drawn], tmp_path / "data", tmp_path / "masks", SETTINGS)
