"""Export the networks of a run or of an exported bundle to TorchScript, torch.export and ONNX, and check the files.

    python -m scripts.deployment --bundle dist/esfan_histopathology_segmentation --output deployed/

writes ``segmenter`` (stage 2) and, where the weights of stage 1 are there, ``classifier`` (class activation maps and
probabilities), each as ``.ts``, ``.pt2`` and ``.onnx``. Every file is loaded again and must give the network's outputs.

=========== ============================== =====================================================
file        batch                          height and width
=========== ============================== =====================================================
``.ts``     any                            any
``.pt2``    any                            multiples of the network's stride, at least twice as large
``.onnx``   any                            those given, ``size`` (the training patches' by default)
=========== ============================== =====================================================
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import fire
import torch
from monai.bundle import ConfigParser
from torch import nn
from torch.export import Dim

from .atomic import atomic_path
from .cam import combine_cams
from .weights import load_weights

LARGEST_DIFFERENCE = 1e-4
Run = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


class CAMOutput(nn.Module):
    """Stage 1 as one network: an image in, its class activation map and class probabilities out.

    Args:
        classifier: has ``cams(image)``, as ``CAMClassifier`` has.
        level_weights: weight of each of its levels.
    """

    def __init__(self, classifier: nn.Module, level_weights: Sequence[float]) -> None:
        super().__init__()
        self.classifier = classifier
        self.level_weights = tuple(level_weights)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map ``image``, (B, 3, H, W) in [0, 1], to the combined CAM, (B, K, H, W), and probabilities, (B, K)."""
        cams, prob = self.classifier.cams(image)
        return combine_cams(cams, image.shape[2:], self.level_weights), prob


def networks(bundle: Path) -> dict[str, nn.Module]:
    """The trained networks of a bundle's folder, for evaluation: ``segmenter`` and, if it is there, ``classifier``."""
    inference, train = ConfigParser(), ConfigParser()
    inference.read_config(str(bundle / "configs" / "inference.json"))
    segmenter = inference.get_parsed_content("network_def")
    found = {"segmenter": load_weights(segmenter, bundle / "models" / "model.pt").eval()}
    weights = bundle / "models" / "classifier" / "model.pt"
    if weights.is_file():
        train.read_config(str(bundle / "configs" / "train.json"))
        classifier = load_weights(train.get_parsed_content("classifier_def"), weights).eval()
        level_weights = train.get_parsed_content("cam_segmenter#level_weights")
        found["classifier"] = CAMOutput(classifier, level_weights).eval()
    return found


def to_torchscript(network: nn.Module, image: torch.Tensor, path: Path) -> None:
    """Write TorchScript for any batch and size: scripted, or traced with ``image`` if it cannot be scripted."""
    try:
        module = torch.jit.script(network)
    except (RuntimeError, torch.jit.frontend.NotSupportedError):
        module = torch.jit.trace(network, image, check_trace=False)
    torch.jit.save(module, str(path))


def to_torch_export(network: nn.Module, image: torch.Tensor, path: Path, stride: int) -> None:
    """Write a ``torch.export`` program for any batch and all multiples of ``stride`` px, as the size of ``image`` is."""
    sizes = {0: Dim("batch"), 2: stride * Dim("rows"), 3: stride * Dim("columns")}
    torch.export.save(torch.export.export(network, (image,), dynamic_shapes=(sizes,)), path)


def to_onnx(network: nn.Module, image: torch.Tensor, path: Path, output_names: Sequence[str]) -> None:
    """Write ONNX for any batch at the size of ``image``, (B, 3, H, W) with B of at least 2."""
    torch.onnx.export(
        network,
        (image,),
        str(path),
        input_names=["image"],
        output_names=list(output_names),
        dynamic_shapes=({0: Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def load_torchscript(path: Path) -> Run:
    """Read a ``.ts`` file."""
    module = torch.jit.load(str(path), map_location="cpu")
    return lambda image: _as_tuple(module(image))


def load_torch_export(path: Path) -> Run:
    """Read a ``.pt2`` file."""
    module = torch.export.load(path).module()
    return lambda image: _as_tuple(module(image))


def load_onnx(path: Path) -> Run:
    """Read a ``.onnx`` file with ONNX Runtime, on the CPU."""
    import onnxruntime  # not needed for anything else

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: tuple(torch.from_numpy(array) for array in session.run(None, {"image": image.numpy()}))


def _as_tuple(outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def largest_difference(network: nn.Module, run: Run, shapes: Sequence[tuple[int, int, int]]) -> float:
    """Largest absolute difference of an exported network from the network, on random images.

    Args:
        network: the network, in evaluation mode.
        run: the exported one.
        shapes: batch, height and width of the images to try.

    Raises:
        ValueError: if it is more than 1e-4, or an output has another shape.
    """
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in shapes:
        image = torch.rand(batch, 3, height, width, generator=generator)
        with torch.inference_mode():
            expected = _as_tuple(network(image))
            got = run(image)
        for ours, theirs in zip(expected, got, strict=True):
            if ours.shape != theirs.shape:
                raise ValueError(
                    f"an exported network must give outputs of the same shape, {tuple(ours.shape)} for images of "
                    f"{batch} x {height} x {width} px, got {tuple(theirs.shape)}."
                )
            worst = max(worst, (ours - theirs).abs().max().item())
    if not worst <= LARGEST_DIFFERENCE:
        raise ValueError(
            f"an exported network must give the same to {LARGEST_DIFFERENCE}, got a difference of {worst}."
        )
    return worst


def deploy(bundle: str, output: str, size: int | Sequence[int] | None = None) -> Mapping[str, float]:
    """Export all networks of a bundle to all formats; see the module's docstring.

    Args:
        bundle: a run's folder or an exported bundle's.
        output: where the files go; files of the same names are replaced.
        size: height and width in px of images for ONNX; a single number for both. The training patches' if left out.

    Returns:
        The largest difference from the network's outputs, by file name.

    Raises:
        ValueError: if a file gives other outputs than the network; it is not written then.
    """
    bundle, output = Path(str(bundle)), Path(str(output))
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    if size is None:
        size = config["patch_size"]
    height, width = [size, size] if isinstance(size, int) else size
    stride = config["segmenter_def"]["divisor"]
    rows, columns = 3 * stride, 4 * stride  # an example that is not square, since equal sides are taken for one
    small = [(1, rows, columns), (3, 5 * stride, 2 * stride)]
    outputs = {"segmenter": ["pred"], "classifier": ["cam", "prob"]}
    differences = {}
    for name, network in networks(bundle).items():
        example, fixed = torch.rand(2, 3, rows, columns), torch.rand(2, 3, height, width)
        formats = {
            ".ts": (lambda path: to_torchscript(network, example, path), load_torchscript, [*small, (2, 53, 70)]),
            ".pt2": (lambda path: to_torch_export(network, example, path, stride), load_torch_export, small),
            ".onnx": (
                lambda path: to_onnx(network, fixed, path, outputs[name]),
                load_onnx,
                [(1, height, width), (3, height, width)],
            ),
        }
        for suffix, (write, load, shapes) in formats.items():
            with atomic_path(output / f"{name}{suffix}") as temporary:
                write(temporary)
                differences[f"{name}{suffix}"] = largest_difference(network, load(temporary), shapes)
    return differences


def describe(differences: Mapping[str, float]) -> str:
    """A line for each file."""
    return "\n".join(f"{name}: differs by {value:.1e} at most" for name, value in differences.items())


if __name__ == "__main__":
    fire.Fire(deploy, serialize=describe)
