"""Export the networks of a run or of an exported bundle to TorchScript, torch.export and ONNX, and check the files.

    python -m scripts deploy dist/esfan_histopathology_segmentation --output deployed

writes ``segmenter`` (the network: image to logits) and, if its weights exist, ``classifier`` (image to class
activation maps and probabilities), each as ``.ts`` (TorchScript), ``.pt2`` (``torch.export``) and ``.onnx``. All accept
any batch size; ``.ts`` accepts any image size, the others sizes whose sides are multiples of the network's stride.
Every file is loaded again, ONNX with ONNX Runtime, and must reproduce the network's outputs, in float32, to within 1e-4
of the largest value, or of 1 if that is larger.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from ..errors import BundleError
from ..files.atomic import atomic_path
from ..files.foreign_files import read_json
from ..pseudo_masks.cam import combine_cams
from ..runs.old_names import read_configs
from ..weights.state_dicts import load_weights
from .dynamic_size import for_multiples_of_stride

LARGEST_DIFFERENCE = 1e-4
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OUTPUTS = {"segmenter": ["pred"], "classifier": ["cam", "prob"]}
Run = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


class CAMOutput(nn.Module):
    """Stage 1 as one network that maps an image to its class activation map and class probabilities.

    Args:
        classifier: has ``cams(image)`` like ``CAMClassifier``.
        level_weights: weight of each of its levels.
        scaled_levels: scale the CAM of each level and class to [0, 1] before they are combined.
    """

    def __init__(self, classifier: nn.Module, level_weights: Sequence[float], scaled_levels: bool = False) -> None:
        super().__init__()
        self.classifier = classifier
        self.level_weights = tuple(level_weights)
        self.scaled_levels = scaled_levels

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map ``image``, (B, 3, H, W) in [0, 1], to the combined CAM, (B, K, H, W), and probabilities, (B, K)."""
        cams, prob = self.classifier.cams(image)
        return combine_cams(cams, image.shape[2:], self.level_weights, self.scaled_levels), prob


def require_packages() -> None:
    """Raise a ``BundleError`` unless the packages that write and read ONNX are installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise BundleError(
            f"deploy needs the packages {', '.join(PACKAGES)}, but {', '.join(missing)} cannot be found; install them "
            f"with `pip install {' '.join(missing)}`."
        )


def networks(bundle: Path) -> dict[str, nn.Module]:
    """The trained networks of a bundle's folder in evaluation mode: ``segmenter`` and, if present, ``classifier``."""
    inference = read_configs(bundle / "configs" / "inference.json")
    inference.update({"bundle_root": str(bundle), "device": "cpu", "precision": "float32"})
    segmenter = inference.get_parsed_content("network_def")
    found = {"segmenter": load_weights(segmenter, bundle / "models" / "model.pt").eval()}
    weights = bundle / "models" / "classifier" / "model.pt"
    if weights.is_file():
        train = read_configs(bundle / "configs" / "train.json")
        classifier = load_weights(train.get_parsed_content("classifier_def"), weights).eval()
        level_weights = train.get_parsed_content("cam_segmenter#level_weights")
        scaled_levels = train.get_parsed_content("cam_segmenter#scaled_levels", default=False)
        found["classifier"] = CAMOutput(classifier, level_weights, scaled_levels).eval()
    return found


def to_torchscript(network: nn.Module, path: Path) -> None:
    """Write TorchScript for any batch and image size: scripted, or traced if scripting fails."""
    try:
        module = torch.jit.script(network)
    except (RuntimeError, torch.jit.frontend.NotSupportedError):
        module = torch.jit.trace(network, torch.rand(2, 3, 64, 96), check_trace=False)
    torch.jit.save(module, str(path))


def to_program(network: nn.Module, stride: int) -> ExportedProgram:
    """Export ``network`` with ``torch.export`` for any batch size and sides that are multiples of ``stride`` px."""
    example = torch.rand(
        2, 3, 4 * stride, 6 * stride
    )  # different sizes, since equal ones would be treated as the same dimension
    sizes = {0: Dim("batch"), 2: stride * Dim("rows"), 3: stride * Dim("columns")}
    return torch.export.export(for_multiples_of_stride(network), (example,), dynamic_shapes=(sizes,))


def to_onnx(program: ExportedProgram, path: Path, output_names: Sequence[str]) -> None:
    """Write a program as ONNX with the input ``image``."""
    names = {"input_names": ["image"], "output_names": list(output_names)}
    torch.onnx.export(program, (), str(path), **names, dynamo=True, external_data=False, verbose=False)


def load_torchscript(path: Path) -> Run:
    """Read a ``.ts`` file."""
    module = torch.jit.load(str(path), map_location="cpu")  # noqa: TID251, it was just written
    return lambda image: _as_tuple(module(image))


def load_torch_export(path: Path) -> Run:
    """Read a ``.pt2`` file."""
    module = torch.export.load(path).module()
    return lambda image: _as_tuple(module(image))


def load_onnx(path: Path) -> Run:
    """Read a ``.onnx`` file with ONNX Runtime, on the CPU."""
    import onnxruntime  # not needed for anything else

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return lambda image: tuple(torch.from_numpy(array) for array in session.run(None, {entry.name: image.numpy()}))


def _as_tuple(outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def largest_difference(network: nn.Module, run: Run, shapes: Sequence[tuple[int, int, int]]) -> float:
    """Largest difference between the outputs of an exported network and the original, on random images.

    Args:
        network: the original network, in evaluation mode.
        run: the exported network.
        shapes: batch size, height and width of the images to try.

    Raises:
        BundleError: if the difference is more than 1e-4, or an output has another shape.

    Returns:
        The difference, divided by the largest magnitude of an output where that is above 1.
    """
    worst = torch.tensor(0.0)
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in shapes:
        image = torch.rand(batch, 3, height, width, generator=generator)
        with torch.inference_mode():
            expected = _as_tuple(network(image))
            got = run(image)
        for ours, theirs in zip(expected, got, strict=True):
            if ours.shape != theirs.shape:
                raise BundleError(
                    f"an exported network must give outputs of the original shape, {tuple(ours.shape)} for a batch of "
                    f"{batch} images of {height} x {width} px, got {tuple(theirs.shape)}."
                )
            difference = (ours - theirs).abs().max() / ours.abs().max().clamp(min=1)
            worst = torch.maximum(worst, difference)  # NaN stays NaN
    if not worst <= LARGEST_DIFFERENCE:
        raise BundleError(
            f"an exported network must match the original to within {LARGEST_DIFFERENCE}, got a difference of {worst}."
        )
    return worst.item()


def deploy(bundle: str, output: str) -> dict[str, float]:
    """Export all networks of a bundle to all formats; see the module's docstring.

    Args:
        bundle: the folder of a run or an exported bundle.
        output: the output folder; files of the same names are replaced.

    Returns:
        The largest difference from the network's outputs, by file name.

    Raises:
        BundleError: if a package is not installed, before anything is written; or if a file's outputs differ from the
            network's; that file is then not written.
    """
    bundle, output = Path(str(bundle)), Path(str(output))
    require_packages()
    stride = read_json(bundle / "configs" / "inference.json")["segmenter_def"]["divisor"]
    multiples = [(1, 4 * stride, 6 * stride), (3, 7 * stride, 3 * stride)]
    differences = {}
    for name, network in networks(bundle).items():
        program = to_program(network, stride)
        formats = {
            ".ts": (partial(to_torchscript, network), load_torchscript, [*multiples, (2, 53, 70)]),
            ".pt2": (partial(torch.export.save, program), load_torch_export, multiples),
            ".onnx": (partial(to_onnx, program, output_names=OUTPUTS[name]), load_onnx, multiples),
        }
        for suffix, (write, load, shapes) in formats.items():
            with atomic_path(output / f"{name}{suffix}") as temporary, warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's, of its own functions
                warnings.simplefilter("ignore", FutureWarning)
                write(temporary)
                differences[f"{name}{suffix}"] = largest_difference(network, load(temporary), shapes)
    return differences


def describe(differences: Mapping[str, float]) -> str:
    """Format the differences, one line per file."""
    return "\n".join(f"{name}: differs by at most {value:.1e}" for name, value in differences.items())
