"""Compare the scores of two stages."""

import logging
from pathlib import Path
from typing import Any

from ignite import distributed

from ..files.atomic import write_csv
from ..files.foreign_files import read_json

logger = logging.getLogger(__name__)


@distributed.one_rank_only()
def write_comparison(output_dir: str | Path, before: str, after: str) -> list[list[Any]]:
    """Write the scores of two stages side by side to ``scores/adaptation.csv`` and to the log.

    Args:
        output_dir: the run folder, with ``scores/STAGE_SPLIT.json`` of both stages.
        before, after: names of the stages.

    Returns:
        Rows of split, protocol, class (or ``"mean"``), then IoU and Dice before and after.
    """
    folder, rows = Path(output_dir) / "scores", []
    for path in sorted(folder.glob(f"{before}_*.json")):
        split = path.stem.removeprefix(f"{before}_")
        old, new = (read_json(folder / f"{s}_{split}.json")["protocols"] for s in (before, after))
        for protocol in old:
            for name in old[protocol]["classes"]:
                pair = [stage[protocol]["classes"][name] for stage in (old, new)]
                rows.append([split, protocol, name, *(scores[key] for key in ("iou", "dice") for scores in pair)])
            means = [stage[protocol][key] for key in ("mean_iou", "mean_dice") for stage in (old, new)]
            rows.append([split, protocol, "mean", *means])
    header = ["split", "protocol", "class", "iou_before", "iou_after", "dice_before", "dice_after"]
    write_csv(folder / "adaptation.csv", header, rows)
    lines = [f"{'split':<6} {'protocol':<16} {'class':<28} {'IoU':>17} {'Dice':>17}"]
    for split, protocol, name, *numbers in rows:
        cells = ["      -" if number is None else f"{number:7.4f}" for number in numbers]
        lines.append(f"{split:<6} {protocol:<16} {name:<28} {cells[0]} → {cells[1]} {cells[2]} → {cells[3]}")
    logger.info("Before → after the adaptation:\n" + "\n".join(lines))
    means = [row for row in rows if row[2] == "mean" and None not in row[3:5]]
    worse = [f"{split}, {protocol}: {old:.3f} → {new:.3f}" for split, protocol, _, old, new, *_ in means if new < old]
    if worse:
        logger.warning(
            f"The mean IoU fell ({'; '.join(worse)}). Draw more images (--num_images) or others (--seed), or keep the "
            "original network."
        )
    return rows
