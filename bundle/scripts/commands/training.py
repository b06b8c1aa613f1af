"""Commands that train."""

from ast import literal_eval
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option


class Preset(str, Enum):
    """The networks to use."""

    lite = "lite"
    paper = "paper"


class Stage(str, Enum):
    """A stage of a training."""

    train_classifier = "train_classifier"
    generate_pseudo_masks = "generate_pseudo_masks"
    train_segmenter = "train_segmenter"
    make_cam_network = "make_cam_network"


class AdaptationStage(str, Enum):
    """A stage of an adaptation."""

    score_source = "score_source"
    copy_pixel_masks = "copy_pixel_masks"
    train_classifier = "train_classifier"
    generate_pseudo_masks = "generate_pseudo_masks"
    train_segmenter = "train_segmenter"


class Precision(str, Enum):
    """Numerical precision of the networks."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Dataset = Annotated[
    str | None, Option(help="Name of a data set (configs/dataset_NAME.json) or the path of its overlay.")
]
DatasetDir = Annotated[
    Path | None, Option(help="The data set's folder.", show_default="from the overlay, or data/NAME")
]
LabelFile = Annotated[Path | None, Option(help="Training labels (CSV or MONAI datalist), if file names have none.")]
Method = Annotated[
    str | None, Option(help="esfan, ibdr, sshr, or your own in configs/method_NAME.json.", show_default="esfan")
]
Networks = Annotated[
    Preset | None,
    Option(help="Small networks that also train on CPUs, or the papers' networks, for a GPU.", show_default="lite"),
]
Configs = Annotated[list[Path] | None, Option("--config", help="An additional config overlay; may be repeated.")]
Epochs = Annotated[int | None, Option(min=1, help="Epochs of the segmentation network.")]
BatchSize = Annotated[int | None, Option(min=1, help="Patches per step of the segmentation network.")]
LearningRate = Annotated[float | None, Option(min=0, help="Learning rate of the segmentation network.")]
Seed = Annotated[
    int | None, Option(min=0, help="Random seed; on a CPU, the same seed gives the same run.", show_default="0")
]
Device = Annotated[
    str | None, Option(help="Device, for instance cpu or cuda:1.", show_default="cuda if available, else cpu")
]
Numbers = Annotated[Precision | None, Option(help="Numerical precision; auto is bfloat16 on GPUs that support it.")]
Redo = Annotated[Stage | None, Option(help="Rerun this stage and all later ones; old results move to previous/.")]
DryRun = Annotated[bool, Option("--dry-run", help="Only print the MONAI command.")]


def train(
    context: typer.Context,
    dataset: Dataset = None,
    method: Method = None,
    preset: Networks = None,
    stage: Annotated[Stage | None, Option(help="Run a single stage.", show_default="all")] = None,
    dataset_dir: DatasetDir = None,
    label_file: LabelFile = None,
    output_dir: Annotated[
        Path | None, Option(help="The run's folder.", show_default="output/DATASET_METHOD_PRESET")
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    classifier_epochs: Annotated[int | None, Option(min=1, help="Epochs of the classifier.")] = None,
    classifier_batch_size: Annotated[int | None, Option(min=1, help="Patches per step of the classifier.")] = None,
    classifier_lr: Annotated[float | None, Option(min=0, help="Learning rate of the classifier.")] = None,
    seed: Seed = None,
    device: Device = None,
    precision: Numbers = None,
    redo: Redo = None,
    second_round_of: Annotated[
        Path | None,
        Option(
            help="A finished run whose segmentation network, where confident, corrects the masks of a second round."
        ),
    ] = None,
    config: Configs = None,
    dry_run: DryRun = False,
) -> None:
    """Train on patches with image-level labels: classifier, pseudo masks, segmentation network.

    Complete stages are kept: repeat the command to resume an interrupted run. Any other config key can be set too, for
    instance --threshold 0.4 or --train#optimizer#momentum 0.95.
    """
    from .config_files import start_training

    run_id = stage.value if stage else "segmentation" if second_round_of else "training"
    start_training(
        run_id,
        context,
        run=second_round_of,
        overlay="second_round.json" if second_round_of else None,
        dataset=dataset,
        method=method,
        preset=preset and preset.value,
        config=config or [],
        dry_run=dry_run,
        settings={
            "dataset_dir": dataset_dir,
            "label_file": label_file,
            "output_dir": output_dir,
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "classifier_epochs": classifier_epochs,
            "classifier_batch_size": classifier_batch_size,
            "classifier_lr": classifier_lr,
            "seed": seed,
            "device": device,
            "precision": precision and precision.value,
            "redo": redo and redo.value,
        },
    )


def adapt(
    context: typer.Context,
    run: Annotated[Path, Argument(help="The folder of the finished run to adapt.")],
    dataset: Dataset = None,
    method: Annotated[str | None, Option(help="The method, if the run does not record it.")] = None,
    preset: Annotated[Preset | None, Option(help="The networks, if the run does not record them.")] = None,
    num_images: Annotated[
        int | None, Option(min=1, help="Number of labelled images to train on.", show_default="10")
    ] = None,
    pixel_masks: Annotated[
        bool | None,
        Option(
            "--pixel-masks/--image-labels",
            help="Whether to train on pixel masks or on image-level labels.",
            show_default="masks if there are any",
        ),
    ] = None,
    freeze_encoder: Annotated[bool, Option("--freeze-encoder", help="Train only the decoder.")] = False,
    new_head: Annotated[
        bool, Option("--new-head", help="Train a new head for other classes than the run's; the rest is kept.")
    ] = False,
    dataset_dir: DatasetDir = None,
    label_file: LabelFile = None,
    output_dir: Annotated[
        Path | None, Option(help="The new run's folder.", show_default="in output/, named after the settings")
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    seed: Seed = None,
    device: Device = None,
    precision: Numbers = None,
    redo: Annotated[
        AdaptationStage | None, Option(help="Rerun this stage and all later ones; old results move to previous/.")
    ] = None,
    config: Configs = None,
    dry_run: DryRun = False,
) -> None:
    """Adapt a run's network to another laboratory's data with a few labelled images, and score it before and after.

    The run determines method and networks; pass your own overlays again with --config.
    Any other config key can be set too.
    """
    from .config_files import start_training

    start_training(
        "adapt",
        context,
        run=run,
        overlay="adapt.json",
        dataset=dataset,
        method=method,
        preset=preset and preset.value,
        config=config or [],
        dry_run=dry_run,
        settings={
            "num_images": num_images,
            "pixel_masks": pixel_masks,
            "freeze_encoder": freeze_encoder or None,
            "new_head": new_head or None,
            "dataset_dir": dataset_dir,
            "label_file": label_file,
            "output_dir": output_dir,
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "seed": seed,
            "device": device,
            "precision": precision and precision.value,
            "redo": redo and redo.value,
        },
    )


def experiment(
    plan: Annotated[Path, Argument(help="The plan: JSON with configs, settings and variants (docs/results.md).")],
    output_dir: Annotated[Path, Option(help="Folder for the runs and the table.")],
    dataset: Annotated[str | None, Option(help="Value of {dataset} in the plan, for instance glas.")] = None,
    seeds: Annotated[str, Option(help="One or more seeds, separated by commas.")] = "0",
    only: Annotated[list[str] | None, Option(help="A variant to run; may be repeated.", show_default="all")] = None,
    jobs: Annotated[int, Option(min=1, help="Number of parallel runs, which share the CPU cores.")] = 1,
    settings: Annotated[str | None, Option(help="Overrides for all variants, as in \"{'epochs': 3}\".")] = None,
) -> None:
    """Train and score variants of the configs with several seeds, and compare them in one table."""
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{error}; pass whole numbers, separated by commas.", param_hint="--seeds") from error
    try:
        overrides = literal_eval(settings or "{}")
    except (SyntaxError, ValueError):
        overrides = None
    if not isinstance(overrides, dict):
        rule = "must be a dictionary in Python's notation, such as \"{'epochs': 3}\""
        raise typer.BadParameter(f"{rule}, got {settings!r}.", param_hint="--settings")

    from ..evaluation.experiment import experiment as run_experiment

    typer.echo(run_experiment(str(plan), str(output_dir), dataset, numbers, only, jobs, overrides))
