"""Commands that use trained networks."""

from enum import Enum
from glob import escape
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
    run: Annotated[Path, Option(help="The folder of a finished run, or an exported bundle.")],
    source: Annotated[
        list[str] | None,
        Argument(
            help="An image, a slide, or a folder of either, with its subfolders for slides. For slides also several, "
            'a pattern such as "*.svs", or a list.',
            metavar="INPUT",
            show_default=False,
        ),
    ] = None,
    slides: Annotated[
        str | None,
        Option(
            help="Slides, in the place of INPUT: as there, or a table (CSV) with the columns slide, mpp and name, "
            "whose micrometres per pixel rule over the files'."
        ),
    ] = None,
    output_dir: Annotated[Path, Option(help="Output folder.")] = Path("results"),
    kind: Annotated[
        Kind | None, Option("--as", help="The kind of INPUT.", show_default="slides if it has any, else images")
    ] = None,
    mpp: Annotated[
        float | None, Option(min=0, help="Micrometres per pixel of slides whose files do not record it.")
    ] = None,
    overrule_mpp: Annotated[
        bool, Option("--overrule-mpp", help="Use --mpp even if a slide's file records another.")
    ] = False,
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
    tissue_saturation: Annotated[
        float | None,
        Option(
            min=0,
            max=1,
            help="Least colour saturation of tissue on slides; lower it for pale stains. 0: all that was scanned.",
            show_default="0.05 to 0.15, by Otsu's method",
        ),
    ] = None,
    backends: Annotated[
        str | None, Option(help="Readers of slides in order of preference.", show_default="openslide,cucim,tifffile")
    ] = None,
    threads: Annotated[int | None, Option(min=1, help="Threads that read a slide.", show_default="4")] = None,
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
    from ..slides.reading.description import require_backends

    inputs, as_slides = _inputs(source or [], slides, kind)
    if overrule_mpp and mpp is None:
        raise typer.BadParameter("it needs the right size; add --mpp.", param_hint="--overrule-mpp")
    of_slides = {
        "mpp": mpp,
        "overrule_mpp": overrule_mpp or None,
        "model_mpp": model_mpp,
        "overlap": overlap,
        "budget_gb": budget_gb,
        "tissue_saturation": tissue_saturation,
        "backends": backends and list(require_backends(backends)),
        "threads": threads,
    }
    of_images = {"published_values": published_values or None}
    for name in (name for name, value in (of_images if as_slides else of_slides).items() if value is not None):
        meant, given = ("images", "slides") if as_slides else ("slides", "images")
        rule = f"is an option of {meant}, but the input is taken as {given}; leave it out, or pass --as {meant}."
        raise typer.BadParameter(rule, param_hint=f"--{name.replace('_', '-')}")
    settings = {
        "slides" if as_slides else "dataset_dir": inputs,
        "output_dir": output_dir.resolve(),
        "eval_batch_size": batch_size,
        "mirror_averaging": mirror_averaging,
        "device": device,
        "precision": precision and precision.value,
        **(of_slides if as_slides else of_images),
    }
    config = "configs/inference_slides.json" if as_slides else "configs/inference.json"
    _in_run(run, "run", [config], settings, dry_run)


def _inputs(source: list[str], slides: str | None, kind: Kind | None) -> tuple[str | list[str], bool]:
    """The input with absolute paths, and whether it is slides."""
    from ..slides.reading.files import entries_of, holds_slides, is_pattern

    if bool(source) == bool(slides) or (slides and kind is Kind.images):
        raise typer.BadParameter("pass images or slides as INPUT, or slides by --slides.", param_hint="INPUT")
    entries = entries_of([slides] if slides else source)
    as_slides = bool(slides) or (any(map(holds_slides, entries)) if kind is None else kind is Kind.slides)
    if not as_slides and len(entries) > 1:
        raise typer.BadParameter("pass one image, or the folder of several.", param_hint="INPUT")
    absolute = [
        str(Path(escape(str(Path.cwd()))) / entry if is_pattern(entry) else Path(entry).absolute()) for entry in entries
    ]
    return absolute[0] if len(absolute) == 1 else absolute, as_slides


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
