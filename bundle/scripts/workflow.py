"""Run the stages of a training one after the other, each once."""

import inspect
import logging
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from .atomic import atomic_path
from .run_folder import forget_stage, is_complete, open_run, portable, record_stage, require_same_settings, set_aside

logger = logging.getLogger(__name__)


def running_config() -> dict[str, Any]:
    """The merged config, references unresolved, of the bundle run that is calling.

    MONAI hands a config's functions their arguments and nothing else, so the parser is looked up in the call stack.

    Raises:
        RuntimeError: if no ``ConfigParser`` is at work.
    """
    frame = inspect.currentframe()
    while frame is not None:
        parser = frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return deepcopy(parser.get())
        frame = frame.f_back
    raise RuntimeError("this function must be called from a bundle's config, as `python -m monai.bundle run` does.")


def run_stages(stages: Sequence[str], output_dir: str | Path, redo: str | None = None) -> None:
    """Run the config's list ``initialize`` and the stage's own for each stage that is not complete.

    Each stage has a parser of its own, so that nothing of the stage before stays in memory.

    Args:
        stages: run ids in order; each begins with ``begin_stage`` and ends with ``finish_stage``.
        output_dir: the run folder.
        redo: do this stage and those after it again, from their start.
    """
    if redo is not None and redo not in stages:
        raise ValueError(f"`redo` must be one of {list(stages)} or null, got {redo!r}.")
    config = running_config()
    if redo is None:  # a stage that is complete must be the one that is asked for
        require_same_settings(Path(output_dir).resolve(), portable(config, "", None))
    first_again = len(stages) if redo is None else list(stages).index(redo)
    for position, stage in enumerate(stages):
        again = position >= first_again
        if not again and is_complete(output_dir, stage):
            logger.info(f"{stage} is complete in {output_dir}; `--redo {stage}` would do it again.")
            continue
        parser = ConfigParser(config=deepcopy(config) | {"redo": again})
        for run_id in ("initialize", stage):
            for index in range(len(parser.get(run_id, []))):
                parser.get_parsed_content(f"{run_id}#{index}")


def trains_on_given_items() -> bool:
    """Whether ``train#dataset#data`` is a list, as MONAI Label's own app gives it, not what the config refers to."""
    return isinstance(running_config()["train"]["dataset"]["data"], list)


def log_to_file(path: str | Path) -> None:
    """Keep what is logged, and errors in full, in a file too; called again for the same file, it does nothing."""
    path = Path(path).resolve()
    root = logging.getLogger()
    if any(getattr(handler, "baseFilename", None) == str(path) for handler in root.handlers):
        return
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(handler)
    logging.getLogger(__package__).setLevel(logging.DEBUG)


def begin_stage(
    stage: str,
    output_dir: str | Path,
    dataset_dir: str | Path,
    outputs: Sequence[str | Path],
    label_file: str | Path | None = None,
    redo: bool | None = None,
    annotated: bool = False,
) -> dict[str, float]:
    """Open the run folder for a stage.

    Args:
        stage: the stage's run id.
        output_dir: the run folder.
        dataset_dir: the data set's folder.
        outputs: what the stage writes and what is made from it later, in that order; moved aside when it is done again.
        label_file: training labels, if not in the file names.
        redo: do the stage again from its start.
        annotated: go on from the run's own weights, the last of ``outputs``, on other data; see
            ``trains_on_given_items``. They are kept in ``previous`` too, and the run's settings stay what they are.

    Returns:
        ``{"since": seconds}``, the time for ``finish_stage``.
    """
    if redo:  # what was made last goes first, so that nothing remains whose origin is gone, whenever this is cut short
        set_aside(output_dir, list(reversed(outputs)))
        forget_stage(output_dir, stage)
    if annotated:
        weights = Path(outputs[-1]).read_bytes()
        set_aside(output_dir, outputs)
        with atomic_path(outputs[-1]) as temporary:
            temporary.write_bytes(weights)
    else:
        open_run(output_dir, running_config(), dataset_dir, label_file, new_settings=bool(redo))
    log_to_file(Path(output_dir) / "run.log")
    logger.info(f"{stage}: results go to {Path(output_dir).resolve()}.")
    return {"since": time.monotonic()}


def finish_stage(
    stage: str,
    output_dir: str | Path,
    seed: int,
    begun: Mapping[str, float],
    result: str | Path,
    scores: Mapping[str, Any] | None = None,
    computed_on: Mapping[str, Any] | None = None,
) -> None:
    """Record that a stage is complete.

    Args:
        stage: the stage's run id.
        output_dir: the run folder.
        seed: the run's seed.
        begun: what ``begin_stage`` returned.
        result: the file without which the stage is not complete.
        scores: what it scored, by split.
        computed_on: the device, and how it computed; see ``devices.description``.
    """
    minutes = round((time.monotonic() - begun["since"]) / 60, 2)
    facts = {"seed": seed, "minutes": minutes, "result": str(Path(result).resolve()), "scores": scores or {}}
    facts["computed_on"] = dict(computed_on or {})
    record_stage(output_dir, stage, facts)
    logger.info(f"{stage}: complete after {minutes} minutes.")
