import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.measure import label, points_in_poly

from scripts.slides.outlines.polygons import PolygonTracer, simple_rings


def trace(values, height, ignored=(0,)):
    tracer, polygons = PolygonTracer(values.shape[1], ignored), []
    for top in range(0, len(values), height):
        polygons += tracer.add(values[top : top + height])
    return polygons + tracer.finish()


def painted(polygons, shape):
    """The map that polygons make: at each pixel's centre, the values whose rings it lies in an odd number of times."""
    values = np.zeros(shape, dtype=int)
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    centres = np.stack([x.ravel(), y.ravel()], axis=1)
    for polygon in polygons:
        inside = sum(points_in_poly(centres, ring).astype(int) for ring in polygon.rings) % 2
        values += polygon.value * inside.reshape(shape)
    return values


def twice_area(ring):
    """By the shoelace formula; positive if the ring runs counterclockwise with y upwards."""
    x, y = ring.T
    return int(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))


def as_shapely(polygons, value):
    return shapely.MultiPolygon([shapely.Polygon(p.rings[0], p.rings[1:]) for p in polygons if p.value == value])


def test_a_square_with_a_hole_has_two_rings():
    values = np.zeros((5, 6), dtype=np.uint8)
    values[1:4, 2:5] = 3
    values[2, 3] = 0
    (polygon,) = trace(values, 100)
    outer, hole = polygon.rings
    assert polygon.value == 3
    assert outer.tolist() == [[2, 1], [5, 1], [5, 4], [2, 4]]
    assert hole.tolist() == [[3, 2], [3, 3], [4, 3], [4, 2]]
    assert (twice_area(outer), twice_area(hole)) == (18, -2)


def test_pixels_that_touch_in_a_point_are_two_polygons():
    polygons = trace(np.array([[1, 0], [0, 1]]), 1)
    assert [polygon.rings[0].tolist() for polygon in polygons] == [
        [[0, 0], [1, 0], [1, 1], [0, 1]],
        [[1, 1], [2, 1], [2, 2], [1, 2]],
    ]


def test_a_ring_of_pixels_closed_in_a_point_keeps_its_hole():
    values = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]])
    (polygon,) = trace(values, 1)
    assert len(polygon.rings) == 2 and shapely.Polygon(polygon.rings[0], polygon.rings[1:]).is_valid
    assert (painted([polygon], values.shape) == values).all()


@pytest.mark.parametrize("height", [1, 3, 100])
@pytest.mark.parametrize("seed", range(12))
def test_random_maps_come_back_from_their_polygons(seed, height):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, rng.integers(2, 5), rng.integers(1, 30, 2))
    polygons = trace(values, height)
    assert len(polygons) == label(values, background=0, connectivity=1, return_num=True)[1]
    assert (painted(polygons, values.shape) == values).all()
    for value in set(values.ravel().tolist()) - {0}:
        shape = as_shapely(polygons, value)
        assert shape.is_valid and shape.area == (values == value).sum()
        assert all(twice_area(p.rings[0]) > 0 for p in polygons if p.value == value)
        assert all(twice_area(hole) < 0 for p in polygons if p.value == value for hole in p.rings[1:])


@given(st.integers(1, 24), st.integers(1, 24), st.integers(2, 4), st.integers(1, 25), st.integers(0, 2**32 - 1))
def test_polygons_of_any_mask_have_its_areas_and_holes_and_paint_it_again(rows, columns, num_values, height, seed):
    values = np.random.default_rng(seed).integers(0, num_values, (rows, columns))
    polygons = trace(values, height)
    assert (painted(polygons, values.shape) == values).all()
    for value in range(1, num_values):
        own = [polygon for polygon in polygons if polygon.value == value]
        shape, regions = as_shapely(own, value), label(np.pad(values == value, 1), connectivity=1)
        assert shape.is_valid and shape.area == (values == value).sum()
        inside = [label(regions != number, connectivity=1).max() - 1 for number in range(1, regions.max() + 1)]
        assert sorted(len(polygon.rings) - 1 for polygon in own) == sorted(inside)  # holes; outside is one part more


def test_strips_of_any_height_give_the_same_polygons():
    rng = np.random.default_rng(0)
    values = np.argmax([gaussian_filter(rng.standard_normal((90, 70)), 3) for _ in range(4)], axis=0)
    whole, *others = (
        sorted((p.value, [ring.tolist() for ring in p.rings]) for p in trace(values, height))
        for height in (90, 1, 7, 64)
    )
    assert all(other == whole for other in others)


def test_every_value_can_have_outlines():
    values = np.array([[0, 1], [0, 0]])
    polygons = trace(values, 1, ignored=(2,))
    assert sorted((p.value, abs(twice_area(p.rings[0])) / 2) for p in polygons) == [(0, 3), (1, 1)]


def test_nothing_gives_nothing():
    assert trace(np.zeros((4, 3), dtype=np.uint8), 2) == []


def test_a_figure_of_eight_is_cut_in_two():
    ring = np.array([[1, 1], [2, 1], [2, 2], [1, 2], [1, 1], [0, 1], [0, 0], [1, 0]])
    assert sorted(abs(twice_area(part)) for part in simple_rings(ring)) == [2, 2]
