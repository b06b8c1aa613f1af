import numpy as np
import pytest

from scripts.slides.segmenting.strip_files import StripFiles


def test_strips_come_back(tmp_path):
    strips, rng = StripFiles(tmp_path / "strips"), np.random.default_rng(0)
    assert strips.finished() == set()
    maps = {(b, r): rng.integers(0, 256, (2, 5, 7 + r), dtype=np.uint8) for b, r in ((0, 0), (0, 12), (3, 100000))}
    for place, (classes, entropy) in maps.items():
        strips.write(*place, classes, entropy)
    assert strips.finished() == set(maps)
    assert all(np.array_equal(np.stack(strips.read(*place)), pair) for place, pair in maps.items())


@pytest.mark.parametrize(
    "change", [lambda data: data[:-3], lambda data: b"", lambda data: b"XXXX" + data[4:], lambda data: data + b"1"]
)
def test_damaged_strips_are_named(tmp_path, change):
    strips = StripFiles(tmp_path)
    strips.write(0, 5, *np.zeros((2, 3, 4), dtype=np.uint8))
    path = strips.path(0, 5)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path} must be a whole strip: .* Remove it, and repeat the command."):
        strips.read(0, 5)
