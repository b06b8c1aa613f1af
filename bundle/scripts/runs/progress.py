"""Progress of long loops: a bar on a terminal; elsewhere, as in batch jobs and notebooks, a line every few minutes."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ignite.engine import Engine, Events
from tqdm import tqdm

logger = logging.getLogger(__name__)

EVERY_S = 180.0
Item = TypeVar("Item")


def duration(seconds: float) -> str:
    """Format a time: ``"0:32 min"``, ``"1:05:09 h"``.

    >>> duration(32), duration(3909)
    ('0:32 min', '1:05:09 h')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def say(line: str) -> None:
    """Log ``line``, or write it to stderr, as tqdm does, where nobody has configured logging."""
    if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
        logger.info(line)
    else:
        sys.stderr.write(f"{line}\n")


class Progress:
    """Progress of a loop: tqdm's bar on a terminal; elsewhere a log line every ``EVERY_S`` seconds.

    Args:
        total: number of steps.
        name: what is being done.
        unit: what a step is.
        show: ``False`` shows nothing, as in all processes but the first.
        clock: gives the time in seconds.
    """

    def __init__(
        self, total: int, name: str, unit: str = "it", show: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.name, self.clock = total, name, clock
        self._bar = tqdm(total=total, desc=name, unit=unit, disable=None if show else True)
        self._lines = show and self._bar.disable
        self._done, self._begun = 0, clock()
        self._last = self._begun

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()

    def update(self, steps: int = 1, numbers: dict[str, float] | None = None) -> None:
        """Count ``steps`` more as done; ``numbers`` are shown behind the bar."""
        if numbers and not self._bar.disable:
            self._bar.set_postfix(numbers, refresh=False)
        self._bar.update(steps)
        self._done += steps
        now = self.clock()
        if self._lines and now - self._last >= EVERY_S and 0 < self._done < self.total:
            self._last, spent = now, now - self._begun
            left = duration(spent / self._done * (self.total - self._done))
            share = f"{self._done} of {self.total} ({100 * self._done // self.total} %)"
            say(f"{self.name}: {share} in {duration(spent)}, about {left} left.")

    def through(self, items: Iterable[Item]) -> Iterator[Item]:
        """Iterate over ``items``, each of which is a step, done when the next one is asked for."""
        with self:
            for item in items:
                yield item
                self.update()


def show_progress(engine: Engine, name: str, numbers: Callable[[], dict[str, float]] | None = None) -> None:
    """Show the progress of each epoch of an engine, as ``Progress`` does.

    Args:
        engine: an Ignite engine.
        name: what is being done.
        numbers: returns numbers to show behind the bar.
    """
    shown: list[Progress] = []

    def begin() -> None:
        state = engine.state
        title = f"{name}, epoch {state.epoch}/{state.max_epochs}" if state.max_epochs > 1 else name
        shown[:] = [Progress(state.epoch_length, title)]

    def step() -> None:
        shown[0].update(numbers=numbers and numbers())

    engine.add_event_handler(Events.EPOCH_STARTED, begin)
    engine.add_event_handler(Events.ITERATION_COMPLETED, step)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: shown[0].__exit__())
