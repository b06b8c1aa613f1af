"""Where the masks of a run are wrong: by distance to the true outlines, by size of the regions, the worst places."""

from collections.abc import Mapping, Sequence
from typing import Any

from .curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from .templates import render

PROTOCOL = "published"


def border_scores(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the page says about borders and regions, for each split.

    Args:
        scores: of each network and split, as ``read_scores`` returns them; those of earlier versions have no borders.

    Returns:
        For each split: ``split``; ``drawing`` and ``kinds``, the chart and its networks with their kind of line; and of
        the last network: ``stage``, ``mpp`` (``None`` if unknown), ``bands``, ``classes`` with boundary IoU and the
        share of right pixels in each band, ``regions`` by size, and the ``worst`` regions.
    """
    found = []
    for split in dict.fromkeys(item["split"] for item in scores):
        shown = {
            item["stage"]: item["protocols"][PROTOCOL]["borders"]
            for item in scores
            if item["split"] == split and "borders" in item["protocols"][PROTOCOL]
        }
        if not shown:
            continue
        stage, borders = list(shown.items())[-1]
        kinds = dict(zip(reversed(shown), ("line", "second", "third"), strict=False))
        bands = ranges(borders["distances_px"])
        lengths = borders.get("distances_um")
        found.append(
            {
                "split": split,
                "kinds": dict(reversed(kinds.items())),
                "drawing": chart_by_distance(
                    {kinds[name]: one["all"]["accuracy"] for name, one in shown.items()}, bands
                ),
                "stage": stage,
                "mpp": lengths and lengths[0] / borders["distances_px"][0],
                "bands": bands,
                "classes": [(name, one["boundary_iou"], one["accuracy"]) for name, one in borders["classes"].items()]
                + [("all", borders["boundary_iou"], borders["all"]["accuracy"])],
                "regions": _by_size(borders),
                "worst": borders.get("worst_regions", []),
            }
        )
    return found


def ranges(ends: Sequence[int]) -> list[str]:
    """The ranges up to each of ``ends``, and from the last on, in words."""
    starts = [0, *ends]
    return [f"{start}–{end}" for start, end in zip(starts, ends, strict=False)] + [f"over {ends[-1]}"]


def _by_size(borders: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """By range of sizes: the share found, of how many true regions, and the share right, of how many predicted."""
    names = ("recall", "true_regions", "precision", "predicted_regions")
    return list(zip(ranges(borders["region_sizes_px"]), *(borders["all"][name] for name in names), strict=True))


def chart_by_distance(curves: Mapping[str, Sequence[float | None]], bands: Sequence[str]) -> str:
    """Right pixels against the distance to the nearest true border, as an SVG element.

    Args:
        curves: the share of right pixels in each band, ``None`` where there are none, by the kind of line.
        bands: names of the bands.
    """

    def across(index: int) -> float:
        return LEFT + (index + 0.5) * (WIDTH - LEFT - RIGHT) / len(bands)

    def up(share: float) -> float:
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    points = {
        kind: [(across(index), up(share)) for index, share in enumerate(shares) if share is not None]
        for kind, shares in curves.items()
    }
    said = ", ".join(
        f"{share:.0%} at {band} px"
        for band, share in zip(bands, curves.get("line", ()), strict=False)
        if share is not None
    )
    return render(
        "chart.jinja",
        label=f"right pixels by distance to the nearest true outline: {said}",
        size=(WIDTH, HEIGHT),
        axes={"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
        rows=[(up(share), f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)],
        columns=[(across(index), band) for index, band in enumerate(bands)],
        x_name="px to the nearest true outline",
        curves={kind: " ".join(f"{x:.1f},{y:.1f}" for x, y in places) for kind, places in points.items()},
        highest=None,
        circles=points.get("line", []),
    )
