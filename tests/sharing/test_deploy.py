import pytest
import segmentation_models_pytorch
import torch
from monai.bundle import ConfigParser, ckpt_export, onnx_export

from scripts.networks import CAMClassifier, DualPathRefinement, EdgeSemanticFusion, PadAndCrop, TimmBackbone
from scripts.sharing.deploy import (
    CAMOutput,
    deploy,
    largest_difference,
    load_onnx,
    load_torch_export,
    load_torchscript,
    networks,
    to_onnx,
    to_program,
    to_torchscript,
)
from scripts.sharing.export import default_config

SIZES = [(1, 48, 64), (3, 80, 32)]


@pytest.fixture(scope="module")
def psp_net():
    """The paper's segmentation network with a small encoder."""
    torch.manual_seed(0)
    settings = {"encoder_weights": None, "encoder_depth": 3, "psp_out_channels": 16, "classes": 3}
    return segmentation_models_pytorch.PSPNet("tu-resnet10t", **settings)


@pytest.fixture(scope="module")
def segmenters(psp_net):
    dual = DualPathRefinement(psp_net, num_classes=3, hidden_channels=8)
    return {"esfan": PadAndCrop(psp_net, 8).eval(), "ibdr": PadAndCrop(dual, 8).eval()}


@pytest.fixture(scope="module")
def stage_1():
    torch.manual_seed(0)
    backbone = TimmBackbone("resnet18", output_stride=8)
    return CAMOutput(CAMClassifier(backbone, 3, EdgeSemanticFusion), [0.2, 0.3, 0.5]).eval()


# --- formats


def test_the_cams_of_stage_1_are_those_of_its_levels(stage_1):
    image = torch.rand(2, 3, 48, 64)
    with torch.inference_mode():
        cam, prob = stage_1(image)
        levels, expected = stage_1.classifier.cams(image)
    resize = {"size": (48, 64), "mode": "bilinear", "align_corners": False}
    by_hand = sum(w * torch.nn.functional.interpolate(m, **resize) for w, m in zip((0.2, 0.3, 0.5), levels))
    torch.testing.assert_close(cam, by_hand)
    assert torch.equal(prob, expected) and cam.shape == (2, 3, 48, 64)


def check_every_format(network, folder, outputs):
    to_torchscript(network, folder / "a.ts")
    assert largest_difference(network, load_torchscript(folder / "a.ts"), [*SIZES, (2, 41, 70)]) <= 1e-4
    program = to_program(network, 8)
    torch.export.save(program, folder / "a.pt2")
    assert largest_difference(network, load_torch_export(folder / "a.pt2"), SIZES) <= 1e-4
    to_onnx(program, folder / "a.onnx", outputs)
    assert largest_difference(network, load_onnx(folder / "a.onnx"), SIZES) <= 1e-4


@pytest.mark.e2e
@pytest.mark.parametrize("method", ["esfan", "ibdr"])
def test_stage_2_keeps_its_outputs_in_every_format(segmenters, method, tmp_path):
    check_every_format(segmenters[method], tmp_path, ["pred"])


@pytest.mark.e2e
def test_stage_1_keeps_its_outputs_in_every_format(stage_1, tmp_path):
    check_every_format(stage_1, tmp_path, ["cam", "prob"])


def test_a_difference_is_an_error(stage_1):
    def other(image):
        cam, prob = stage_1(image)
        return cam, prob + 2e-4

    with pytest.raises(ValueError, match=r"must match the original to within 0.0001, got a difference of 0.0002"):
        largest_difference(stage_1, other, [(1, 24, 40)])
    with pytest.raises(ValueError, match="must give outputs of the original shape"):
        largest_difference(stage_1, lambda image: tuple(part[..., :1] for part in stage_1(image)), [(1, 24, 40)])
    with pytest.raises(ValueError, match="got a difference of nan"):
        largest_difference(stage_1, lambda image: tuple(part * torch.nan for part in stage_1(image)), [(1, 24, 40)])


@pytest.mark.parametrize(("method", "preset"), [("esfan", "paper"), ("ibdr", "lite")])
def test_the_networks_of_the_configs_become_torchscript(method, preset):
    parser = ConfigParser(config=default_config(method, preset, None))
    network = parser.get_parsed_content("segmenter_def").eval()
    scripted = torch.jit.script(network)
    assert largest_difference(network, lambda image: (scripted(image),), [(1, 32, 48), (2, 41, 33)]) <= 1e-4


# --- bundles


@pytest.fixture()
def bundle_path(exported_bundle, monkeypatch):
    monkeypatch.chdir(exported_bundle)
    return exported_bundle


def files(bundle):
    config, meta = (str(bundle / "configs" / f"{name}.json") for name in ("inference", "metadata"))
    return {"config_file": config, "meta_file": meta, "ckpt_file": str(bundle / "models" / "model.pt")}


@pytest.mark.e2e
def test_monai_s_own_exports_give_the_network_s_outputs(bundle_path, tmp_path):
    network = networks(bundle_path)["segmenter"]
    ckpt_export("network_def", str(tmp_path / "model.ts"), **files(bundle_path))
    assert largest_difference(network, load_torchscript(tmp_path / "model.ts"), SIZES) <= 1e-4
    onnx_export("network_def", str(tmp_path / "model.onnx"), **files(bundle_path))
    assert largest_difference(network, load_onnx(tmp_path / "model.onnx"), [(1, 64, 64)]) <= 1e-4


@pytest.mark.slow
def test_all_files_of_a_bundle_are_written_and_checked(exported_bundle, tmp_path):
    differences = deploy(str(exported_bundle), str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == set(differences)
    assert len(differences) == 6 and max(differences.values()) <= 1e-4


def test_both_networks_of_a_bundle_are_found(exported_bundle):
    found = networks(exported_bundle)
    assert list(found) == ["segmenter", "classifier"] and not any(network.training for network in found.values())
    assert found["classifier"].level_weights == (0.1, 0.8, 0.1)  # lite's
