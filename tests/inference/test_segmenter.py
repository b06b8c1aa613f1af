import doctest
import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from conftest import BUNDLE
from PIL import Image
from synthetic_slide import write_slide

import scripts.inference.prediction
import scripts.inference.segmenter
from scripts.errors import BundleError
from scripts.inference import segmenter as segmenter_module
from scripts.inference.segmenter import load, mask_step
from scripts.weights.state_dicts import read_state_dict


@pytest.fixture(scope="module")
def run(finished_run, demo_dir, tmp_path_factory):
    """A copy of the finished run whose network, which has seen hardly anything, finds all classes."""
    folder = tmp_path_factory.mktemp("runs") / "all_classes"
    shutil.copytree(finished_run, folder)
    found = list(load(folder, "cpu").predict(demo_dir / "train" / "img"))
    scores = np.log(np.stack([one.probabilities for one in found]))  # logits but for a number at each pixel
    weights = read_state_dict(folder / "models" / "model.pt")
    (bias,) = (name for name in weights if name.endswith("segmentation_head.0.bias"))
    weights[bias] -= torch.from_numpy(np.median(scores, axis=(0, 2, 3)))
    torch.save(weights, folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="module")
def segmenter(run):
    return load(run, device="cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory, demo_dir):
    """Seven images of three sizes, mixed, and the largest of several windows."""
    folder = tmp_path_factory.mktemp("images")
    patches = [Image.open(path) for path in sorted((demo_dir / "train" / "img").glob("*.png"))]
    for number, size in enumerate([(64, 64), (150, 100), (64, 64), (64, 64), (40, 70), (64, 64), (64, 64)]):
        patches[number].resize(size).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def slide(tmp_path_factory, demo_dir):
    """Patches side by side with glass around them, of 0.5 um per pixel."""
    patches = [np.asarray(Image.open(path)) for path in sorted((demo_dir / "train" / "img").glob("*.png"))]
    rows = [np.concatenate(patches[row : row + 4], axis=1) for row in (0, 4)]
    pixels = np.full((200, 330, 3), 245, np.uint8)
    pixels[30:158, 30:286] = np.concatenate(rows)
    path = tmp_path_factory.mktemp("slides") / "slide.tif"
    return write_slide(path, np.kron(pixels, np.ones((2, 2, 1), np.uint8)), mpp=0.5, levels=2)


@pytest.fixture(scope="module")
def image(demo_dir):
    return sorted((demo_dir / "val" / "img").glob("*.png"))[0]


def test_masks_are_those_of_the_bundle_s_own_run(segmenter, images, run_bundle, run, tmp_path, monkeypatch):
    config = str(run / "configs" / "inference.json")
    run_bundle("run", tmp_path, config, bundle_root=str(run), dataset_dir=str(images))
    monkeypatch.chdir(tmp_path)
    predictions = list(segmenter.predict(images))
    assert [found.path.name for found in predictions] == [f"{number}.png" for number in range(7)]
    for found in predictions:
        written = np.asarray(Image.open(tmp_path / "masks" / found.path.name))
        assert found.mask.dtype == np.uint8 and np.array_equal(found.mask, written)
        assert np.array_equal(found.image, np.asarray(Image.open(found.path)))
    assert {value for found in predictions for value in np.unique(found.mask)} == {0, 1, 2, 3}


def test_probabilities_entropy_and_areas_follow_from_one_another(segmenter, image):
    found = segmenter.predict(image)
    prob, tissue = found.probabilities, found.mask > 0
    assert prob.dtype == np.float32 and prob.shape == (3, 64, 64) and np.allclose(prob.sum(axis=0), 1, atol=1e-5)
    assert np.array_equal(found.mask[tissue], prob.argmax(axis=0)[tissue] + 1)
    entropy = -(prob.astype(float) * np.log(prob)).sum(axis=0) / np.log(3)
    assert np.allclose(found.entropy[tissue], entropy[tissue], atol=1e-5) and not found.entropy[~tissue].any()
    assert list(found.areas) == ["tumor", "stroma", "lymphocytes"] and found.mpp == (1.0, 1.0)
    for value, area in enumerate(found.areas.values(), start=1):
        count = (found.mask == value).sum()
        assert (area.pixels, area.share, area.mm2) == (count, count / tissue.sum(), pytest.approx(count / 1e6))


def test_arrays_pictures_and_files_are_the_same(segmenter, image):
    pixels = np.asarray(Image.open(image))
    pixels.flags.writeable = False
    sources = [str(image), pixels, Image.open(image), np.ascontiguousarray(pixels[::-1])[::-1]]
    first, *others = segmenter.predict(sources)
    assert [found.path for found in others] == [None] * 3 and first.path == image
    for found in [*others, *(segmenter.predict(source) for source in sources)]:
        assert np.array_equal(found.mask, first.mask) and np.array_equal(found.image, first.image)


def test_several_are_segmented_when_they_are_asked_for(segmenter, images, monkeypatch):
    batches = []
    whole = segmenter._predict_images
    monkeypatch.setattr(segmenter, "_predict_images", lambda batch: batches.append(len(batch)) or whole(batch))
    found = segmenter.predict([path for path in sorted(images.glob("*.png"))])
    assert batches == []
    next(found)
    assert batches == [3]  # eval_batch_size
    assert len(list(found)) == 6 and batches == [3, 1, 1, 2]


def test_settings_and_an_exported_bundle(exported_bundle, finished_run, segmenter, image):
    exported = load(str(exported_bundle), device=torch.device("cpu"), mirror_averaging=False, model_mpp="$None")
    assert segmenter.network.enabled and not exported.network.enabled
    found = exported.predict(image)
    assert found.mpp is None and [area.mm2 for area in found.areas.values()] == [None] * 3
    assert sum(area.pixels for area in found.areas.values()) == (found.mask > 0).sum()
    of_the_run = load(finished_run, "cpu").predict(image)
    assert np.array_equal(load(exported_bundle, "cpu").predict(image).probabilities, of_the_run.probabilities)


# --- slides


def test_slides_are_those_of_the_bundle_s_own_run(segmenter, slide, run_bundle, run, tmp_path):
    config = str(run / "configs" / "inference_slides.json")
    run_bundle("run", tmp_path, config, bundle_root=str(run), slides=str(slide))
    found = segmenter.predict(slide)
    assert np.array_equal(found.mask, tifffile.imread(tmp_path / "slide" / "classes.ome.tif"))
    written = tifffile.imread(tmp_path / "slide" / "entropy.ome.tif")
    assert np.array_equal(np.round(found.entropy * 255), written) and written.any()
    rows = json.loads((tmp_path / "slide" / "areas.json").read_text())["classes"]
    assert {row["class"]: (row["pixels"], row["share_of_tissue"], row["area_mm2"]) for row in rows} == {
        name: (area.pixels, area.share, area.mm2) for name, area in found.areas.items()
    }
    assert found.mask.shape == (200, 330) and set(np.unique(found.mask)) == {0, 1, 2, 3}
    assert found.probabilities is None and found.mpp == (1.0, 1.0)


def test_large_slides_keep_every_second_or_fourth_pixel(segmenter, slide, monkeypatch):
    whole = segmenter.predict(slide)
    for largest, step in ((0.05, 2), (0.01, 4)):
        monkeypatch.setattr(segmenter_module, "LARGEST_MASK_MPX", largest)
        found = segmenter.predict(slide)
        assert np.array_equal(found.mask, whole.mask[::step, ::step]) and found.mpp == (step, step)
        assert np.array_equal(found.entropy, whole.entropy[::step, ::step]) and found.areas == whole.areas
    assert mask_step((100, 100)) == 1


def test_slides_and_images_in_a_list(segmenter, slide, image, tmp_path):
    write_slide(tmp_path / "plain.tif", np.asarray(Image.open(image)), mpp=None)
    with pytest.raises(BundleError, match="must state its micrometres per pixel"):
        segmenter.predict(tmp_path / "plain.tif")
    found = list(segmenter.predict([tmp_path / "plain.tif", image, slide], mpp=1.0))
    assert [one.probabilities is None for one in found] == [True, False, True]
    assert [one.path.name for one in segmenter.predict(slide.parent)] == ["slide.tif"]


# --- pictures


def test_plots_outline_the_tissues_above_their_names(segmenter, slide, image):
    for found, size in ((segmenter.predict(image), (512, 512)), (segmenter.predict(slide), (512, 310))):
        plot = found.plot()
        assert plot.width == size[0] and plot.height > size[1] and plot.mode == "RGB"
        pixels, legend = np.asarray(plot)[: size[1]], np.asarray(plot)[size[1] :]
        assert legend.min() < 128  # dark text
        for name, area in found.areas.items():
            color = found.classes.palette[found.classes.value_names.index(name)]
            assert (legend == color).all(axis=2).any()
            assert (pixels == color).all(axis=2).any() == (area.pixels > 0)


# --- what is refused


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: x / 255, r"must be an RGB image \(H, W, 3\) uint8, got \(64, 64, 3\) float64; convert values in"),
        (lambda x: x.astype(np.uint16), r"got \(64, 64, 3\) uint16"),
        (lambda x: x[..., 0], "it is greyscale: load it as RGB"),
        (lambda x: x[..., :1], "it is greyscale"),
        (lambda x: np.dstack([x, x[..., :1]]), r"drop the alpha channel, `x\[..., :3\]`"),
        (lambda x: x.transpose(2, 0, 1), r"got \(3, 64, 64\) uint8; .*transpose\(1, 2, 0\)"),
        (lambda x: x[:0], r"got \(0, 64, 3\) uint8"),
        (lambda x: torch.tensor(x), "an array .*, a PIL image, a path, or a list of those, got Tensor; convert it to"),
        (lambda x: None, "got NoneType"),
        (lambda x: Image.fromarray(x).convert("L"), "must be an 8-bit RGB image, got L"),
        (lambda x: Image.fromarray(x).convert("RGBA"), "must be an 8-bit RGB image, got RGBA"),
        (lambda x: [], "must have at least one image or slide, got an empty list"),
        (lambda x: [x, x[..., 0]], "it is greyscale"),
    ],
)
def test_what_is_no_image_is_refused_at_once(segmenter, image, make, words):
    with pytest.raises(BundleError, match=words):
        segmenter.predict(make(np.array(Image.open(image))))


def test_files_that_are_no_images_are_refused(segmenter, image, tmp_path):
    with pytest.raises(FileNotFoundError, match="must be an image, a slide or a folder of either; it does not exist"):
        segmenter.predict(tmp_path / "missing.png")
    with pytest.raises(FileNotFoundError, match="must contain images .*, but has none"):
        segmenter.predict(tmp_path)
    Image.open(image).convert("L").save(tmp_path / "grey.png")
    with pytest.raises(BundleError, match="grey.png must be an 8-bit RGB image, got L"):
        segmenter.predict(tmp_path / "grey.png")
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:3000])
    with pytest.raises(BundleError, match="cut.png must be a readable image"):
        segmenter.predict(tmp_path / "cut.png")
    with pytest.raises(BundleError, match="`mpp` must be left out if there are no slides, got 0.5; .* 1.0 um"):
        segmenter.predict(image, mpp=0.5)


def test_folders_that_are_no_finished_runs_are_refused(finished_run, tmp_path):
    with pytest.raises(BundleError, match="must be the folder of a finished run, got .*missing, which is no folder"):
        load(tmp_path / "missing")
    with pytest.raises(BundleError, match="which has no configs/inference.json and no models/model.pt; pass another"):
        load(tmp_path)
    with pytest.raises(BundleError, match="which has no models/model.pt"):
        shutil.copytree(finished_run / "configs", tmp_path / "bundle" / "configs")
        load(tmp_path / "bundle")
    shutil.copytree(finished_run, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    del record["stages"]["train_segmenter"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(BundleError, match="whose network is not trained yet; repeat the training"):
        load(tmp_path / "run")


def test_settings_and_weights_that_do_not_fit_are_refused(finished_run, tmp_path):
    with pytest.raises(BundleError, match="'mirror_avraging' must be a key .*; did you mean 'mirror_averaging'?"):
        load(finished_run, mirror_avraging=False)
    with pytest.raises(BundleError, match="`device` must be"):
        load(finished_run, "gpu")
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "models" / "model.pt").write_bytes(b"no weights")
    with pytest.raises(BundleError, match="model.pt must be a state dict"):
        load(tmp_path / "run", "cpu")


# --- words


def test_the_examples_in_the_docstrings_are_true(finished_run, segmenter, image):
    names = {"run": finished_run, "image": image, "prediction": segmenter.predict(image)}
    for module in (scripts.inference.segmenter, scripts.inference.prediction):
        result = doctest.testmod(module, extraglobs=names)
        assert result.attempted > 0 and result.failed == 0


def test_runs_of_earlier_versions_open(tmp_path, image):
    shutil.unpack_archive(BUNDLE.parent / "tests" / "stored_runs" / "small_run.zip", tmp_path)
    found = load(tmp_path, "cpu").predict(np.asarray(Image.open(image)))
    assert found.mask.shape == (64, 64) and found.classes.value_names[0] == "background"
