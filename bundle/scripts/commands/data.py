"""Commands that create, describe and check data sets."""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option


class Stain(str, Enum):
    """Stain of the synthetic tissue, as from one of two laboratories."""

    lab_a = "lab_a"
    lab_b = "lab_b"


Overlay = Annotated[
    str, Option("--dataset", help="Name of the data set (configs/dataset_NAME.json) or the path of its overlay.")
]

OF_SLIDES = ("mpp", "patches_per_slide", "val_share")  # options of `prepare` for slides, and for images with masks
OF_IMAGES = ("stride", "min_share", "train_masks", "published_values", "splits", "group")

Group = Annotated[
    str | None,
    Option(
        help="Regular expression; images whose names have the same match are of one patient or slide.",
        show_default="from the overlay",
    ),
]


def new_dataset(
    name: Annotated[str, Argument(help="Name of the data set.", metavar="NAME")],
    dataset_dir: Annotated[Path, Option(help="Its folder, with train/img, val/img and val/mask.")],
    class_names: Annotated[str, Option(help="Class names in label order, separated by commas.")],
    background: Annotated[
        bool,
        Option(
            "--background/--no-background",
            help="Whether pixels may belong to no class; if not, the last class is the rest.",
        ),
    ] = True,
    colors: Annotated[
        str | None, Option(help="RGB colours of the classes, [[205,51,51],[255,165,0],...].", show_default="automatic")
    ] = None,
    mpp: Annotated[
        float | None, Option(min=0, help="Micrometres per pixel of the patches, used when segmenting slides.")
    ] = None,
) -> None:
    """Describe a data set of your own in configs/dataset_NAME.json, which you can then edit."""
    import json

    from ..data.preparing.new_dataset import new_dataset as describe
    from ..data.preparing.new_dataset import next_commands

    names = [item.strip() for item in class_names.split(",")]
    try:
        palette = json.loads(colors) if colors else None
    except ValueError as error:
        rule = "must be a list of RGB colours such as [[205,51,51],[255,165,0]]"
        raise typer.BadParameter(f"{rule}, got {colors!r}.", param_hint="--colors") from error
    path = describe(name, str(dataset_dir.resolve()), names, background, palette, mpp)
    typer.echo(next_commands(path))


def check(
    dataset_dir: Annotated[Path, Argument(help="The data set's folder.", metavar="FOLDER")],
    dataset: Overlay,
    label_file: Annotated[Path | None, Option(help="Training labels, if the file names carry none.")] = None,
    group: Group = None,
) -> None:
    """Summarise a data set, with warnings, or list everything wrong with it and exit with status 1."""
    from ..data.check import main
    from ..runs.config_lists import overlay_file

    main(str(dataset_dir), str(overlay_file("dataset", dataset)), label_file and str(label_file), group)


def prepare(
    context: typer.Context,
    output: Annotated[Path, Option(help="The folder to create; it appears complete or not at all.")],
    dataset: Overlay,
    source: Annotated[
        Path | None,
        Option(
            help="Folder with {train,val,test}/{img,mask}, a folder of patches for each class, or a release that the "
            "overlay describes."
        ),
    ] = None,
    slides: Annotated[
        Path | None,
        Option(
            help="Instead: a table of labelled slides, with the columns slide, one of 0 and 1 per class, and if "
            "wanted patient and mpp."
        ),
    ] = None,
    mpp: Annotated[
        float | None,
        Option(min=0, help="With --slides: micrometres per pixel of the patches.", show_default="model_mpp"),
    ] = None,
    patches_per_slide: Annotated[
        int, Option(min=1, help="With --slides: largest number of patches of a slide, drawn at random.")
    ] = 200,
    val_share: Annotated[
        float, Option(min=0, max=1, help="With --slides: share of the slides, by patient, whose patches go to val.")
    ] = 0.0,
    patch_size: Annotated[
        int | None,
        Option(min=1, help="Side of a training patch in px.", show_default="from the overlay, or 128; of slides 224"),
    ] = None,
    stride: Annotated[
        int | None,
        Option(min=1, help="Stride between patches in px.", show_default="from the overlay, or half a patch"),
    ] = None,
    min_share: Annotated[
        float | None,
        Option(
            min=0,
            max=1,
            help="Smallest share of a patch that counts as the presence of a class.",
            show_default="from the overlay, or 0.05",
        ),
    ] = None,
    train_masks: Annotated[
        bool, Option("--train-masks", help="Write training masks too, for few-shot adaptation.")
    ] = False,
    published_values: Annotated[
        bool, Option("--published-values", help="Write masks with the data set's original values.")
    ] = False,
    splits: Annotated[str, Option(help="Splits to prepare, separated by commas.")] = "train,val,test",
    group: Group = None,
) -> None:
    """Make labelled patches for training from images with masks, from folders of patches, or from labelled slides.

    Images with masks are cut; in val and test they stay whole, for scoring.
    """
    if (source is None) == (slides is None):
        raise typer.BadParameter("pass a folder of images, or --slides TABLE.", param_hint="--source")
    _require_meant(context, OF_SLIDES if slides is None else OF_IMAGES, "images" if slides is None else "--slides")
    if slides is not None:
        from ..slides.tiling.cut_slides import cut_slides
        from ..slides.tiling.cut_slides import format_report as of_slides

        typer.echo(of_slides(cut_slides(slides, output, dataset, mpp, patch_size or 224, patches_per_slide, val_share)))
        return
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
        [split.strip() for split in splits.split(",")],
        train_masks,
        group,
    )
    typer.echo(format_report(result))


def _require_meant(context: typer.Context, others: Sequence[str], given: str) -> None:
    """Exit with status 2 if one of ``others``, which have no effect with what is ``given``, is on the command line."""
    for name in others:
        if context.get_parameter_source(name).name == "COMMANDLINE":
            rule = f"it has no effect on {given}; leave it out."
            raise typer.BadParameter(rule, param_hint=f"--{name.replace('_', '-')}")


def demo(
    output_dir: Annotated[Path, Argument(help="The folder to create.")],
    seed: Annotated[int, Option(min=0)] = 0,
    size: Annotated[int, Option(min=32, help="Side of a patch in px.")] = 128,
    num_train: Annotated[int, Option(min=1, help="Number of training patches.")] = 360,
    num_val: Annotated[int, Option(min=1, help="Number of validation images.")] = 60,
    num_test: Annotated[int, Option(min=0, help="Number of test images.")] = 60,
    stain: Annotated[Stain, Option(help="Stain, as from one of two laboratories.")] = Stain.lab_a,
    train_masks: Annotated[
        bool, Option("--train-masks", help="Write training masks too, for few-shot adaptation.")
    ] = False,
) -> None:
    """Generate synthetic H&E patches with labels and masks, to try everything out."""
    from ..data.preparing.demo import describe, make_demo_data

    counts = {"num_train": num_train, "num_val": num_val, "num_test": num_test}
    typer.echo(
        describe(make_demo_data(str(output_dir), seed, size, **counts, stain=stain.value, train_masks=train_masks))
    )
