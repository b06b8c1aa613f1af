"""Rows of the acceptance table: what was measured, what it is compared with, what is required."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HEADER = "| what | figure | reference | required | ok |\n|---|---|---|---|---|"


@dataclass(frozen=True)
class Conditions:
    """What the rows are measured under.

    Args:
        device: ``"cuda"`` or ``"cpu"``.
        quick: tiny sizes and the small networks, to try the rows out; figures then mean nothing, and none is required.
        folder: what rows leave behind for those after them: data, runs.
    """

    device: str
    quick: bool
    folder: Path

    @property
    def overlays(self) -> list[str]:
        """What replaces the paper's networks where the rows are only tried out."""
        return ["configs/lite.json"] if self.quick else []

    def of(self, full: Any, quick: Any) -> Any:
        """A size: ``full``, or ``quick`` where the rows are only tried out."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        what: what was measured.
        figure: the result, with its unit.
        reference: what it is compared with, and how it compares.
        required: what it has to be; empty if nothing is required.
        ok: whether it is; ``None`` where nothing is required, or the row was not run.
        numbers: the figures for programs.
        run: ``False`` for a row that was not run for want of time.
    """

    what: str
    figure: str
    reference: str = ""
    required: str = ""
    ok: bool | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    run: bool = True

    def markdown(self) -> str:
        """The row as a line of a Markdown table."""
        ok = {True: "yes", False: "**no**", None: "–" if self.run else "not run"}[self.ok]
        cells = (self.what, self.figure, self.reference, self.required, ok)
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

    def as_json(self) -> dict[str, Any]:
        """The row as JSON has it."""
        return asdict(self)


def judged(conditions: Conditions, value: float, least: float | None = None, most: float | None = None, unit: str = ""):
    """``required`` and ``ok`` of a row whose ``value`` must be at least, or at most, something; nothing if quick."""
    if conditions.quick or (least is None and most is None):
        return {}
    rules, ok = [], True
    if least is not None:
        rules, ok = [f"≥ {least:g}{unit}"], value >= least
    if most is not None:
        rules, ok = [*rules, f"≤ {most:g}{unit}"], ok and value <= most
    return {"required": ", ".join(rules), "ok": bool(ok)}


def failed(what: str, why: str) -> Row:
    """The row of what could not be measured."""
    return Row(what, f"failed: {why}", ok=False)


def not_run(what: str, why: str) -> Row:
    """The row of what there was no time for."""
    return Row(what, why, run=False)


def last_line(text: str, longest: int = 200) -> str:
    """The last line that says anything of what a program wrote to stderr, cut to a length.

    Of an error that came of another one, as MONAI's of what a config makes, it is the last line of the first.
    """
    text = text.split("The above exception was the direct cause of the following exception")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "nothing was said")[:longest]
