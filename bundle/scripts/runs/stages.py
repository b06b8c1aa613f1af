"""Run the stages of a training in order, each once."""

import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from ignite import distributed
from monai.bundle import ConfigParser

from ..errors import BundleError
from ..files.job_lock import only_job
from . import plain_errors
from .data_record import Fingerprint
from .devices import description, prepare_device, seed_everything
from .old_names import current_names, renamed
from .options import require_known_options
from .run_folder import SHOWN_DIFFERENCES, RunFolder, differences, portable
from .settings import references, settings_used, texts_as_numbers

logger = logging.getLogger(__name__)


def merged_config() -> dict[str, Any]:
    """The merged config of the calling bundle run, references unresolved: the config's key ``config``.

    MONAI passes a config's functions only their arguments, and no expression or macro evaluates to the whole config, so
    the parser is looked up on the call stack, here and nowhere else. Numbers that YAML reads as strings become numbers,
    and names from earlier versions are updated, in the parser as well.

    Raises:
        RuntimeError: if there is no ``ConfigParser`` on the call stack.
    """
    frame = inspect.currentframe()
    while frame is not None:
        parser = frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            config = ConfigParser(deepcopy({key: value for key, value in parser.get().items() if key != "_meta_"}))
            for key, number in texts_as_numbers(config.get()).items():
                config[key] = number
                parser.ref_resolver.get_item(key).update_config(number)  # nothing has used it yet
            for item in parser.ref_resolver.items.values():
                item.update_config(renamed(item.get_config(), {}))
            return current_names(config.get())
        frame = frame.f_back
    raise RuntimeError("this function must be called from a bundle's config, as `python -m monai.bundle run` does.")


def prepare(
    config: Mapping[str, Any], device: str | torch.device, deterministic: bool = False, seed: int | None = None
) -> None:
    """Prepare to run a config: error reporting, checks of its options, device and random seeds.

    Args:
        config: the merged config.
        device, deterministic: as for ``devices.prepare_device``.
        seed: seed of all random generators; ``None`` leaves them unchanged.
    """
    plain_errors.install()
    if "stage" not in config:  # else already checked, before the stage's overlays were merged
        require_known_options(config)
    prepare_device(device, deterministic)
    if seed is not None:
        seed_everything(seed, deterministic)


def overlaid(config: Any, overlay: Any) -> Any:
    """Merge ``overlay`` into ``config``, section by section and key by key.

    A section of the overlay that is empty or has its own ``_target_`` replaces the one in ``config``; so do lists and
    single values.
    """
    merged = isinstance(config, Mapping) and isinstance(overlay, Mapping) and overlay and "_target_" not in overlay
    if not merged:
        return deepcopy(overlay)
    return dict(config) | {key: overlaid(config.get(key), value) for key, value in overlay.items()}


def stage_config(config: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The config of a stage: the merged config with the stage's own settings merged over it.

    A stage's ``sections`` say which section of the config is merged into which other
    (``{"train": "classification"}``), or copied if the other does not exist; its ``overlay`` is merged last.

    Raises:
        BundleError: if the config has no such stage.
    """
    if stage not in config["stages"]:
        raise BundleError(f"`stages` must be among {list(config['stages'])}, got {stage!r}.")
    definition = config["stages"][stage]
    changed = {below: config[above] for below, above in definition.get("sections", {}).items()}
    for overlay in (changed, definition.get("overlay")):
        config = overlaid(config, overlay) if overlay else config
    return deepcopy(dict(config))


def stage_parser(config: Mapping[str, Any], stage: str) -> ConfigParser:
    """A parser for a stage's config; earlier versions' configs, with both trainings written out, work too."""
    config = current_names(config)
    if "stages" in config:
        return ConfigParser(config=stage_config(config, stage))
    return ConfigParser(
        config=dict(config) | ({"train": config.get("classification", {})} if stage == "train_classifier" else {})
    )


def run_stages(
    stages: Sequence[str],
    config: Mapping[str, Any],
    output_dir: str | Path,
    redo: str | None = None,
    data: Callable[[], Fingerprint] | None = None,
) -> None:
    """Run the config's list ``initialize`` and the stage's own steps for each stage that is not complete.

    Each stage has its own parser, so that nothing from the previous stage stays in memory.

    Args:
        stages: names of stages in the config's section ``stages``, in order. A stage has ``sections`` and an
            ``overlay`` for the config, ``early_checks`` to run before the first of them begins, ``checks`` to run
            before anything of its own is written, ``steps``, the ``outputs`` they produce, the stage that it ``feeds``
            with them, the ``result`` without which it is not complete, and ``scores``. A stage that ``continues``
            resumes from its own last outputs whenever it is requested, and its settings may change; one that begins
            ``from_scratch`` resumes from nothing, and what is in the place of its outputs is set aside.
        config: the merged config.
        output_dir: the run folder.
        redo: rerun this stage and all later ones from the start.
        data: returns the data set's fingerprint, which must be that of the run.
    """
    if redo is not None and (redo not in stages or _continues(config, redo)):
        raise BundleError(
            f"`redo` must be one of {[s for s in stages if not _continues(config, s)]} or null, got {redo!r}."
        )
    if int(os.environ.get("WORLD_SIZE", 1)) != distributed.get_world_size():
        raise BundleError("multiple processes must form a group; add configs/multi_gpu_train.json to --config_file.")
    folder = RunFolder(output_dir)
    seen = None if data is None else data()
    with only_job(output_dir) if distributed.get_rank() == 0 else nullcontext():
        first_again = len(stages) if redo is None else list(stages).index(redo)
        again = {stage: position >= first_again for position, stage in enumerate(stages)}
        if not any(_continues(config, stage) for stage in stages):
            _require_kept_stages_unchanged(stages, [s for s in stages if again[s]], config, folder, seen)
        complete = [s for s in stages if not again[s] and not _continues(config, s) and folder.is_complete(s)]
        if len(complete) == len(stages):
            folder.require_same_settings(config, seen)  # else a setting of nothing but scores would change nothing
        for stage in (name for name in stages if name not in complete):
            _work_through(stage_parser(config, stage), f"stages#{stage}#early_checks")
        distributed.barrier()  # every process has checked before any of them writes
        for stage in stages:
            if stage in complete:
                logger.info(f"{stage} is complete in {output_dir}; to rerun it, pass `--redo {stage}`.")
            else:
                _run_stage(stage, config, folder, again[stage], seen)


def _require_kept_stages_unchanged(
    stages: Sequence[str], again: Sequence[str], config: Mapping[str, Any], folder: RunFolder, data: Fingerprint | None
) -> None:
    """Raise a ``BundleError`` if the data have changed, or a setting of a complete stage or of one that has begun.

    Of stages that are not complete, only ``stages`` count. Stages that run ``again`` from scratch, and those completed
    after them, do not.
    """
    old, new, done = folder.saved_config(), portable(config, "", None), list(folder.stages)
    if "stages" not in old:  # nothing, or written by an earlier version
        return None if again or not old else folder.require_same_settings(config, data)
    undone = done[done.index(again[0]) :] if again and again[0] in done else []
    kept = {*stages, *done} & config["stages"].keys() - {*again, *undone}
    for stage in (name for name in old["stages"] if name in kept and _has_begun(folder, old, name)):
        changed_data = folder.data_differences(data)
        if changed_data:
            raise BundleError(
                f"the data of {stage}, which {folder.path} has already begun or finished, must stay, but "
                f"{'; '.join(changed_data)}. Restore the old data, pass --redo {stage}, or choose another --output_dir."
            )
        before, now = (stage_settings(one, stage) for one in (old, new))
        changed = [f"{key}: was {there}, now {here}" for key, there, here in differences(before, now)]
        if changed:
            more = f"; and {len(changed) - SHOWN_DIFFERENCES} more" if len(changed) > SHOWN_DIFFERENCES else ""
            raise BundleError(
                f"the settings of {stage}, which {folder.path} has already begun or finished, must stay, but these "
                f"differ: {'; '.join(changed[:SHOWN_DIFFERENCES])}{more}. Restore the old values, pass --redo {stage}, "
                "or choose another --output_dir."
            )


def _has_begun(folder: RunFolder, config: Mapping[str, Any], stage: str) -> bool:
    """Whether a run, whose saved config is ``config``, has completed a stage or any of its outputs exists."""
    if stage in folder.stages:
        return True
    if _continues(config, stage) or config["stages"][stage].get("from_scratch"):
        return False
    config = config | {"bundle_root": str(folder.path)}
    others = [path for other in folder.stages if other in config["stages"] for path in _outputs(config, other)]
    return any(Path(path).exists() for path in _outputs(config, stage) if path not in others)


def _outputs(config: Mapping[str, Any], stage: str) -> list[str]:
    return stage_parser(config, stage).get_parsed_content(f"stages#{stage}#outputs")


def stage_settings(config: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The settings a stage's steps refer to, directly or indirectly, by key, without those that may change freely."""
    config = stage_config(config, stage)
    free = config["run_settings"]["free"]
    return settings_used(config, references(config["stages"][stage]["steps"]), free)


def _continues(config: Mapping[str, Any], stage: str) -> bool:
    return bool(config["stages"].get(stage, {}).get("continues"))


def _work_through(parser: ConfigParser, key: str) -> None:
    """Evaluate a list of the config, if it exists."""
    for index in range(len(parser.get(key, []))):
        parser.get_parsed_content(f"{key}#{index}")


def _run_stage(stage: str, config: Mapping[str, Any], folder: RunFolder, again: bool, data: Fingerprint | None) -> None:
    """Run one stage, from scratch if ``again``, on data with the fingerprint ``data``."""
    settings = stage_config(config, stage) | {"stage": stage}
    if "run_name" in settings:  # MONAI's --tracking: each stage is a run of its own, which resumes by its name
        settings["run_name"] = settings["run_name"] or stage
    parser = ConfigParser(config=settings)
    get = parser.get_parsed_content

    _work_through(parser, "initialize")
    _work_through(parser, f"stages#{stage}#checks")
    own, outputs, feeding = get(f"stages#{stage}#outputs"), [], stage
    while feeding is not None:
        outputs += get(f"stages#{feeding}#outputs")
        feeding = parser[f"stages#{feeding}"].get("feeds")
    if distributed.get_rank() == 0:
        if _continues(config, stage):
            folder.keep_copies(outputs)
        else:
            if again:
                folder.undo(stage, outputs)
            elif parser[f"stages#{stage}"].get("from_scratch"):
                folder.set_aside(own)
            for other in folder.stages:
                if other != stage and other in config["stages"] and set(_outputs(config, other)) & set(own):
                    folder.supersede(other, _outputs(config, other))
            # checked by run_stages
            folder.open(config, get("dataset_dir"), get("label_file"), new_settings=True, data=data)
    with folder.stage(stage) as record:
        distributed.barrier()  # old results have been moved away
        _work_through(parser, f"stages#{stage}#steps")
        record["result"] = get(f"stages#{stage}#result")
        record["seed"] = get("seed")
        record["scores"] = get(f"stages#{stage}#scores") if "scores" in parser[f"stages#{stage}"] else {}
        record["computed_on"] = description(get("device"), get("chosen_precision"), get("deterministic"))
    distributed.barrier()


def score_again(config: Mapping[str, Any], segmenter_path: str | Path, stage: str) -> None:
    """Score a network as the stage does that made it.

    Args:
        config: the merged config.
        segmenter_path: the network's file.
        stage: the stage that made it, if it is not in a run's folder.
    """
    made = RunFolder(Path(segmenter_path).resolve().parent.parent).network_stage
    stage = made if made in config["stages"] else stage
    stage_parser(config, stage).get_parsed_content(f"stages#{stage}#scores")
