"""What the values of a class map mean."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..pictures import Palette


@dataclass(frozen=True)
class Legend:
    """Names and colours of a class map's values.

    With background, 0 is background, inside the tissue mask and outside. Without, each of the data set's values is a
    class, 0 too, and what lies outside the tissue mask has one value more than they have.

    Args:
        names: of each value 0, 1, ...
        palette: colour of each value.
        background: whether 0 is background.
    """

    names: Sequence[str]
    palette: Palette
    background: bool

    def __post_init__(self) -> None:
        if len(self.names) != len(self.palette):
            raise ValueError(
                f"`palette` must have a colour for each of {list(self.names)}, got {len(self.palette)} colours."
            )

    @property
    def outside(self) -> int:
        """The value outside the tissue mask."""
        return 0 if self.background else len(self.names)

    @property
    def classes(self) -> list[int]:
        """The values that are tissues, or the rest."""
        return list(range(int(self.background), len(self.names)))

    @property
    def colors(self) -> list[list[int]]:
        """The colour of each value, with white for one of its own outside the tissue mask."""
        return [list(color) for color in self.palette] + ([] if self.background else [[255, 255, 255]])
