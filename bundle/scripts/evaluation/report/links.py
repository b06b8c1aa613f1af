"""Links from a run's report to the files beside it."""

from pathlib import Path
from urllib.parse import quote

FILES = {  # patterns in the run folder, by what the files are
    "scores of classes and of images": ["scores/*.csv"],
    "predicted masks": ["predictions/*"],
    "pseudo masks of the training patches": ["pseudo_masks"],
    "pictures": ["pictures/*.png"],
    "trained networks": ["models/model.pt", "models/classifier/model.pt"],
    "settings": ["configs/train.json", "configs/inference.json"],
    "log, and record of the stages": ["run.log", "run.json"],
}


def links(run: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """What a run folder has: descriptions, each with the names and relative addresses of files or folders."""
    found = {what: [path for one in patterns for path in sorted(run.glob(one))] for what, patterns in FILES.items()}
    return [(what, [_link(path, run) for path in paths]) for what, paths in found.items() if paths]


def _link(path: Path, run: Path) -> tuple[str, str]:
    name = path.relative_to(run).as_posix() + "/" * path.is_dir()
    return name, quote(name)
