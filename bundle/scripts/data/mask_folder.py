"""A folder with one mask per image, and its manifest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite import distributed

from ..files.atomic import write_json


def mask_paths(items: Sequence[Mapping[str, Any]], mask_dir: str | Path) -> list[Path]:
    """The path of the mask for each item's ``image``, by its ``name``, which may begin with a subfolder."""
    names = (Path(item.get("name", Path(item["image"]).name)) for item in items)
    return [Path(mask_dir) / name.with_suffix(".png") for name in names]


@distributed.one_rank_only()
def write_manifest(items: Sequence[Mapping[str, Any]], mask_dir: str | Path) -> None:
    """Write ``manifest.json``, the list of all masks, which marks them as complete.

    Raises:
        FileNotFoundError: if a mask is missing.
    """
    paths = mask_paths(items, mask_dir)
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{mask_dir} must have a mask for every image; {missing[:5]} are missing: run it again."
        )
    write_json(Path(mask_dir) / "manifest.json", {"masks": [path.relative_to(mask_dir).as_posix() for path in paths]})
