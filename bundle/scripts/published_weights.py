"""Read the weights that others published under the names, and where needed in the shapes, of our networks.

The authors' stage-1 and stage-2 checkpoints of ESFAN and IBDR are torch files; ResNet38d's ImageNet weights are an
MXNet file. Names are looked up from ours to theirs, so that an error names what the file lacks as the file spells it.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser

from .networks import ResNet38d

logger = logging.getLogger(__name__)

StateDict = Mapping[str, torch.Tensor]
Renaming = Mapping[str, str]  # regular expression of the beginning of one of our names: the published beginning

CONFIG_DIR = Path(__file__).resolve().parents[1] / "configs"
STAGE_1 = {
    r"backbone\.(b[2-5])\.0\.": r"\1.",
    r"backbone\.(b[2-5])\.(\d)\.": r"\1_\2.",
    r"backbone\.": "",
    r"shallow_head\.": "ic1.",
    r"middle_head\.": "ic2.",
    r"deep_head\.": "fc8.",
    r"fusion\.heat\.": "ESF.",
    r"fusion\.coca\.squeeze\.": "ESF.semantic_fc.0.",
    r"fusion\.coca\.excite\.": "ESF.semantic_fc.2.",
    r"fusion\.afg\.conv\.": "ESF.guidance_weight.1.",
    r"fusion\.pci\.": "ESF.spp.",
    r"fusion\.fusion_conv\.": "ESF.fusion_conv.",
    r"fusion\.channel_attention\.squeeze\.": "IBM.channel_fc.0.",
    r"fusion\.channel_attention\.excite\.": "IBM.channel_fc.2.",
    r"fusion\.spatial_attention\.conv\.": "IBM.spatial_conv.",
    r"fusion\.": "IBM.",
}
STAGE_2 = {
    r"network\.pspnet\.": "PSPNet.",
    r"network\.hdfm\.channel_attention\.squeeze\.": "scfm.channel_attention.1.",
    r"network\.hdfm\.channel_attention\.excite\.": "scfm.channel_attention.3.",
    r"network\.hdfm\.spatial_attention\.conv\.": "scfm.spatial_attention.0.",
    r"network\.auxiliary_head\.": "aux_head.conv.",
    r"network\.": "",
}
LAPLACIAN = [[0, 1, 0], [1, -4, 1], [0, 1, 0]]
BATCH_NORM_PARTS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}


@dataclass(frozen=True)
class Kind:
    """A kind of published checkpoint.

    Args:
        method: overlay of the method.
        definition: the config's definition of the network.
        renaming: from our names to the published ones; the first expression that fits counts.
        ignored: regular expression of published names that hold nothing our network needs.
    """

    method: str
    definition: str
    renaming: Renaming
    ignored: str = "(?!)"


# the Laplacian is a constant of our network; older files have layers of the encoder that DPR and PSPNet never use
CHECKPOINTS = {
    "esfan_stage1": Kind("method_esfan.json", "classifier_def", STAGE_1, r"ESF\.laplacian_kernel\.weight"),
    "esfan_stage2": Kind("method_esfan.json", "segmenter_def", STAGE_2, r"encoder\.layer[34]\."),
    "ibdr_stage1": Kind("method_ibdr.json", "classifier_def", STAGE_1),
    "ibdr_stage2": Kind("method_ibdr.json", "segmenter_def", STAGE_2, r"PSPNet\.encoder\.layer[34]\."),
}


@cache
def expected_state(kind: str, num_classes: int) -> StateDict:
    """Names and shapes of a method's own network for ``num_classes`` classes, as tensors without values."""
    parser = ConfigParser()
    parser.read_config([CONFIG_DIR / "train.json", CONFIG_DIR / CHECKPOINTS[kind].method])
    parser["num_classes"] = num_classes
    with torch.device("meta"):
        return parser.get_parsed_content(CHECKPOINTS[kind].definition).state_dict()


def rename(name: str, renaming: Renaming) -> str:
    """The published form of one of our names."""
    for pattern, replacement in renaming.items():
        published, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return published
    return name


def from_checkpoint(state: StateDict, kind: str, num_classes: int, source: str) -> dict[str, torch.Tensor]:
    """Turn an authors' checkpoint into a state dict of our network.

    Args:
        state: the checkpoint's tensors. All names may have the prefix ``module.``; stage 2's encoder may be spelled
            ``encoder.`` or ``encoder.model.``.
        kind: one of ``CHECKPOINTS``.
        num_classes: number of tissue classes ``K``.
        source: where it comes from, for messages.

    Raises:
        ValueError: if a name is missing, unexpected or of another shape; it lists them as the checkpoint spells them.
    """
    facts, expected = CHECKPOINTS[kind], expected_state(kind, num_classes)
    prefix = "module." if state and all(name.startswith("module.") for name in state) else ""
    published = {name: rename(name, facts.renaming) for name in expected}
    if not any("encoder.model." in name for name in state):
        published = {name: theirs.replace("encoder.model.", "encoder.") for name, theirs in published.items()}
    published = {name: prefix + theirs for name, theirs in published.items()}
    laplacian = state.get(f"{prefix}ESF.laplacian_kernel.weight")
    if laplacian is not None and not (laplacian == torch.tensor(LAPLACIAN)).all():
        logger.warning(f"{source}: ESF.laplacian_kernel is not the Laplacian {LAPLACIAN}, which ours always is.")
    ignored = re.compile(re.escape(prefix) + f"(?:{facts.ignored})")
    return match(expected, state, published, lambda name: ignored.match(name) is not None, source)


def from_imagenet(arrays: Mapping[str, np.ndarray], source: str) -> dict[str, torch.Tensor]:
    """Turn ResNet38d's ImageNet weights, as ``read_params`` gives them, into a state dict of our ``ResNet38d``.

    The two batch norms that the file lacks, bn45 and bn52, are the identity.
    """
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    network = ResNet38d().state_dict()  # its batch norms begin as the identity
    expected = {
        name: tensor
        for name, tensor in network.items()
        if not name.startswith(("bn45.", "bn52.")) and not name.endswith("num_batches_tracked")
    }
    published = {name: mxnet_name(name) for name in expected}
    return network | match(expected, state, published, lambda name: name.startswith("arg:linear1000_"), source)


def mxnet_name(name: str) -> str:
    """The MXNet form of a name of ``ResNet38d``.

    ``"b4.3.bn_branch2b1.weight"`` is ``"arg:bn4b3_branch2b1_gamma"``, ``"b6.conv_branch1.weight"`` is
    ``"arg:res6a_branch1_weight"``.
    """
    part = name.rsplit(".", 1)[1]
    block = re.fullmatch(r"b(\d)(?:\.(\d))?\.(conv|bn)_(branch\w+)\.\w+", name)
    if block is None:
        layer = name.split(".")[0]  # conv1a or bn7
        is_norm = layer.startswith("bn")
    else:
        stage, index, kind, branch = block.groups()
        is_norm = kind == "bn"
        layer = f"{'bn' if is_norm else 'res'}{stage}{'a' if index in (None, '0') else f'b{index}'}_{branch}"
    part = BATCH_NORM_PARTS[part] if is_norm else part
    return f"{'aux' if part.startswith('moving') else 'arg'}:{layer}_{part}"


def match(
    expected: StateDict, state: StateDict, published: Mapping[str, str], is_ignored: Callable[[str], bool], source: str
) -> dict[str, torch.Tensor]:
    """The tensors of ``state`` under our names, in our shapes.

    Args:
        expected: our names, with tensors of the shapes wanted.
        state: the published names, with their tensors.
        published: the published name of each of ours.
        is_ignored: whether a published name may be left out.
        source: where ``state`` comes from, for messages.

    Raises:
        ValueError: if names of ``state`` are missing, of another shape, unexpected or not finite; it lists them.
    """
    known = set(published.values())
    pairs = {theirs: expected[name] for name, theirs in published.items()}
    problems = {
        "missing": [theirs for theirs in pairs if theirs not in state],
        "misshaped": [
            f"{theirs} {tuple(state[theirs].shape)} instead of {tuple(tensor.shape)}"
            for theirs, tensor in pairs.items()
            if theirs in state and not fits(state[theirs].shape, tensor.shape)
        ],
        "unexpected": [name for name in state if name not in known and not is_ignored(name)],
    }
    if not any(problems.values()):
        problems["not finite"] = [theirs for theirs in pairs if not torch.isfinite(state[theirs]).all()]
    if any(problems.values()):
        raise ValueError(
            f"{source} must hold exactly the weights of this kind of network; "
            + "; ".join(f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names)
            + ". Check `kind` and `num_classes`."
        )
    return {
        name: state[theirs].reshape(expected[name].shape).to(expected[name].dtype).clone()
        for name, theirs in published.items()
    }


def fits(shape: torch.Size, wanted: torch.Size) -> bool:
    """Whether weights of ``shape`` serve where ``wanted`` is; a 1x1 convolution does what a linear layer does."""
    return shape == wanted or (len(wanted) == 2 and shape == (*wanted, 1, 1))
