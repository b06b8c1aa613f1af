"""Commands that import weights and export bundles."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from .training import Preset


class Published(str, Enum):
    """Weight files published by others."""

    esfan_stage1 = "esfan_stage1"
    esfan_stage2 = "esfan_stage2"
    ibdr_stage1 = "ibdr_stage1"
    ibdr_stage2 = "ibdr_stage2"
    resnet38d_imagenet = "resnet38d_imagenet"


def import_weights(
    source: Annotated[Path, Option(help="The published file; nothing in it is executed.")],
    kind: Annotated[Published, Option(help="The kind of file: an authors' checkpoint, or ResNet38d's MXNet file.")],
    output: Annotated[Path, Option(help="The new file, .pt or .safetensors.")],
    num_classes: Annotated[int | None, Option(min=1, help="Number of classes in the authors' checkpoint.")] = None,
) -> None:
    """Convert published weights for our networks, matching names and shapes strictly."""
    from ..weights.importing import import_weights as turn

    typer.echo(f"The weights are in {turn(str(source), kind.value, str(output), num_classes)}.")


def convert(
    source: Annotated[Path, Option(help="A state dict, or a checkpoint that contains one.")],
    output: Annotated[Path, Option(help="The new file: .safetensors, or any other suffix for torch's format.")],
) -> None:
    """Convert weights between torch's format and safetensors."""
    from ..weights.importing import convert as write

    typer.echo(f"The weights are in {write(str(source), str(output))}.")


def export(
    run: Annotated[Path | None, Argument(help="The folder of a finished run.")] = None,
    output: Annotated[Path, Option(help="Where to write the bundle's folder and zip.")] = Path("dist"),
    weights: Annotated[Path | None, Option(help="Without a run: the segmentation network's weight file.")] = None,
    classifier: Annotated[Path | None, Option(help="With --weights: the classifier's weight file.")] = None,
    method: Annotated[str | None, Option(help="With --weights: esfan, ibdr, sshr or your own.")] = None,
    preset: Annotated[Preset | None, Option(help="With --weights: the networks.", show_default="paper")] = None,
    dataset: Annotated[
        str | None, Option(help="With --weights: the data set they were trained on.", show_default="luad")
    ] = None,
    name: Annotated[
        str | None, Option(help="The bundle's name.", show_default="METHOD_histopathology_segmentation")
    ] = None,
    repo_id: Annotated[str | None, Option(help="OWNER/NAME of the Hub repository that will host large files.")] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an exported bundle of the same name.")] = False,
) -> None:
    """Export a bundle that runs by itself, for a colleague, MONAI's Model Zoo or the Hugging Face Hub.

    It has configs, all scripts, weights, model card and tests; every command of this one runs in its folder.
    """
    from ..runs.config_lists import overlay_file
    from ..sharing.export import export as make
    from .config_files import names_of_run

    if (run is None) == (weights is None):
        raise typer.BadParameter("pass the folder of a run, or --weights.", param_hint="RUN")
    if run is not None:
        _, method, preset_name = names_of_run(run, None, method, preset and preset.value)
    elif method is None:
        raise typer.BadParameter("weights do not record their method; pass its name.", param_hint="--method")
    else:
        preset_name = preset.value if preset else "paper"
    folder = make(
        method,
        str(run or weights),
        str(output),
        preset_name,
        dataset and str(overlay_file("dataset", dataset)),
        classifier and str(classifier),
        repo_id,
        name,
        overwrite,
    )
    typer.echo(f"The bundle is in {folder} and {folder}.zip.")


def deploy(
    bundle: Annotated[Path, Argument(help="The folder of a finished run, or an exported bundle.")],
    output: Annotated[Path, Option(help="Output folder.")] = Path("deployed"),
) -> None:
    """Export both networks as TorchScript, torch.export and ONNX, and check each file against its network."""
    from ..sharing.deploy import deploy as write
    from ..sharing.deploy import describe

    typer.echo(describe(write(str(bundle), str(output))))


def push(
    bundle: Annotated[Path, Argument(help="An exported bundle's folder.")],
    repo_id: Annotated[str, Option(help="OWNER/NAME of the Hub repository; created if it does not exist.")],
    dry_run: Annotated[bool, Option("--dry-run", help="Only list what would be uploaded.")] = False,
    private: Annotated[bool, Option("--private", help="If the repository is new, make it private.")] = False,
) -> None:
    """Upload an exported bundle to the Hugging Face Hub."""
    from ..sharing.push import push as upload

    typer.echo(upload(str(bundle), repo_id, dry_run, private))
