"""Learning curves, read from TensorBoard's event files, and charts as SVG: of them, and of shares by category."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from .templates import render

WIDTH, HEIGHT = 360, 220  # of a chart, in the units of its SVG
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 38  # margins around the axes
FEW = 40  # curves with at most this many points mark each of them
MANY = 600  # curves with more points are thinned

Point = tuple[float, float]


def read_curves(folder: str | Path) -> dict[str, list[Point]]:
    """The (step, value) pairs of each scalar in the event files of ``folder``; empty if there are none.

    If a training was killed and resumed, or rerun, the later values of a step are kept.
    """
    if not Path(folder).is_dir():
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1}).Reload()
    curves = {tag: _last_session(events.Scalars(tag)) for tag in events.Tags()["scalars"]}
    return {tag: points for tag, points in curves.items() if points}


def _last_session(events: Iterable) -> list[Point]:
    """The finite points of ``events``, without those superseded by a later event at the same or an earlier step."""
    kept: list[Point] = []
    for event in sorted(events, key=lambda event: event.wall_time):
        while kept and kept[-1][0] >= event.step:
            kept.pop()
        if math.isfinite(event.value):
            kept.append((event.step, event.value))
    return kept


def smooth(values: Sequence[float]) -> np.ndarray:
    """Moving average over a twentieth of ``values``, (N,), with a shorter window at the ends."""
    window = np.ones(2 * (len(values) // 40) + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` ticks, spaced by 1, 2 or 5 times a power of ten, from at most ``low`` to at least ``high``."""
    if not high > low:
        low, high = low - abs(low) / 2 - 1e-3, high + abs(high) / 2 + 1e-3
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((factor for factor in (1, 2, 5, 10)), key=lambda factor: abs(math.log(factor * power / raw)))
    return [round(k * step, 12) for k in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def chart(name: str, points: Sequence[Point], x_name: str, smoothed: bool = False) -> str:
    """A curve as an SVG element with axes.

    Args:
        name: name of the vertical axis.
        points: at least one (x, y), with increasing x.
        x_name: name of the horizontal axis.
        smoothed: draw a smoothed curve over the faint raw one, whose outliers are clipped to the axis.
    """
    x, y = np.array(points, dtype=float).T
    line = smooth(y) if smoothed else y
    top = max(line.max(), np.quantile(y, 0.98)) if smoothed else y.max()
    x_low, x_high = (x[0], x[-1]) if len(x) > 1 else (x[0] - 1, x[0] + 1)
    x_ticks, y_ticks = ticks(x_low, x_high), ticks(y.min(), top)

    def across(value: float) -> float:
        return LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        share = (min(value, y_ticks[-1]) - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def corners(values: np.ndarray) -> str:
        every = math.ceil(len(values) / MANY)
        return " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in zip(x[::every], values[::every], strict=True))

    drawn = {"raw": y, "line": line} if smoothed else {"line": y}
    return render(
        "chart.jinja",
        label=f"{name} by {x_name}: {y[0]:.3g} at {x[0]:g}, {y[-1]:.3g} at {x[-1]:g}",
        size=(WIDTH, HEIGHT),
        axes={"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
        rows=[(up(t), f"{t:g}") for t in y_ticks],
        columns=[(across(t), f"{t:g}") for t in x_ticks if x[0] <= t <= x[-1] and t == int(t)],
        x_name=x_name,
        curves={kind: corners(values) for kind, values in drawn.items()},
        highest=y.max() if y.max() > y_ticks[-1] else None,
        circles=[(across(a), up(b)) for a, b in zip(x, line, strict=True)] if len(x) <= FEW else [],
        legend={},
    )


def share_chart(
    label: str,
    curves: Mapping[str, Sequence[float | None]],
    categories: Sequence[str],
    x_name: str,
    legend: Mapping[str, str] | None = None,
) -> str:
    """Shares against categories, such as ranges of distances, as an SVG element.

    Args:
        label: what the chart shows, for those who do not see it.
        curves: for each kind of line, ``line``, ``second`` or ``third``, a share in [0, 1] for each category, or
            ``None`` where there is none.
        categories: their names, in order.
        x_name: name of the horizontal axis.
        legend: names of the lines, by kind, for a chart that is a file of its own.
    """

    def across(index: int) -> float:
        return LEFT + (index + 0.5) * (WIDTH - LEFT - RIGHT) / len(categories)

    def up(share: float) -> float:
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    places = {
        kind: [(across(index), up(share)) for index, share in enumerate(shares) if share is not None]
        for kind, shares in curves.items()
    }
    return render(
        "chart.jinja",
        label=label,
        size=(WIDTH, HEIGHT),
        axes={"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
        rows=[(up(share), f"{share:g}" if legend else f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)],
        columns=[(across(index), name) for index, name in enumerate(categories)],
        x_name=x_name,
        curves={kind: " ".join(f"{x:.1f},{y:.1f}" for x, y in points) for kind, points in places.items()},
        highest=None,
        circles=places.get("line", []),
        legend=legend or {},
    )
