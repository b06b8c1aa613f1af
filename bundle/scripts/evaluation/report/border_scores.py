"""Where the masks of a run are wrong: by distance to the true outlines, by size of the regions, the worst places."""

from collections.abc import Mapping, Sequence
from typing import Any

from .curves import share_chart

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
        found.append(
            {
                "split": split,
                "kinds": dict(reversed(kinds.items())),
                "drawing": chart_by_distance(
                    {kinds[name]: one["all"]["accuracy"] for name, one in shown.items()}, bands
                ),
                "stage": stage,
                "mpp": borders.get("mpp"),
                "bands": bands,
                "classes": [(name, one["boundary_iou"], one["accuracy"]) for name, one in borders["classes"].items()]
                + [("all", borders["boundary_iou"], borders["all"]["accuracy"])],
                "regions": _by_size(borders),
                "worst": _worst(scores, split),
            }
        )
    return found


def _worst(scores: Sequence[Mapping[str, Any]], split: str) -> list[dict[str, Any]]:
    """The last network's worst regions, by the protocol of the masks that are shown: with background if any."""
    protocols = [item["protocols"] for item in scores if item["split"] == split][-1]
    return protocols.get("with_background", protocols[PROTOCOL]).get("borders", {}).get("worst_regions", [])


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
    said = ", ".join(
        f"{share:.0%} at {band} px"
        for band, share in zip(bands, curves.get("line", ()), strict=False)
        if share is not None
    )
    label = f"right pixels by distance to the nearest true outline: {said}"
    return share_chart(label, curves, bands, "px to the nearest true outline")
