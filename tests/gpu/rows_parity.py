"""The same weights on the CPU and on the device: how far outputs, gradients and masks differ.

The CPU in float32 is the reference. The paper's networks have random weights, with which no block is a mere identity;
``lite`` has the weights of the demo's run where that is there.
"""

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

import run
import torch
from table import Conditions, Row, judged
from timing import best_precision
from torch import nn

from scripts.data.preparing.demo import draw_example
from scripts.data.preparing.synthetic_tissue import STAINS
from scripts.networks import Autocast
from scripts.runs.devices import seed_everything, training_algorithms
from scripts.weights.state_dicts import load_weights

CLASSES = 3  # of the demo


class Way(NamedTuple):
    """A way to compute on the device.

    Args:
        precision: of the network.
        in_training: with PyTorch set up as in training steps; otherwise as where masks are made.
        least, least_random: percentage of the masks' pixels that must be equal, with trained weights and with random
            ones, whose classes are nearer to one another; ``None`` where nobody gets these masks.
    """

    precision: str
    in_training: bool
    least: float | None
    least_random: float | None


WAYS = {
    "float32": Way("float32", False, 99.9, 99.9),
    "float32 as in training steps (TF32)": Way("float32", True, None, None),
    "bfloat16": Way("bfloat16", False, 99, 97),
}


def demo_batch(number: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Demo patches (B, 3, H, W) in [0, 1], and the tissue of each pixel (B, 1, H, W), glass as the first one."""
    drawn = [draw_example(0, "val", index, size, STAINS["lab_a"]) for index in range(number)]
    images, masks = (torch.stack([torch.from_numpy(pair[part]) for pair in drawn]) for part in (0, 1))
    return images.permute(0, 3, 1, 2).float() / 255, (masks.long() - 1).clamp(min=0)[:, None]


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """All batch norms of a network."""
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def without_silent_branches(network: nn.Module) -> nn.Module:
    """The network with none of its batch norms at 0; timm has those at the end of residual branches begin there."""
    for norm in batch_norms(network):
        norm.weight[norm.weight == 0] = 0.2
    return network.eval()


def gradients(network: nn.Module, loss: nn.Module, images, target, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss in training, without chance and with fixed statistics, and all gradients in one vector, on the CPU."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    for norm in batch_norms(network):
        norm.eval()
    network.zero_grad()
    value = loss(Autocast(network, precision)(images), target)
    value.backward()
    parts = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    network.eval()
    return value.detach().cpu(), torch.cat(parts).cpu()


class Stage1:
    """Logits, CAMs, masks, loss and gradients of a classifier."""

    network, loss = "classifier_def", "classifier_loss"

    def __init__(self, method: str, overlays: list[str], size: int) -> None:
        self.method, self.overlays, self.size = method, overlays, size

    def outputs(self, network: nn.Module, images: torch.Tensor, target: torch.Tensor, precision: str, device: str):
        """Named outputs, and the channel of each pixel; all labels are 1."""
        labels = torch.ones(len(images), CLASSES, device=images.device)
        segmenter = run.cam_segmenter(
            self.method, copy.deepcopy(network), CLASSES, precision, device, self.overlays, self.size
        )
        with torch.inference_mode():
            logits = torch.cat(Autocast(network, precision)(images), dim=1)
            scores = segmenter(images, labels).float()
        return {"logits": logits, "CAMs": scores}, scores.max(dim=1).indices

    def target(self, masks: torch.Tensor) -> torch.Tensor:
        """Which tissues the masks show."""
        return torch.stack([(masks == value).flatten(1).any(dim=1) for value in range(CLASSES)], dim=1).float()


class Stage2:
    """Logits, masks, loss and gradients of a segmentation network."""

    network, loss = "segmenter_def", "segmenter_loss"

    def __init__(self, method: str, overlays: list[str], size: int) -> None:
        pass

    def outputs(self, network: nn.Module, images: torch.Tensor, target: torch.Tensor, precision: str, device: str):
        """Named outputs, and the channel of each pixel."""
        with torch.inference_mode():
            logits = Autocast(network, precision)(images)
        return {"logits": logits}, logits.max(dim=1).indices

    def target(self, masks: torch.Tensor) -> torch.Tensor:
        """The masks."""
        return masks


def everything(stage, network, loss, images, target, precision, device):
    """All that is compared, on the CPU: named tensors, and masks."""
    network = copy.deepcopy(network).to(device)
    images, target = images.to(device), target.to(device)
    found, masks = stage.outputs(network, images, target, precision, device)
    found = {name: tensor.cpu() for name, tensor in found.items()}
    found["loss"], found["gradients"] = gradients(network, loss, images, target, precision)
    return found, masks.cpu()


def difference(name: str, found: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest difference relative to the largest value; of gradients, the Euclidean norms'."""
    order = 2 if name == "gradients" else torch.inf
    norm = torch.linalg.vector_norm
    return (norm((found - reference).double(), order) / norm(reference.double(), order)).item()


def parity(conditions: Conditions, method: str, overlays: list[str], weights=(None, None)) -> Iterator[Row]:
    """Rows of both stages of a method, a row for each way to compute on the device."""
    size, number = conditions.of(128, 64), conditions.of(16 if weights[0] else 4, 2)
    images, masks = demo_batch(number, size)
    seed_everything(0)  # sets PyTorch up as runs do
    name = f"{method}, {'lite' if overlays else 'paper'}" + (", trained" if weights[0] else "")
    for index, (kind, path) in enumerate(zip((Stage1, Stage2), weights, strict=True), start=1):
        stage = kind(method, overlays, size)
        network = run.build(method, stage.network, CLASSES, *overlays)
        network = without_silent_branches(network) if path is None else load_weights(network, path).eval()
        configs = run.configured([f"configs/method_{method}.json", *overlays], num_classes=CLASSES)
        loss = configs.get_parsed_content(stage.loss)
        problem = (stage, network, loss, images, stage.target(masks))
        reference, true_masks = everything(*problem, "float32", "cpu")
        for title, way in WAYS.items():
            if way.precision not in ("float32", best_precision(conditions.device)) and not conditions.quick:
                continue
            with training_algorithms(benchmark=False) if way.in_training else nullcontext():
                found, device_masks = everything(*problem, way.precision, conditions.device)
            apart = {key: difference(key, found[key], reference[key]) for key in reference}
            equal = (device_masks == true_masks).float().mean().item()
            yield Row(
                f"{name}, stage {index}, {title}",
                f"{100 * equal:.3f} % of the masks' pixels are those of the CPU",
                "differ by " + ", ".join(f"{key} {value:.1e}" for key, value in apart.items()),
                numbers={"equal": equal, "differences": apart},
                **judged(conditions, 100 * equal, least=way.least_random if path is None else way.least, unit=" %"),
            )


def lite(conditions: Conditions) -> Iterator[Row]:
    """The small networks, trained if the demo's run is there."""
    models = conditions.folder / "demo_run" / "models"
    paths = (models / "classifier" / "model.pt", models / "model.pt")
    yield from parity(conditions, "esfan", ["configs/lite.json"], paths if paths[1].exists() else (None, None))


def esfan(conditions: Conditions) -> Iterator[Row]:
    """ESFAN with the paper's networks."""
    yield from parity(conditions, "esfan", conditions.overlays)


def ibdr(conditions: Conditions) -> Iterator[Row]:
    """IBDR with the paper's networks."""
    yield from parity(conditions, "ibdr", conditions.overlays)
