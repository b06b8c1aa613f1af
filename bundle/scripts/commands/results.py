"""Commands that use trained networks."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from .monai_run import MonaiRun
from .training import Device, DryRun, Numbers

Run = Annotated[Path, Argument(help="The folder of a finished run.")]


class Kind(str, Enum):
    """The kind of input."""

    images = "images"
    slides = "slides"


class Scored(str, Enum):
    """The network to score."""

    segmenter = "segmenter"
    classifier = "classifier"


def segment(
    source: Annotated[Path, Argument(help="An image, a slide, or a folder of either.", metavar="INPUT")],
    run: Annotated[Path, Option(help="The folder of a finished run, or an exported bundle.")],
    output_dir: Annotated[Path, Option(help="Output folder.")] = Path("results"),
    kind: Annotated[
        Kind | None, Option("--as", help="The kind of INPUT.", show_default="slides if it has any, else images")
    ] = None,
    mpp: Annotated[
        float | None, Option(min=0, help="Micrometres per pixel of slides whose files do not record it.")
    ] = None,
    model_mpp: Annotated[
        float | None,
        Option(min=0, help="Micrometres per pixel of the training patches, if the run does not record it."),
    ] = None,
    overlap: Annotated[
        float | None, Option(min=0, max=0.5, help="Overlap of neighbouring slide tiles.", show_default="0.5")
    ] = None,
    budget_gb: Annotated[
        float | None, Option(min=0, help="Memory budget per slide, in gigabytes.", show_default="2")
    ] = None,
    batch_size: Annotated[
        int | None, Option(min=1, help="Tiles or images per forward pass.", show_default="16")
    ] = None,
    mirror_averaging: Annotated[
        bool | None, Option(help="Average over flipped copies; takes four times as long.", show_default="as in the run")
    ] = None,
    published_values: Annotated[
        bool, Option("--published-values", help="Write image masks with the data set's original values.")
    ] = False,
    device: Device = None,
    precision: Numbers = None,
    dry_run: DryRun = False,
) -> None:
    """Segment images or whole slides with a finished run.

    Images: palette masks and overlay images. Slides: annotations for QuPath, areas in mm2, class maps, overlay images.
    Repeating the command keeps finished results.
    """
    from ..slides.reading.files import holds_slides

    slides = holds_slides(source) if kind is None else kind is Kind.slides
    of_slides = {"--mpp": mpp, "--model-mpp": model_mpp, "--overlap": overlap, "--budget-gb": budget_gb}
    useless = {"--published-values": published_values or None} if slides else of_slides
    for name in (name for name, value in useless.items() if value is not None):
        meant, given = ("images", "slides") if slides else ("slides", "images")
        rule = f"is an option of {meant}, but {source} is taken as {given}; leave it out, or pass --as {meant}."
        raise typer.BadParameter(rule, param_hint=name)
    settings = {
        "slides" if slides else "dataset_dir": source.resolve(),
        "output_dir": output_dir.resolve(),
        "eval_batch_size": batch_size,
        "mirror_averaging": mirror_averaging,
        "device": device,
        "precision": precision and precision.value,
    }
    if slides:
        settings |= {"mpp": mpp, "model_mpp": model_mpp, "overlap": overlap, "budget_gb": budget_gb}
    else:
        settings |= {"published_values": published_values or None}
    config = "configs/inference_slides.json" if slides else "configs/inference.json"
    _in_run(run, "run", [config], settings, dry_run)


def evaluate(
    run: Run,
    stage: Annotated[Scored, Option(help="The network to score, on val and test.")] = Scored.segmenter,
    dataset_dir: Annotated[
        Path | None,
        Option(help="The data set's folder, if it has moved, or that of another data set with the same classes."),
    ] = None,
    output_dir: Annotated[Path | None, Option(help="Folder for scores and pictures.", show_default="the run's")] = None,
    device: Device = None,
    precision: Numbers = None,
    dry_run: DryRun = False,
) -> None:
    """Score a finished run's network again: IoU and Dice per class, confusion matrices, pictures."""
    place = output_dir and output_dir.resolve()
    weights = {"segmenter_path": "models/model.pt", "classifier_path": "models/classifier/model.pt"} if place else {}
    settings = {
        "dataset_dir": dataset_dir and dataset_dir.resolve(),
        "output_dir": place,
        **{key: run.resolve() / path for key, path in weights.items()},
        "device": device,
        "precision": precision and precision.value,
    }
    run_id = "run" if stage is Scored.segmenter else "score_classifier"
    _in_run(run, run_id, ["configs/train.json", "configs/evaluate.json"], settings, dry_run)


def _in_run(run: Path, run_id: str, configs: list[str], settings: dict, dry_run: bool) -> None:
    from ..errors import BundleError
    from ..runs import plain_errors

    plain_errors.install()
    if not (run / "configs" / "inference.json").is_file():
        raise BundleError(f"`run` must be the folder of a finished run, got {run}; it has no configs/inference.json.")
    monai = MonaiRun(run.resolve(), run_id, configs, settings)
    monai.show() if dry_run else monai.start()


def report(
    run: Run,
    dataset_dir: Annotated[Path | None, Option(help="The data set's folder, if it has moved since the run.")] = None,
) -> None:
    """Regenerate a run's report.html: scores, best and worst images, curves and settings on one page."""
    from ..evaluation.report.report import report as write_report

    typer.echo(write_report(str(run), dataset_dir and str(dataset_dir)))


def label(
    context: typer.Context,
    studies: Annotated[str, Option(help="Folder of the images and slides to annotate.")],
    run: Annotated[Path | None, Option(help="The folder of a finished run, whose network proposes outlines.")] = None,
    port: Annotated[int, Option(min=1, max=65535)] = 8000,
    host: Annotated[
        str, Option(help="Address to listen on; 0.0.0.0 lets other machines connect, without a password.")
    ] = "127.0.0.1",
) -> None:
    """Serve a run to MONAI Label clients: QuPath, the Digital Slide Archive, 3D Slicer.

    Also takes any option of `monailabel start_server`, for instance --conf largest_mpx 4. MONAI Label needs its own
    environment: see docs/label.md.
    """
    from ..label_app.start import start

    start(run, ["--studies", studies, "--port", str(port), "--host", host, *context.args])
