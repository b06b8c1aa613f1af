import pytest

from scripts.label_app.server.regions import asked_region, require_area

LEVELS = [(1200, 1500), (600, 750), (300, 375)]  # height, width


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, None),
        ({"location": [0, 0], "size": [0, 0], "level": 0}, None),
        ({"location": [10, 20], "size": [300, 400]}, (20, 10, 400, 300)),
        ({"location": (10, 20), "size": (300, 200), "level": 1}, (20, 10, 400, 600)),  # size counts level 1's pixels
        ({"location": [1400, 1190], "size": [300, 400]}, (1190, 1400, 10, 100)),  # cut at the border
        ({"location": [0, 0], "size": [2048, 2048]}, (0, 0, 1200, 1500)),  # what clients send that know no size
        ({"location": [0, 0], "size": [375, 300], "level": 2}, (0, 0, 1200, 1500)),
    ],
)
def test_regions_come_out_in_pixels_of_level_0(request_, expected):
    assert asked_region(request_, LEVELS) == expected


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"location": [-1, 0], "size": [5, 5]}, "`location` must be within the image, 1500 x 1200 pixels"),
        ({"location": [1500, 0], "size": [5, 5]}, "`location` must be within"),
        ({"location": [0, 1200], "size": [5, 5]}, "`location` must be within"),
        ({"location": [5, 5], "size": [0, 0]}, "`size` must be a positive width and height"),
        ({"location": [5, 5], "size": [5, -5]}, "`size` must be a positive"),
        ({"location": [0, 0], "size": [2049, 5]}, "`size` must not be larger than the image"),
        ({"location": [0, 0], "size": [10**9, 10**9]}, "`size` must not be larger than the image"),
        ({"location": [0], "size": [5, 5]}, "`location` must be two whole numbers"),
        ({"location": [0.5, 1], "size": [5, 5]}, "`location` must be two whole numbers"),
        ({"location": "00", "size": [5, 5]}, "`location` must be two whole numbers"),
        ({"location": [True, False], "size": [5, 5]}, "`location` must be two whole numbers"),
        ({"location": [0, 0], "size": [5, 5], "level": 3}, r"`level` must be one of the image's levels 0..2, got 3"),
        ({"location": [0, 0], "size": [5, 5], "level": "0"}, "`level` must be"),
    ],
)
def test_other_regions_are_refused(request_, message):
    with pytest.raises(ValueError, match=message):
        asked_region(request_, LEVELS)


def test_the_area_is_bounded():
    require_area((1000, 2000), 2)
    with pytest.raises(ValueError, match="at most 2 million pixels at the network's resolution, got 4"):
        require_area((2000, 2000), 2)
    with pytest.raises(ValueError, match="million pixels of the slide, got 4"):
        require_area((2000, 2000), 2, "of the slide")
