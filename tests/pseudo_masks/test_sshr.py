"""SSHR as a whole: published weights in, masks out, against the formulas written out."""

import pytest
import torch
from conftest import BUNDLE
from monai.bundle import ConfigParser
from torch.nn import functional as F

from scripts.networks import ResNet38d
from scripts.weights.published import CHECKPOINTS, expected_state, from_checkpoint, rename

MEAN, STD = ((torch.tensor(v).view(3, 1, 1)) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


@pytest.fixture(scope="module")
def published():
    """A checkpoint of random weights under the published names, whose features keep a moderate size."""
    torch.manual_seed(0)
    state = {}
    for name, tensor in expected_state("sshr", 3).items():
        theirs = rename(name, CHECKPOINTS["sshr"].renaming)
        shape = tuple(tensor.shape)
        if tensor.ndim >= 2:
            state[theirs] = torch.randn(shape) * (1.0 / tensor[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn_branch2a.weight", "bn_branch2b1.weight", "bn_branch2b2.weight")):
            state[theirs] = torch.rand(shape) * 0.5 + 0.75
        elif name.endswith("num_batches_tracked"):
            state[theirs] = torch.tensor(0)
        else:
            state[theirs] = torch.rand(shape) + (0.5 if name.endswith("weight") else -0.5)
    return state


def config(*overlays):
    parser = ConfigParser()
    names = ("train.json", "method_sshr.json", *overlays)
    parser.read_config([str(BUNDLE / "configs" / name) for name in names])
    parser["num_classes"] = 3
    return parser


def written_out(state, image, threshold):
    """Scores of the three classes, (3, H, W), and the gate, by the formulas of the paper."""
    backbone = ResNet38d(num_levels=4).eval()
    ours = from_checkpoint(state, "sshr", 3, "x.pth")
    backbone.load_state_dict(
        {name.removeprefix("backbone."): t for name, t in ours.items() if name.startswith("backbone.")}
    )
    *levels, x = backbone.levels(((image - MEAN) / STD)[None])
    deep = backbone.deepest(x)
    maps = []
    for name, head, level in zip(("hfrm_56", "hfrm_28_1", "hfrm_28_2"), ("ic_56", "ic1", "ic2"), levels, strict=True):
        hidden = F.relu(state[f"{name}.veto_mlp.0.weight"] @ deep.mean(dim=(2, 3))[0])
        veto = torch.sigmoid(state[f"{name}.veto_mlp.2.weight"] @ hidden).view(1, -1, 1, 1)
        context = F.conv2d(level, state[f"{name}.context_conv.weight"], padding=7, groups=level.shape[1])
        out = level + state[f"{name}.gamma_veto"] * level * veto + state[f"{name}.gamma_context"] * context
        maps.append(F.conv2d(out, state[f"{head}.weight"], state[f"{head}.bias"]))
    maps.append(F.conv2d(deep, state["fc8.weight"]))
    logits = [each.mean(dim=(2, 3)) for each in maps]
    total = 0.0
    for weight, each in zip((0.6, 0.2, 0.2), maps[1:], strict=True):  # the map of the earliest level is not used
        each = F.interpolate(F.relu(each), size=image.shape[1:], mode="bilinear", align_corners=False)[0]
        low, high = each.flatten(1).min(dim=1).values, each.flatten(1).max(dim=1).values
        total = total + weight * (each - low.view(3, 1, 1)) / (high - low + 1e-8).view(3, 1, 1)
    present = torch.sigmoid(logits[-1])[0] > threshold
    if not present.any():
        present[logits[-1][0].argmax()] = True
    return logits, total.masked_fill(~present.view(3, 1, 1), -torch.inf), present


@torch.no_grad()
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_logits_and_masks_are_those_of_the_formulas(published, threshold):
    image = torch.rand(3, 48, 40, generator=torch.Generator().manual_seed(3))
    parser = config()
    network = parser.get_parsed_content("classifier_def").eval()
    network.load_state_dict(from_checkpoint(published, "sshr", 3, "x.pth"))
    logits, scores, present = written_out(published, image, threshold)
    for ours, expected in zip(network(image[None]), logits, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    parser["trained_classifier"] = network
    parser["cam_segmenter"] |= {"classifier": network, "threshold": threshold, "channel_order": None, "window": None}
    parser["cam_segmenter"]["dtype"] = "float32"
    found = parser.get_parsed_content("cam_segmenter")(image[None])[0]
    assert torch.equal(found.isinf(), scores.isinf()) and present.all() == (threshold == 0)
    sure = scores.topk(2, dim=0).values
    sure = sure[0] - sure[1] > 1e-4
    assert sure.float().mean() > 0.9 and (threshold > 0 or len(scores.argmax(dim=0).unique()) > 1)
    assert torch.equal(found.argmax(dim=0)[sure], scores.argmax(dim=0)[sure])


def test_four_losses_have_the_paper_s_weights_with_either_backbone():
    for overlays in ((), ("lite.json",)):
        parser = config(*overlays)
        network, loss = (parser.get_parsed_content(key) for key in ("classifier_def", "classifier_loss"))
        image, label = torch.rand(2, 3, 32, 32), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
        logits = network.eval()(image)
        each = [F.multilabel_soft_margin_loss(z, label) for z in logits]
        expected = 0.1 * each[0] + 0.15 * each[1] + 0.25 * each[2] + 0.5 * each[3]
        torch.testing.assert_close(loss(logits, label), expected)
