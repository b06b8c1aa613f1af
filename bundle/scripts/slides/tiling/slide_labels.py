"""Read a table of slides with labels of whole slides, and choose slides for val."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.labels import Label, label_value
from ...data.preparing.releases import take_last
from ...errors import BundleError
from ...files.tables import parse_number, read_table
from ..reading.files import slide_name

GROUPS = ("patient", "group")


@dataclass(frozen=True)
class LabelledSlide:
    """A slide and what it shows.

    Args:
        path: the file.
        label: for each class 0, 1, or NaN if unknown.
        group: the patient, or else the slide's name; slides of a group stay in one split.
        mpp: micrometres per pixel, which rule over the file's; ``None`` to take those.
    """

    path: Path
    label: Label
    group: str
    mpp: float | None

    @property
    def name(self) -> str:
        """The start of its patches' names."""
        return slide_name(self.path)


def read_slide_labels(path: str | Path, class_names: Sequence[str]) -> list[LabelledSlide]:
    """Read a table with the columns ``slide``, one of 0 and 1 for each class, and optionally ``patient`` and ``mpp``.

    Args:
        path: the table (see ``files.tables``); the slides' paths start at its folder, and ``group`` may stand for
            ``patient``. An empty cell of a class is an unknown label.
        class_names: the classes in label order.

    Raises:
        FileNotFoundError: if the table or a slide does not exist.
        BundleError: if it lacks a column, a cell is wrong, or two slides have the same name.
    """
    slides = []
    for row, cells in read_table(path, ["slide", *class_names], [*GROUPS, "mpp"]):
        label = [label_value(cells[name]) for name in class_names]
        if None in label:
            raise BundleError(
                f"{path}, row {row}: the label of {cells['slide']!r} must be 0, 1 or empty for each of "
                f"{list(class_names)}, got {[cells[name] for name in class_names]}; correct that row."
            )
        file = Path(path).parent / cells["slide"]
        if not file.is_file():
            raise FileNotFoundError(
                f"{path}, row {row}: `slide` must be a file, got {cells['slide']!r}, but {file} does not exist; write "
                "paths that start at the table's folder."
            )
        try:
            mpp = parse_number(cells["mpp"]) if cells.get("mpp") else None
        except ValueError as error:
            raise BundleError(
                f"{path}, row {row}: `mpp` must be micrometres per pixel such as 0.25, got {cells['mpp']!r}; correct "
                "it, or leave it empty if the file states it."
            ) from error
        group = next((cells[name] for name in GROUPS if cells.get(name)), slide_name(file))
        slides.append(LabelledSlide(file, label, group, mpp))
    twice = [name for name, count in Counter(slide.name for slide in slides).items() if count > 1]
    if twice or not slides:
        raise BundleError(
            f"{path} must list one or more slides, each with its own file name, got "
            f"{f'{twice[:3]} more than once' if twice else 'none'}; correct the table."
        )
    return slides


def split_slides(slides: Sequence[LabelledSlide], val_share: float) -> dict[str, list[LabelledSlide]]:
    """The slides of ``train`` and, if ``val_share`` is above 0, of ``val``, drawn at random by group.

    Args:
        slides: all slides.
        val_share: share of the slides that become val, in [0, 1).

    Raises:
        BundleError: if it is out of range, or all slides are of one group.
    """
    if not 0 <= val_share < 1:
        raise BundleError(f"`val_share` must be in [0, 1), got {val_share}; use a fraction, not a percentage.")
    if val_share == 0:
        return {"train": list(slides)}
    of_group: dict[str, list[LabelledSlide]] = {}
    for slide in slides:
        of_group.setdefault(slide.group, []).append(slide)
    if len(of_group) < 2:
        raise BundleError(
            f"`val_share` needs slides of two or more patients or groups, got {list(of_group)}; add slides or leave it "
            "out."
        )
    groups = [of_group[name] for name in np.random.default_rng(0).permutation(sorted(of_group))]
    val = take_last(groups, val_share * len(slides), keep=1)
    return {"train": [slide for group in groups for slide in group], "val": val}
