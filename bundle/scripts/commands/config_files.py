"""Choose a training's config files, from names or from a finished run."""

import difflib
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from ..errors import BundleError
from ..files.foreign_files import read_json
from ..runs import options, plain_errors
from ..runs.config_lists import PRESETS, config_list, in_working_directory
from ..runs.old_names import read_configs
from ..runs.run_folder import BUNDLE_ROOT, RunFolder, differences
from ..runs.settings import SET_BY_US, is_default, is_text, nearest
from .monai_run import MonaiRun, as_monai_reads, quoted

CARRIED_OVER = (  # by the user
    "class_names",
    "mask_values",
    "ignore_value",
    "label_file",
    "model_mpp",
    "level_weights",
    "threshold",
)
NETWORKS = ("classifier_def", "segmenter_def", "encoder_decoder")  # sections that define the networks


def start_training(
    run_id: str,
    context: typer.Context,
    dataset: str | None,
    config: Sequence[Path],
    settings: Mapping[str, Any],
    method: str | None = None,
    preset: str | None = None,
    run: Path | None = None,
    overlay: str | None = None,
    dry_run: bool = False,
) -> None:
    """Replace this process with ``monai.bundle run`` on the configs of a data set, method and preset, or of a run.

    Args:
        run_id: MONAI's run ID, the config section to run.
        context: the command's; its further arguments, ``--key value``, set keys of the configs.
        dataset, method, preset: names; ``None`` takes the run's, or the default.
        config: further overlays.
        settings: values by key; ``None`` leaves a key to the configs.
        run: a finished run to start from.
        overlay: the bundle's own overlay to merge last.
        dry_run: only print the command.
    """
    plain_errors.install()
    settings, words = dict(settings), context.args
    if run is not None:
        settings = {"source_dir": Path(run).resolve(), **settings}
        dataset, method, preset = names_of_run(run, dataset, method, preset)
        preset = preset if preset in PRESETS else "paper"  # --config names the overlay of a custom preset
    if dataset is None:
        raise typer.BadParameter("pass the name of a data set, or the path of its overlay.", param_hint="--dataset")
    files = config_list(dataset, method or "esfan", preset or "lite", [path.resolve() for path in config])
    if overlay is not None:
        files = [*files, BUNDLE_ROOT / "configs" / overlay]
    merged = read_configs(files).get()
    require_known(context, merged)
    if run is not None:
        saved = RunFolder(run).saved_config()
        require_networks_of_run(run, saved, merged)
        tell_other_settings(run, saved, merged, {*settings, *options.options(words)})
    for key in ("dataset_dir", "output_dir", "label_file"):
        if settings.get(key) is not None:
            settings[key] = Path(settings[key]).resolve()
        elif key not in options.options(words) and Path.cwd() != BUNDLE_ROOT:
            settings |= in_working_directory(key, merged[key])
    monai = MonaiRun(BUNDLE_ROOT, run_id, files, settings, as_texts(with_absolute_paths(words), merged))
    monai.show() if dry_run else monai.start()


def names_of_run(run: Path, dataset: str | None, method: str | None, preset: str | None) -> tuple[str, str, str]:
    """The data set, method and preset, each defaulting to that of the run."""
    path = Path(run) / "configs" / "train.json"
    if not path.is_file():
        raise BundleError(f"`run` must be the folder of a finished run, got {run}; it has no configs/train.json.")
    saved = read_json(path)
    return dataset or saved["dataset_name"], method or saved["method_name"], preset or saved["preset"]


def require_networks_of_run(run: Path, saved: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    """Raise a ``BundleError`` unless the configs build the same networks as a run, whose config is ``saved``.

    A parameter that there was not yet when the run was trained may have its default.
    """
    other = [
        key
        for name in NETWORKS
        if name in saved
        for key, before, _ in differences(saved[name], merged.get(name), name)
        if not (before == "nothing" and is_default(merged, key))
    ]
    if other:
        raise BundleError(
            f"the configs must build the networks of {run}, but {other} differ; pass the options it was trained "
            "with: --method, --preset, --config FILE."
        )


def tell_other_settings(run: Path, saved: Mapping[str, Any], merged: Mapping[str, Any], given: Container[str]) -> None:
    """Print settings of the data and of pseudo masks that were other in a run on the same data, if not ``given``."""
    if saved["dataset_name"] != merged["dataset_name"]:
        return
    other = {key: saved[key] for key in CARRIED_OVER if key in saved and key not in given}
    other = {key: value for key, value in other.items() if value != merged.get(key)}
    if other:
        values = " ".join(f"--{key} {quoted(as_monai_reads(value))}" for key, value in other.items())
        typer.echo(f"{run} was trained with other settings, which do not carry over; to keep them, pass {values}.")


def require_known(context: typer.Context, merged: Mapping[str, Any]) -> None:
    """Exit with status 2 if one of the further arguments sets nothing, suggesting the closest option or key."""
    stray = options.stray_words(context.args)
    if stray:
        raise typer.BadParameter(f"{stray[0]!r} belongs to no option; remove it, or quote a value that has spaces.")
    own = {name.removeprefix("--") for parameter in context.command.params for name in parameter.opts}
    for name in options.options(context.args):
        if name in SET_BY_US:
            message = "MONAI's own, set by this command; pass overlays by --config."
            raise typer.BadParameter(message, param_hint=f"--{name}")
    for name in options.unknown_options(context.args, merged):
        near = [] if "#" in name else difflib.get_close_matches(name.replace("_", "-"), own, n=1)
        near = near or [nearest(name, merged)]
        hint = f"did you mean --{near[0]}?" if near[0] else "see --help and the keys in configs/train.json."
        raise typer.BadParameter(f"no such option or config key; {hint}", param_hint=f"--{name}")


def as_texts(words: Sequence[str], merged: Mapping[str, Any]) -> list[str]:
    """``words`` with the values of names quoted where MONAI's command line would read a number, as in 2024_06_16."""
    quoted_words, name = [], ""
    for word in words:
        option, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
        name = option or name
        key = options.options([name])[0] if name else ""
        is_name = key and is_text(key, merged) and value and value[0] not in "$@%\"'"
        is_unset = key.endswith(options.PATHS) and value.lower() in options.MEANT
        quoted_words.append(f"{option}{sign}{as_monai_reads(value)}" if is_name and not is_unset else word)
    return quoted_words


def with_absolute_paths(words: Sequence[str]) -> list[str]:
    """``words`` with the paths of options such as ``--mask_dir`` resolved, since the run starts in another folder."""
    absolute, is_path = [], False
    for word in words:
        name, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
        is_path = name.endswith(options.PATHS) if name else is_path
        if is_path and value and value[0] not in "$@%\"'" and value.lower() not in options.MEANT:
            value = str(Path(value).resolve())
        absolute.append(f"{name}{sign}{value}")
    return absolute
