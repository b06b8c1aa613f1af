import logging
import re

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from scripts.networks import ResNet38d
from scripts.weights.published import CHECKPOINTS, expected_state, from_checkpoint, from_imagenet

K = {"esfan_stage1": 4, "esfan_stage2": 4, "ibdr_stage1": 2, "ibdr_stage2": 2, "sshr": 4}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def norm_shapes(name, channels):
    return {f"{name}.{part}": [channels] for part in NORM[:4]} | {f"{name}.num_batches_tracked": []}


def conv_shapes(name, shape, bias=False):
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def backbone_shapes():
    """Names and shapes of ResNet38d as published, written out from the table in the paper's order."""
    shapes = conv_shapes("conv1a", [64, 3, 3, 3])
    for stage, blocks, wide, mid, out in (
        (2, 3, 64, 128, 128),
        (3, 3, 128, 256, 256),
        (4, 6, 256, 512, 512),
        (5, 3, 512, 512, 1024),
    ):
        for block in range(blocks):
            name, before = f"b{stage}" + (f"_{block}" if block else ""), out if block else wide
            shapes |= norm_shapes(f"{name}.bn_branch2a", before) | norm_shapes(f"{name}.bn_branch2b1", mid)
            shapes |= conv_shapes(f"{name}.conv_branch2a", [mid, before, 3, 3])
            shapes |= conv_shapes(f"{name}.conv_branch2b1", [out, mid, 3, 3])
            if not block:
                shapes |= conv_shapes(f"{name}.conv_branch1", [out, before, 1, 1])
    for name, before, out in (("b6", 1024, 2048), ("b7", 2048, 4096)):
        shapes |= norm_shapes(f"{name}.bn_branch2a", before) | norm_shapes(f"{name}.bn_branch2b1", out // 4)
        shapes |= norm_shapes(f"{name}.bn_branch2b2", out // 2) | conv_shapes(
            f"{name}.conv_branch1", [out, before, 1, 1]
        )
        shapes |= conv_shapes(f"{name}.conv_branch2a", [out // 4, before, 1, 1])
        shapes |= conv_shapes(f"{name}.conv_branch2b1", [out // 2, out // 4, 3, 3])
        shapes |= conv_shapes(f"{name}.conv_branch2b2", [out, out // 2, 1, 1])
    return shapes | norm_shapes("bn45", 512) | norm_shapes("bn52", 1024) | norm_shapes("bn7", 4096)


def esf_shapes():
    shapes = {"ESF.laplacian_kernel.weight": [1, 2048, 3, 3]} | conv_shapes("ESF.edge_conv", [1, 2049, 3, 3], True)
    shapes |= {"ESF.semantic_fc.0.weight": [128, 2048], "ESF.semantic_fc.2.weight": [2048, 128]}
    shapes |= conv_shapes("ESF.spp.conv", [2048, 10240, 1, 1]) | norm_shapes("ESF.spp.bn", 2048)
    shapes |= conv_shapes("ESF.guidance_weight.1", [1, 2048, 1, 1], True)
    return shapes | conv_shapes("ESF.fusion_conv", [2048, 2048, 3, 3])


def ibm_shapes():
    shapes = {}
    for size in (1, 3, 5):
        shapes |= conv_shapes(f"IBM.conv{size}", [2048, 2048, size, size], True)
    shapes |= conv_shapes("IBM.edge", [1, 2048, 3, 3]) | conv_shapes("IBM.fuse", [2048, 6144, 1, 1])
    shapes |= {"IBM.channel_fc.0.weight": [128, 2048], "IBM.channel_fc.2.weight": [2048, 128]}
    shapes |= conv_shapes("IBM.spatial_conv", [1, 2, 7, 7], True) | conv_shapes("IBM.out_conv", [2048, 2048, 3, 3])
    shapes |= conv_shapes("IBM.boundary_branch.0", [1024, 2048, 3, 3], True)
    shapes |= conv_shapes("IBM.boundary_branch.2", [1, 1024, 1, 1], True)
    return shapes | conv_shapes("IBM.embedding_branch", [8, 2048, 1, 1], True)


def head_shapes(k):
    shapes = conv_shapes("ic1", [k, 512, 1, 1], True) | conv_shapes("ic2", [k, 1024, 1, 1], True)
    return shapes | conv_shapes("fc8", [k, 4096, 1, 1])


def hfrm_shapes(name, channels):
    shapes = {f"{name}.gamma_veto": [1], f"{name}.gamma_context": [1]}
    shapes |= {f"{name}.veto_mlp.0.weight": [512, 4096], f"{name}.veto_mlp.2.weight": [channels, 512]}
    return shapes | conv_shapes(f"{name}.context_conv", [channels, 1, 15, 15])


def sshr_shapes(k):
    shapes = backbone_shapes() | head_shapes(k) | conv_shapes("ic_56", [k, 256, 1, 1], True)
    return shapes | hfrm_shapes("hfrm_56", 256) | hfrm_shapes("hfrm_28_1", 512) | hfrm_shapes("hfrm_28_2", 1024)


def pspnet_shapes(k, prefix=""):
    with torch.device("meta"):
        network = smp.PSPNet("tu-resnest200e", None, 3, psp_out_channels=512, classes=k, upsampling=8)
    return {prefix + name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def dpr_shapes(k):
    shapes = pspnet_shapes(k, "PSPNet.") | conv_shapes("scfm.channel_attention.1", [1, k, 1, 1], True)
    shapes |= conv_shapes("scfm.channel_attention.3", [k, 1, 1, 1], True)
    shapes |= conv_shapes("scfm.spatial_attention.0", [1, 2, 7, 7], True)
    shapes |= conv_shapes("aux_head.conv.0", [256, 512, 3, 3], True) | norm_shapes("aux_head.conv.1", 256)
    return shapes | conv_shapes("aux_head.conv.4", [k, 256, 1, 1], True)


SHAPES = {
    "esfan_stage1": lambda: backbone_shapes() | esf_shapes() | head_shapes(4),
    "esfan_stage2": lambda: pspnet_shapes(4),
    "ibdr_stage1": lambda: backbone_shapes() | ibm_shapes() | head_shapes(2),
    "ibdr_stage2": lambda: dpr_shapes(2),
    "sshr": lambda: sshr_shapes(4),
}
NUM_NAMES = {
    "esfan_stage1": 257,
    "esfan_stage2": 787,
    "ibdr_stage1": 262,
    "ibdr_stage2": 802,
    "sshr": 260,
}  # of the published files
PAIRS = {  # ours: theirs
    "esfan_stage1": {
        "backbone.conv1a.weight": "conv1a.weight",
        "backbone.b2.0.conv_branch1.weight": "b2.conv_branch1.weight",
        "backbone.b4.5.bn_branch2b1.running_var": "b4_5.bn_branch2b1.running_var",
        "backbone.b7.conv_branch2b2.weight": "b7.conv_branch2b2.weight",
        "backbone.bn52.bias": "bn52.bias",
        "fusion.heat.edge_conv.weight": "ESF.edge_conv.weight",
        "fusion.coca.squeeze.weight": "ESF.semantic_fc.0.weight",
        "fusion.coca.excite.weight": "ESF.semantic_fc.2.weight",
        "fusion.afg.conv.bias": "ESF.guidance_weight.1.bias",
        "fusion.pci.bn.running_mean": "ESF.spp.bn.running_mean",
        "fusion.fusion_conv.weight": "ESF.fusion_conv.weight",
        "shallow_head.bias": "ic1.bias",
        "middle_head.weight": "ic2.weight",
        "deep_head.weight": "fc8.weight",
    },
    "ibdr_stage1": {
        "fusion.conv5.bias": "IBM.conv5.bias",
        "fusion.fuse.weight": "IBM.fuse.weight",
        "fusion.edge.weight": "IBM.edge.weight",
        "fusion.channel_attention.squeeze.weight": "IBM.channel_fc.0.weight",
        "fusion.spatial_attention.conv.bias": "IBM.spatial_conv.bias",
        "fusion.boundary_branch.2.weight": "IBM.boundary_branch.2.weight",
        "fusion.embedding_branch.weight": "IBM.embedding_branch.weight",
    },
    "sshr": {
        "early_head.bias": "ic_56.bias",
        "shallow_head.weight": "ic1.weight",
        "rectifications.0.gamma_context": "hfrm_56.gamma_context",
        "rectifications.0.squeeze.weight": "hfrm_56.veto_mlp.0.weight",
        "rectifications.1.gamma_veto": "hfrm_28_1.gamma_veto",
        "rectifications.1.excite.weight": "hfrm_28_1.veto_mlp.2.weight",
        "rectifications.2.context.weight": "hfrm_28_2.context_conv.weight",
    },
    "esfan_stage2": {
        "network.encoder.model.layer2.23.conv2.fc1.weight": "encoder.model.layer2.23.conv2.fc1.weight",
        "network.decoder.psp.blocks.3.pool.1.1.bias": "decoder.psp.blocks.3.pool.1.1.bias",
        "network.segmentation_head.0.bias": "segmentation_head.0.bias",
    },
    "ibdr_stage2": {
        "network.pspnet.encoder.model.conv1.6.weight": "PSPNet.encoder.model.conv1.6.weight",
        "network.hdfm.channel_attention.squeeze.weight": "scfm.channel_attention.1.weight",
        "network.hdfm.channel_attention.excite.bias": "scfm.channel_attention.3.bias",
        "network.hdfm.spatial_attention.conv.weight": "scfm.spatial_attention.0.weight",
        "network.auxiliary_head.0.bias": "aux_head.conv.0.bias",
        "network.auxiliary_head.4.weight": "aux_head.conv.4.weight",
    },
}


@pytest.fixture(scope="module", params=list(K))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(kind):
    """Every tensor has one value of its own throughout, so that it takes no memory and is known by it."""
    shapes = SHAPES[kind]()
    assert len(shapes) == NUM_NAMES[kind]
    state = {}
    for index, (name, shape) in enumerate(shapes.items()):
        whole = name.endswith("num_batches_tracked")
        state[name] = torch.tensor(index if whole else float(index)).expand(shape)
    return state


def old_spelling(state):
    """As segmentation_models_pytorch wrote it before 0.5, with the layers that PSPNet does not use."""
    old = {name.replace("encoder.model.", "encoder."): tensor for name, tensor in state.items()}
    prefix = "PSPNet." if "scfm.spatial_attention.0.bias" in state else ""
    unused = {f"{prefix}encoder.layer{n}.0.conv1.weight": torch.zeros(1) for n in (3, 4)}
    return old | (unused if old.keys() != state.keys() else {})


@pytest.mark.parametrize("spelling", ["new", "old"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_tensor_gets_our_name_and_shape(kind, checkpoint, spelling, prefix):
    state = checkpoint if spelling == "new" else old_spelling(checkpoint)
    ours = from_checkpoint({prefix + name: tensor for name, tensor in state.items()}, kind, K[kind], "x.pth")
    expected = expected_state(kind, K[kind])
    assert ours.keys() == expected.keys()
    assert all(
        ours[name].shape == tensor.shape and ours[name].dtype == tensor.dtype for name, tensor in expected.items()
    )
    values = [tensor.flatten()[0].item() for tensor in ours.values()]
    left_out = [checkpoint[name].flatten()[0].item() for name in checkpoint if "laplacian" in name]
    assert sorted(values + left_out) == list(range(len(checkpoint)))  # each tensor once
    for name, theirs in PAIRS[kind].items():
        assert (ours[name] == checkpoint[theirs].flatten()[0]).all()
    suffixes = [
        (name.rsplit(".", 1)[1], list(checkpoint)[int(value)].rsplit(".", 1)[1]) for name, value in zip(ours, values)
    ]
    assert all(mine == theirs for mine, theirs in suffixes)


def test_each_missing_renamed_or_misshaped_name_is_named(kind, checkpoint):
    for name in checkpoint:
        rest = {other: tensor for other, tensor in checkpoint.items() if other != name}
        for damaged, problem in (
            (rest, f"missing: {name}"),
            (rest | {f"{name}x": checkpoint[name]}, f"missing: {name}; unexpected: {name}x"),
            (rest | {name: torch.zeros(3, 5, 7)}, f"wrong shape: {name} (3, 5, 7) instead of"),
        ):
            with pytest.raises(ValueError, match=re.escape(problem)):
                from_checkpoint(damaged, kind, K[kind], "x.pth")


@pytest.mark.parametrize(
    ("name", "shape"), [("ESF.semantic_fc.0.weight", (128, 2048, 1, 1)), ("fc8.weight", (4, 4096))]
)
def test_layers_have_the_shape_that_is_published(name, shape):
    state = {name: torch.tensor(0.0).expand(shape) for name, shape in SHAPES["esfan_stage1"]().items()}
    with pytest.raises(ValueError, match=re.escape(f"wrong shape: {name} {shape} instead of")):
        from_checkpoint(state | {name: torch.zeros(shape)}, "esfan_stage1", 4, "x.pth")


def test_the_old_spelling_is_kept_in_messages(checkpoint, kind):
    if "stage2" not in kind:
        pytest.skip("stage 1 has one spelling")
    state = old_spelling(checkpoint)
    name = next(name for name in state if "encoder.layer1" in name)
    del state[name]
    with pytest.raises(ValueError, match=re.escape(f"missing: module.{name}.")):
        from_checkpoint({f"module.{other}": tensor for other, tensor in state.items()}, kind, K[kind], "x.pth")


def test_another_number_of_classes_is_an_error(kind, checkpoint):
    with pytest.raises(ValueError, match="wrong shape: .* Check `kind` and `num_classes`"):
        from_checkpoint(checkpoint, kind, 7, "x.pth")


def test_another_kind_is_an_error(kind, checkpoint):
    other = next(name for name in CHECKPOINTS if name != kind and K[name] == K[kind])
    with pytest.raises(ValueError, match="x.pth must contain exactly the weights of this kind of network; missing: "):
        from_checkpoint(checkpoint, other, K[kind], "x.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error(value):
    state = {name: torch.tensor(0.0).expand(shape) for name, shape in SHAPES["ibdr_stage2"]().items()}
    state["aux_head.conv.4.bias"] = torch.tensor([0.0, value])
    with pytest.raises(ValueError, match="not finite: aux_head.conv.4.bias"):
        from_checkpoint(state, "ibdr_stage2", 2, "x.pth")


@pytest.mark.parametrize("exact", [True, False])
def test_a_laplacian_that_is_none_is_told(caplog, exact):
    caplog.set_level(logging.WARNING)
    state = {name: torch.tensor(0.0).expand(shape) for name, shape in SHAPES["esfan_stage1"]().items()}
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0 if exact else -8.0, 1.0], [0.0, 1.0, 0.0]])
    state["ESF.laplacian_kernel.weight"] = kernel.expand(1, 2048, 3, 3)
    from_checkpoint(state, "esfan_stage1", 4, "x.pth")
    assert ("is not the Laplacian" in caplog.text) != exact


# --- ImageNet


def imagenet_names():
    """The MXNet file's names and shapes, from those of the published torch backbone."""
    names = {"arg:linear1000_weight": [1000, 4096], "arg:linear1000_bias": [1000]}
    norm = {
        "weight": "arg gamma",
        "bias": "arg beta",
        "running_mean": "aux moving_mean",
        "running_var": "aux moving_var",
    }
    for name, shape in backbone_shapes().items():
        *layer, part = name.split(".")
        if part == "num_batches_tracked" or layer[0] in ("bn45", "bn52"):
            continue
        if layer[0] in ("conv1a", "bn7"):
            head, tail = layer[0], ""
        else:
            stage, block = (layer[0][1:].split("_") + ["0"])[:2]
            kind, branch = layer[1].split("_")
            head = ("res" if kind == "conv" else "bn") + stage + ("a" if block == "0" else f"b{block}")
            tail = f"_{branch}"
        group, ending = norm[part].split() if "bn" in head else ("arg", "weight")
        names[f"{group}:{head}{tail}_{ending}"] = shape
    return names


@pytest.fixture(scope="module")
def imagenet():
    return {
        name: np.full(shape, index, dtype=np.float32) for index, (name, shape) in enumerate(imagenet_names().items())
    }


def test_names_of_the_imagenet_file(imagenet):
    for name in (
        "arg:conv1a_weight",
        "arg:res2a_branch2a_weight",
        "arg:bn4b3_branch2b1_gamma",
        "aux:bn2a_branch2a_moving_mean",
        "arg:bn7_beta",
        "arg:res4b5_branch2b1_weight",
        "arg:res6a_branch2b2_weight",
    ):
        assert name in imagenet


def test_imagenet_weights_fit_the_backbone(imagenet):
    ours = from_imagenet(imagenet, "x.params")
    ResNet38d().load_state_dict(ours)
    for name, theirs in {
        "conv1a.weight": "arg:conv1a_weight",
        "b2.0.conv_branch1.weight": "arg:res2a_branch1_weight",
        "b4.3.bn_branch2b1.weight": "arg:bn4b3_branch2b1_gamma",
        "b5.2.bn_branch2a.running_var": "aux:bn5b2_branch2a_moving_var",
        "b6.bn_branch2b2.running_mean": "aux:bn6a_branch2b2_moving_mean",
        "b7.conv_branch2a.weight": "arg:res7a_branch2a_weight",
        "bn7.bias": "arg:bn7_beta",
    }.items():
        assert (ours[name] == imagenet[theirs].flat[0]).all()
    assert len(
        {tensor.flatten()[0].item() for name, tensor in ours.items() if "bn45" not in name and "bn52" not in name}
    ) == (
        len(imagenet) - 2 + 1  # all but the two of the classifier, and the 0 of num_batches_tracked
    )
    for norm, channels in (("bn45", 512), ("bn52", 1024)):  # the identity
        for part, value in zip(NORM, (1, 0, 0, 1, 0)):
            assert (ours[f"{norm}.{part}"] == value).all()
        assert ours[f"{norm}.weight"].shape == (channels,)


def test_each_name_missing_from_the_imagenet_file_is_named(imagenet):
    for name in [name for name in imagenet if "linear1000" not in name][::7]:
        rest = {other: array for other, array in imagenet.items() if other != name}
        with pytest.raises(ValueError, match=re.escape(f"missing: {name}; unexpected: arg:other")):
            from_imagenet(rest | {"arg:other": np.zeros(1)}, "x.params")
