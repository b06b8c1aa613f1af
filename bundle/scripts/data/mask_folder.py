"""A folder with one mask per image, and its manifest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite import distributed

from ..files.atomic import write_json
from .items import mask_name


def mask_paths(items: Sequence[Mapping[str, Any]], mask_dir: str | Path) -> list[Path]:
    """The path of the mask for each item's image, by its ``name``."""
    return [Path(mask_dir) / mask_name(item["name"]) for item in items]


@distributed.one_rank_only()
def write_manifest(items: Sequence[Mapping[str, Any]], mask_dir: str | Path) -> None:
    """Write ``manifest.json``, the list of all masks, which marks them as complete.

    Raises:
        FileNotFoundError: if a mask is missing.
    """
    paths, names = mask_paths(items, mask_dir), [mask_name(item["name"]) for item in items]
    missing = [name for path, name in zip(paths, names, strict=True) if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{mask_dir} must have a mask for every image; {missing[:5]} are missing: run it again."
        )
    write_json(Path(mask_dir) / "manifest.json", {"masks": names})
