"""The last lines of a training's log: scores, the report, and what to type next."""

import logging
import shlex
from pathlib import Path

from ignite import distributed

from ...errors import command_here
from ...runs.run_folder import RunFolder
from .report import read_scores

logger = logging.getLogger(__name__)


@distributed.one_rank_only()
def log_summary(output_dir: str | Path) -> None:
    """Log the mean IoU of each network on each split, where the report is, and the command that uses the run.

    Args:
        output_dir: the run folder.
    """
    output_dir = Path(output_dir).resolve()
    lines = [f"Finished: {output_dir}"]
    for entry in read_scores(output_dir / "scores", RunFolder(output_dir).has_second_stage):
        score = entry["protocols"]["published"]["mean_iou"]
        words = "nothing to score" if score is None else f"mean IoU {score:.4f}"
        lines.append(f"  {entry['stage']} on {entry['split']}: {words}")
    lines.append(f"  report: {output_dir / 'report.html'}")
    lines.append("Next: " + command_here(f"segment IMAGES --run {shlex.quote(str(output_dir))}"))
    logger.info("\n".join(lines))
