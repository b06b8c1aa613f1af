"""Convert published weights to the names, and where needed the shapes, of our networks.

The authors' stage-1 and stage-2 checkpoints of ESFAN and IBDR are torch files; ResNet38d's ImageNet weights are an
MXNet file. Names are mapped from ours to theirs, so that errors list missing names as the file spells them.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from monai.bundle import ConfigParser

from ..errors import BundleError
from ..networks import ResNet38d
from ..runs.run_folder import BUNDLE_ROOT, untrained

logger = logging.getLogger(__name__)

StateDict = Mapping[str, torch.Tensor]
Renaming = Mapping[str, str]  # regular expression for the prefix of one of our names: the published prefix

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
    r"early_head\.": "ic_56.",
    r"rectifications\.0\.(?=gamma)": "hfrm_56.",
    r"rectifications\.([12])\.(?=gamma)": r"hfrm_28_\1.",
    r"rectifications\.0\.squeeze\.": "hfrm_56.veto_mlp.0.",
    r"rectifications\.0\.excite\.": "hfrm_56.veto_mlp.2.",
    r"rectifications\.0\.context\.": "hfrm_56.context_conv.",
    r"rectifications\.([12])\.squeeze\.": r"hfrm_28_\1.veto_mlp.0.",
    r"rectifications\.([12])\.excite\.": r"hfrm_28_\1.veto_mlp.2.",
    r"rectifications\.([12])\.context\.": r"hfrm_28_\1.context_conv.",
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
        method: the method's overlay.
        definition: the config's definition of the network.
        renaming: from our names to the published ones; the first matching expression applies.
        ignored: regular expression for published names that are allowed but not needed by our network.
        constants: names and shapes of the published Laplacians, which are constants rather than weights in our network.
    """

    method: str
    definition: str
    renaming: Renaming
    ignored: str = "(?!)"
    constants: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


# files with the older names have encoder layers that PSPNet never uses
CHECKPOINTS = {
    "esfan_stage1": Kind(
        "method_esfan.json", "classifier_def", STAGE_1, constants={"ESF.laplacian_kernel.weight": (1, 2048, 3, 3)}
    ),
    "esfan_stage2": Kind("method_esfan.json", "segmenter_def", STAGE_2, r"encoder\.layer[34]\."),
    "ibdr_stage1": Kind("method_ibdr.json", "classifier_def", STAGE_1),
    "ibdr_stage2": Kind("method_ibdr.json", "segmenter_def", STAGE_2, r"PSPNet\.encoder\.layer[34]\."),
    "sshr": Kind("method_sshr.json", "classifier_def", STAGE_1),
}


@cache
def expected_state(kind: str, num_classes: int) -> StateDict:
    """Names and shapes of a method's own network for ``num_classes`` classes, as tensors without values."""
    parser = ConfigParser()
    parser.read_config([untrained("train.json"), BUNDLE_ROOT / "configs" / CHECKPOINTS[kind].method])
    parser["num_classes"] = num_classes
    with torch.device("meta"):
        return parser.get_parsed_content(CHECKPOINTS[kind].definition).state_dict()


def rename(name: str, renaming: Renaming) -> str:
    """Map one of our names to its published form."""
    for pattern, replacement in renaming.items():
        published, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return published
    return name


def from_checkpoint(state: StateDict, kind: str, num_classes: int, source: str) -> dict[str, torch.Tensor]:
    """Convert an authors' checkpoint into a state dict of our network.

    Args:
        state: the checkpoint's tensors. All names may have the prefix ``module.``; stage 2's encoder may be spelled
            ``encoder.`` or ``encoder.model.``.
        kind: one of ``CHECKPOINTS``.
        num_classes: number of tissue classes ``K``.
        source: its origin, for messages.

    Raises:
        BundleError: listing missing and unexpected names and wrong shapes, with names as the checkpoint spells them.
    """
    facts, expected = CHECKPOINTS[kind], expected_state(kind, num_classes)
    prefix = "module." if state and all(name.startswith("module.") for name in state) else ""
    encoder = "encoder.model." if any("encoder.model." in name for name in state) else "encoder."
    theirs = {name: prefix + rename(name, facts.renaming).replace("encoder.model.", encoder) for name in expected}
    shapes = {theirs[name]: tuple(tensor.shape) for name, tensor in expected.items()}
    for name in expected:
        if "hdfm.channel_attention" in name and name.endswith("weight"):  # published as 1x1 convolutions
            shapes[theirs[name]] += (1, 1)
    shapes |= {prefix + name: shape for name, shape in facts.constants.items()}
    ignored = re.compile(re.escape(prefix) + f"(?:{facts.ignored})")
    require_names(state, shapes, ignored, source)
    for name in facts.constants:
        if not (state[prefix + name] == torch.tensor(LAPLACIAN)).all():
            logger.warning(f"{source}: {name} is not the Laplacian {LAPLACIAN}, which our network always uses.")
    return {
        name: state[theirs[name]].reshape(tensor.shape).to(tensor.dtype).clone() for name, tensor in expected.items()
    }


def from_imagenet(arrays: Mapping[str, np.ndarray], source: str) -> dict[str, torch.Tensor]:
    """Convert ResNet38d's ImageNet weights, as returned by ``read_params``, into a state dict of our ``ResNet38d``.

    The two batch norms that the file lacks, bn45 and bn52, become the identity.
    """
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    network = ResNet38d().state_dict()  # its batch norms are initialised as the identity
    expected = {
        name: tensor
        for name, tensor in network.items()
        if not name.startswith(("bn45.", "bn52.")) and not name.endswith("num_batches_tracked")
    }
    theirs = {name: mxnet_name(name) for name in expected}
    shapes = {theirs[name]: tuple(tensor.shape) for name, tensor in expected.items()}
    require_names(state, shapes, re.compile("arg:linear1000_(weight|bias)$"), source)
    return network | {name: state[theirs[name]].float() for name in expected}


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


def require_names(
    state: StateDict, shapes: Mapping[str, tuple[int, ...]], ignored: re.Pattern[str], source: str
) -> None:
    """Raise a BundleError that lists the missing and unexpected names in ``state``, and those with wrong shapes.

    Args:
        state: tensors by name.
        shapes: the shape of each required name.
        ignored: names with a matching prefix are optional.
        source: the origin of ``state``, for messages.
    """
    problems = {
        "missing": [name for name in shapes if name not in state],
        "wrong shape": [
            f"{name} {tuple(state[name].shape)} instead of {shape}"
            for name, shape in shapes.items()
            if name in state and state[name].shape != shape
        ],
        "unexpected": [name for name in state if name not in shapes and not ignored.match(name)],
    }
    if not any(problems.values()):
        problems["not finite"] = [name for name in shapes if not torch.isfinite(state[name]).all()]
    if any(problems.values()):
        raise BundleError(
            f"{source} must contain exactly the weights of this kind of network; "
            + "; ".join(f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names)
            + ". Check `kind` and `num_classes`."
        )
