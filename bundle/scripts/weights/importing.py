"""Import published weights into our networks, and convert weight files between formats.

    python -m scripts weights import --source FILE --kind KIND --num-classes K --output models/x.pt

Kinds: ``esfan_stage1``, ``esfan_stage2``, ``ibdr_stage1`` and ``ibdr_stage2``, the authors' checkpoints, and
``resnet38d_imagenet``, ResNet38d's MXNet file, which needs no ``--num-classes``.

    python -m scripts weights convert --source model.pt --output model.safetensors
"""

from pathlib import Path

from ..errors import BundleError
from ..files.atomic import write_state_dict
from .mxnet_params import read_params
from .published import CHECKPOINTS, from_checkpoint, from_imagenet
from .state_dicts import read_checkpoint


def import_weights(source: str, kind: str, output: str, num_classes: int | None = None) -> Path:
    """Convert a published weight file into a state dict of our network; see the module's docstring.

    Args:
        source: the published file.
        kind: the kind of file.
        output: the file to write.
        num_classes: number of tissue classes in the authors' checkpoint.

    Returns:
        ``output``.

    Raises:
        FileExistsError: if ``output`` exists.
        BundleError: if the file is damaged or of another kind, listing names that are missing or unexpected or have the
            wrong shape.
    """
    source, output = str(source), new_file(output)
    kinds = [*CHECKPOINTS, "resnet38d_imagenet"]
    if kind not in kinds:
        raise BundleError(f"`kind` must be one of {', '.join(kinds)}, got {kind!r}.")
    if kind not in CHECKPOINTS:
        write_state_dict(output, from_imagenet(read_params(source), source))
        return output
    if type(num_classes) is not int or num_classes < 1:
        raise BundleError(f"`num_classes` must be the checkpoint's number of tissues, 1 or more, got {num_classes!r}.")
    write_state_dict(output, from_checkpoint(read_checkpoint(source), kind, num_classes, source))
    return output


def convert(source: str, output: str) -> Path:
    """Write a state dict in the format given by the suffix of ``output``: ``.safetensors``, or torch's for any other.

    Args:
        source: the weight file, in either format; a state dict, bare or the item ``"state_dict"`` of a checkpoint.
        output: the file to write.

    Returns:
        ``output``.

    Raises:
        FileExistsError: if ``output`` exists.
        BundleError: if ``source`` is not a state dict.
    """
    source, output = str(source), new_file(output)
    write_state_dict(output, read_checkpoint(source))
    return output


def new_file(path: str | Path) -> Path:
    """``path``, which must not exist. (Fire reads a file named 2024 as a number.)"""
    path = Path(str(path))
    if path.exists():
        raise FileExistsError(f"`output` must be a new file, got {path}; remove it or choose another name.")
    return path
