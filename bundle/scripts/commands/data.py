"""Commands that make, describe and check data sets."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option


class Stain(str, Enum):
    """Of synthetic tissue: as from one laboratory or another."""

    lab_a = "lab_a"
    lab_b = "lab_b"


Overlay = Annotated[
    str, Option("--dataset", help="Name of the data set (configs/dataset_NAME.json) or its overlay's file.")
]


def new_dataset(
    name: Annotated[str, Argument(help="Of the data set.", metavar="NAME")],
    dataset_dir: Annotated[Path, Option(help="Its folder, with train/img, val/img and val/mask.")],
    class_names: Annotated[str, Option(help="In the order of the labels, separated by commas.")],
    background: Annotated[
        bool,
        Option(
            "--background/--no-background", help="Whether a pixel may be no tissue; if not, the last class is the rest."
        ),
    ] = True,
    colors: Annotated[
        str | None, Option(help="Of the classes, [[205,51,51],[255,165,0],...].", show_default="chosen")
    ] = None,
    mpp: Annotated[
        float | None, Option(min=0, help="Micrometres per pixel of the patches, for work on slides.")
    ] = None,
) -> None:
    """Describe a data set of your own in configs/dataset_NAME.json, which is then yours to edit."""
    import json

    from ..data.new_dataset import new_dataset as describe
    from ..data.new_dataset import next_commands

    names = [item.strip() for item in class_names.split(",")]
    path = describe(name, str(dataset_dir.resolve()), names, background, json.loads(colors) if colors else None, mpp)
    typer.echo(next_commands(path))


def check(
    dataset_dir: Annotated[Path, Argument(help="The data set's folder.", metavar="FOLDER")],
    dataset: Overlay,
    label_file: Annotated[Path | None, Option(help="Training labels, if the file names do not carry them.")] = None,
) -> None:
    """Say what is in a data set, or all that is wrong with it (and end with status 1)."""
    from ..data.check import main
    from ..runs.config_lists import overlay_file

    main(str(dataset_dir), str(overlay_file("dataset", dataset)), label_file and str(label_file))


def prepare(
    source: Annotated[
        Path, Option(help="Folder with {train,val,test}/{img,mask}, or of a release that the overlay describes.")
    ],
    output: Annotated[Path, Option(help="The folder to make; it appears complete or not at all.")],
    dataset: Overlay,
    patch_size: Annotated[
        int | None, Option(min=1, help="Side of a training patch in px.", show_default="the overlay's, or 128")
    ] = None,
    stride: Annotated[
        int | None,
        Option(min=1, help="From one patch to the next in px.", show_default="the overlay's, or half a patch"),
    ] = None,
    min_share: Annotated[
        float | None,
        Option(
            min=0, max=1, help="Share of a patch from which a class is in it.", show_default="the overlay's, or 0.05"
        ),
    ] = None,
    train_masks: Annotated[
        bool, Option("--train-masks", help="Write training masks too, for few-shot adaptation.")
    ] = False,
    published_values: Annotated[
        bool, Option("--published-values", help="Write masks in the data set's own values.")
    ] = False,
    splits: Annotated[str, Option(help="Which ones, separated by commas.")] = "train,val,test",
) -> None:
    """Cut images with masks into labelled patches to train on, and whole images to score by."""
    from ..data.preparing.prepare import format_report
    from ..data.preparing.prepare import prepare as cut

    result = cut(
        str(source),
        str(output),
        dataset,
        patch_size,
        stride,
        min_share,
        published_values,
        splits.split(","),
        train_masks,
    )
    typer.echo(format_report(result))


def demo(
    output_dir: Annotated[Path, Argument(help="The folder to make.")],
    seed: Annotated[int, Option(min=0)] = 0,
    size: Annotated[int, Option(min=32, help="Side of a patch in px.")] = 128,
    num_train: Annotated[int, Option(min=1, help="Patches of train.")] = 360,
    num_val: Annotated[int, Option(min=1, help="Images of val.")] = 60,
    num_test: Annotated[int, Option(min=0, help="Images of test.")] = 60,
    stain: Annotated[Stain, Option(help="As from one laboratory or another.")] = Stain.lab_a,
    train_masks: Annotated[
        bool, Option("--train-masks", help="Write training masks too, for few-shot adaptation.")
    ] = False,
) -> None:
    """Draw synthetic H&E with labels and masks, to try everything on."""
    from ..data.preparing.demo import describe, make_demo_data

    counts = {"num_train": num_train, "num_val": num_val, "num_test": num_test}
    typer.echo(
        describe(make_demo_data(str(output_dir), seed, size, **counts, stain=stain.value, train_masks=train_masks))
    )
