"""Run the stages of a training one after the other, each once."""

import inspect
import logging
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from .run_folder import forget_stage, open_run, read_record, record_stage, set_aside

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
    _log_to_file(output_dir)
    first_again = len(stages) if redo is None else list(stages).index(redo)
    for position, stage in enumerate(stages):
        again = position >= first_again
        if not again and stage in read_record(output_dir)["stages"]:
            logger.info(f"{stage} is complete in {output_dir}; `--redo {stage}` would do it again.")
            continue
        parser = ConfigParser(config=deepcopy(config) | {"redo": again})
        try:
            for run_id in ("initialize", stage):
                for index in range(len(parser.get(run_id, []))):
                    parser.get_parsed_content(f"{run_id}#{index}")
        except Exception as error:
            logger.debug("The error in full:", exc_info=True)
            _stop_with_plain_words(stage, error)
            raise


def _log_to_file(output_dir: str | Path) -> None:
    """Keep what is logged, and every error in full, in ``run.log`` too."""
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(Path(output_dir) / "run.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    logger.setLevel(logging.DEBUG)


def _stop_with_plain_words(stage: str, error: Exception) -> None:
    """End the process with the message of the error at the root, if that is one a person can mend.

    MONAI wraps an error in one of its own for each level of the config; the message would drown in their tracebacks.
    """
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, (OSError, ValueError, ModuleNotFoundError, FloatingPointError)):
        raise SystemExit(f"{stage} stopped: {cause}\n(run.log in `output_dir` has the error in full)") from error


def begin_stage(
    stage: str, output_dir: str | Path, dataset_dir: str | Path, outputs: Sequence[str | Path], redo: bool | None = None
) -> dict[str, float]:
    """Open the run folder for a stage.

    Args:
        stage: the stage's run id.
        output_dir: the run folder.
        dataset_dir: the data set's folder.
        outputs: what the stage writes and what is made from it later; moved aside when it is done again.
        redo: do the stage again from its start.

    Returns:
        ``{"since": seconds}``, the time for ``finish_stage``.
    """
    open_run(output_dir, running_config(), dataset_dir, new_settings=bool(redo))
    if redo:
        forget_stage(output_dir, stage)
        set_aside(output_dir, outputs)
    logger.info(f"{stage}: results go to {Path(output_dir).resolve()}.")
    return {"since": time.monotonic()}


def finish_stage(
    stage: str,
    output_dir: str | Path,
    seed: int,
    begun: Mapping[str, float],
    scores: Mapping[str, Any] | None = None,
) -> None:
    """Record that a stage is complete, with what it scored and the minutes this session took."""
    facts = {"seed": seed, "minutes": round((time.monotonic() - begun["since"]) / 60, 2), "scores": scores or {}}
    record_stage(output_dir, stage, facts)
    logger.info(f"{stage}: complete after {facts['minutes']} minutes.")
