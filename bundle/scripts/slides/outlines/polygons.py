"""Trace a class map along its pixel edges, strip by strip, into polygons that rasterise back to the same map.

A region is a 4-connected component of pixels of one value. Each becomes a polygon: one outer ring and one ring per
hole. Rings are simple, the outer one counterclockwise and holes clockwise with the y axis pointing up, and touch one
another in single points at most, as GeoJSON and OGC require.

How it works: directed edges run around each pixel that differs from its neighbours: right along its top, down (y grows)
its right side, left along its bottom and up its left side. A *corner* is where they turn: convex if the pixel's two
neighbours at that point differ from it, concave if three pixels are one region and the fourth is not. Two consecutive
corners on a line are joined by a straight edge, so pairing the corners in order along each line gives each corner its
successor. Only edges and regions that cross a strip's lower border are carried over to the next strip.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import label as label_regions

Ring = np.ndarray  # (n, 2) int64: x and y of the corners, in pixels from the map's top left; not closed
RIGHT, DOWN, LEFT, UP = range(4)  # directions of edges: along a pixel's top, right side, bottom, left side


@dataclass
class Polygon:
    """The outline of a region.

    Args:
        value: class map value of its pixels.
        rings: the outer ring, then the holes.
    """

    value: int
    rings: list[Ring]


@dataclass
class _Chain:
    """A sequence of corners whose two ends continue below the rows seen so far.

    Args:
        parts: corners, in order, as arrays (n, 2) or nested lists of such.
        region: number of its region, valid until the next strip.
        first_x: x of the edge that comes up to the first corner.
        last_x: x of the edge that goes down from the last corner.
    """

    parts: list
    region: int
    first_x: int
    last_x: int


@dataclass
class _Region:
    """A region that continues below.

    Args:
        value: class map value of its pixels.
        outer: its outer ring once it is closed.
        holes: its holes so far.
    """

    value: int
    outer: Ring | None = None
    holes: list[Ring] = field(default_factory=list)


class PolygonTracer:
    """Takes a class map from top to bottom and returns polygons once they are complete.

    Args:
        width: width of the map in pixels.
        ignored: values that are not traced.
    """

    def __init__(self, width: int, ignored: Sequence[int] = (0,)) -> None:
        self.ignored = tuple(ignored)
        self.top = 0
        self.above = np.zeros(width, dtype=np.int32)  # the last row: value + 1, or 0 for ignored values
        self.above_regions = np.zeros(width, dtype=np.int64)  # the region of each of its pixels, counted from 1
        self.regions: list[_Region] = []
        self.chains: list[_Chain] = []

    def add(self, rows: np.ndarray) -> list[Polygon]:
        """Add the next rows, (h, width) integers, and return the polygons that end above the last of them."""
        values = np.where(np.isin(rows, self.ignored), 0, rows.astype(np.int32) + 1)
        numbers = self._join_regions(values)
        rings = self._trace(values, numbers)
        self.top += len(rows)
        self.above, self.above_regions = values[-1], numbers[-1]
        return self._complete(rings)

    def finish(self) -> list[Polygon]:
        """Return the polygons that reach the map's lower border."""
        return self.add(np.full((1, len(self.above)), self.ignored[0] if self.ignored else -1))

    def _join_regions(self, values: np.ndarray) -> np.ndarray:
        """Number the regions of the new rows, (h, width), from 1, merging them with the regions above they continue."""
        local, count = label_regions(values, background=0, connectivity=1, return_num=True)
        old = len(self.regions)
        meet = (values[0] == self.above) & (self.above > 0)
        above, below = self.above_regions[meet] - 1, local[0][meet] - 1 + old
        graph = coo_array((np.ones(len(above), dtype=bool), (above, below)), shape=(old + count, old + count))
        total, merged = connected_components(graph, directed=False) if old + count else (0, np.empty(0, np.int32))
        new_value = np.zeros(total, dtype=np.int64)
        first = np.unique(local, return_index=True)
        inside = first[0] > 0
        new_value[merged[old + first[0][inside] - 1]] = values.ravel()[first[1][inside]] - 1
        regions = [_Region(int(value)) for value in new_value]
        for region, number in zip(self.regions, merged[:old], strict=False):
            kept = regions[number]
            kept.value, kept.holes = region.value, kept.holes + region.holes
            kept.outer = kept.outer if region.outer is None else region.outer
        for chain in self.chains:
            chain.region = int(merged[chain.region])
        self.regions = regions
        self.above_regions = np.concatenate([[0], merged[:old] + 1])[self.above_regions]
        return np.concatenate([[0], merged[old:] + 1])[local]

    def _trace(self, values: np.ndarray, numbers: np.ndarray) -> list[tuple[int, Ring]]:
        """Link the corners of the new rows and the open chains; return closed rings with their region, from 0."""
        x, y, comes, goes, region = _find_corners(self.above, values, self.above_regions, numbers)
        successor = np.full(len(x) + len(self.chains), -1, dtype=np.int64)  # corners, then chains
        for direction in (RIGHT, LEFT):
            successor[np.flatnonzero(goes == direction)] = np.flatnonzero(comes == direction)  # sorted by y and x
        chains = np.arange(len(self.chains)) + len(x)
        above = np.concatenate([y, np.full(len(chains), -1)])
        start_x = np.concatenate([x, np.array([chain.last_x for chain in self.chains], dtype=np.int64)])
        end_x = np.concatenate([x, np.array([chain.first_x for chain in self.chains], dtype=np.int64)])
        starts, ends = np.concatenate([np.flatnonzero(goes == DOWN), chains]), np.flatnonzero(comes == DOWN)
        uppers, lowers = _pair_on_columns(start_x[starts], above[starts], starts, end_x[ends], above[ends], ends)
        successor[uppers] = lowers
        starts, ends = np.flatnonzero(goes == UP), np.concatenate([np.flatnonzero(comes == UP), chains])
        uppers, lowers = _pair_on_columns(end_x[ends], above[ends], ends, start_x[starts], above[starts], starts)
        successor[lowers] = uppers
        first = np.setdiff1d(ends, uppers)  # an edge from below leads to these
        points = np.stack([x, y + self.top], axis=1)
        return self._walk(successor.tolist(), points, region - 1, first.tolist())

    def _walk(
        self, successor: list[int], points: np.ndarray, region: np.ndarray, first: list[int]
    ) -> list[tuple[int, Ring]]:
        """Follow the successors and return closed rings; the rest becomes the open chains of the next strip."""
        count, chains, seen = len(points), self.chains, bytearray(len(successor))

        def path(node: int) -> list[int]:
            nodes = []
            while node >= 0 and not seen[node]:
                seen[node] = 1
                nodes.append(node)
                node = successor[node]
            return nodes

        def parts(nodes: list[int]) -> list:
            if max(nodes) < count:
                return [points[nodes]]
            found, corners = [], []
            for node in nodes:
                if node < count:
                    corners.append(node)
                    continue
                found += [points[corners]] if corners else []
                found.append(chains[node - count].parts)
                corners = []
            return found + ([points[corners]] if corners else [])

        def number(node: int) -> int:
            return int(region[node]) if node < count else chains[node - count].region

        still_open = []
        for start in first:
            nodes = path(start)
            end = nodes[-1]
            first_x = int(points[start, 0]) if start < count else chains[start - count].first_x
            last_x = int(points[end, 0]) if end < count else chains[end - count].last_x
            still_open.append(_Chain(parts(nodes), number(start), first_x, last_x))
        rings = []
        for start in range(len(successor)):
            if not seen[start]:
                nodes = path(start)
                rings.append((number(start), np.concatenate(list(_flatten(parts(nodes))))))
        self.chains = still_open
        return rings

    def _complete(self, rings: list[tuple[int, Ring]]) -> list[Polygon]:
        """Assign rings to their regions; return the polygons of regions that end here, in order of region."""
        for number, ring in rings:
            for simple in simple_rings(ring):
                if simple[0, 1] == simple[1, 1]:  # from its top left corner, an outer ring goes right and a hole down
                    self.regions[number].outer = simple
                else:
                    self.regions[number].holes.append(simple)
        going_on = np.unique(self.above_regions[self.above_regions > 0]) - 1
        ends = np.ones(len(self.regions), dtype=bool)
        ends[going_on] = False
        done = [
            Polygon(region.value, [region.outer, *sorted(region.holes, key=lambda ring: tuple(ring[0][::-1]))])
            for region, over in zip(self.regions, ends, strict=True)
            if over
        ]
        renumbered = np.zeros(len(self.regions) + 1, dtype=np.int64)
        renumbered[going_on + 1] = np.arange(1, len(going_on) + 1)
        self.regions = [self.regions[number] for number in going_on]
        self.above_regions = renumbered[self.above_regions]
        for chain in self.chains:
            chain.region = int(renumbered[chain.region + 1]) - 1
        return done


def _find_corners(
    above: np.ndarray, values: np.ndarray, above_regions: np.ndarray, regions: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Find the corners on the upper edges of the rows ``values``: x, y, incoming and outgoing direction, region.

    Sorted by y, then x. Values of 0 are not traced.
    """
    grid = np.pad(np.concatenate([above[None], values]), ((0, 0), (1, 1)))
    names = np.pad(np.concatenate([above_regions[None], regions]), ((0, 0), (1, 1)))
    nw, ne, sw, se = grid[:-1, :-1], grid[:-1, 1:], grid[1:, :-1], grid[1:, 1:]
    name = {"nw": names[:-1, :-1], "ne": names[:-1, 1:], "sw": names[1:, :-1], "se": names[1:, 1:]}
    n, s, w, e = nw != ne, sw != se, nw != sw, ne != se  # is there an edge above, below, left, right of the point?
    any_corner = (n | s) & (w | e)
    rows, columns = np.nonzero(any_corner)
    nw, ne, sw, se, n, s, w, e = (part[rows, columns] for part in (nw, ne, sw, se, n, s, w, e))
    kinds = [  # condition, incoming, outgoing, pixel that determines the region
        (s & e & (se > 0), UP, RIGHT, "se"),
        (s & w & (sw > 0), RIGHT, DOWN, "sw"),
        (n & w & (nw > 0), DOWN, LEFT, "nw"),
        (n & e & (ne > 0), LEFT, UP, "ne"),
        (s & w & ~n & ~e & (se > 0), UP, LEFT, "se"),  # concave: all but sw
        (s & e & ~n & ~w & (sw > 0), LEFT, DOWN, "sw"),  # all but se
        (n & e & ~s & ~w & (nw > 0), DOWN, RIGHT, "nw"),  # all but ne
        (n & w & ~s & ~e & (ne > 0), RIGHT, UP, "ne"),  # all but nw
    ]
    found = []
    for condition, comes, goes, pixel in kinds:
        where = np.flatnonzero(condition)
        x, y = columns[where], rows[where]
        found.append((x, y, np.full(len(x), comes), np.full(len(x), goes), name[pixel][y, x]))
    x, y, comes, goes, region = (np.concatenate(parts).astype(np.int64) for parts in zip(*found, strict=True))
    order = np.lexsort((comes, x, y))
    return x[order], y[order], comes[order], goes[order], region[order]


def _pair_on_columns(
    upper_x: np.ndarray,
    upper_y: np.ndarray,
    upper: np.ndarray,
    lower_x: np.ndarray,
    lower_y: np.ndarray,
    lower: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Pair the upper and lower ends of vertical edges of one direction, which alternate in each column.

    Only a column's last upper end can lack a lower one, which is then below the rows seen so far; it is left out.

    Args:
        upper_x, upper_y, lower_x, lower_y: positions of the ends, (n,) each.
        upper, lower: their indices, (n,) each.

    Returns:
        The indices of the upper and the lower end of each edge.
    """
    order = np.lexsort((upper_y, upper_x))
    upper, upper_x = upper[order], upper_x[order]
    lower = lower[np.lexsort((lower_y, lower_x))]
    size = int(max(upper_x.max(initial=0), lower_x.max(initial=0))) + 1
    uppers, lowers = (np.bincount(x, minlength=size) for x in (upper_x, lower_x))
    unpaired = np.cumsum(uppers)[uppers > lowers] - 1
    return np.delete(upper, unpaired), lower


def simple_rings(ring: Ring) -> Iterator[Ring]:
    """Split a ring that passes a point more than once into simple rings, each starting at its lowest y, then x."""
    keys = (ring[:, 1] << 32) + ring[:, 0]
    if len(ring) < 8 or len(np.unique(keys)) == len(keys):
        yield _from_first(ring, keys)
        return
    path: list[int] = []
    place: dict[int, int] = {}
    for index, key in enumerate(keys.tolist()):
        if key in place:
            cut = place[key]
            yield _from_first(ring[path[cut:]], keys[path[cut:]])
            for gone in path[cut:]:
                del place[int(keys[gone])]
            del path[cut:]
        place[key] = len(path)
        path.append(index)
    yield _from_first(ring[path], keys[path])


def _from_first(ring: Ring, keys: np.ndarray) -> Ring:
    """Rotate a ring so that it starts at the corner with the smallest key."""
    first = int(keys.argmin())
    return np.concatenate([ring[first:], ring[:first]])


def _flatten(parts: list) -> Iterator[np.ndarray]:
    """Yield the arrays in nested lists, in order."""
    waiting = [iter(parts)]
    while waiting:
        for part in waiting[-1]:
            if isinstance(part, list):
                waiting.append(iter(part))
                break
            yield part
        else:
            waiting.pop()
