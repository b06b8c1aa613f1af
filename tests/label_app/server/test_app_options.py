import re
from dataclasses import fields
from pathlib import Path

import pytest

from scripts.label_app.server.options import BUNDLE_ROOT, Options, read_options


def test_the_bundle_around_the_app_is_the_default():
    options = read_options({"unknown": "x"})
    assert options.bundle == BUNDLE_ROOT == Path(__file__).resolve().parents[3] / "bundle"
    assert options.versions_dir == BUNDLE_ROOT / "versions"
    assert options.stated_mpp is None


def test_text_becomes_numbers_and_paths(tmp_path, monkeypatch):
    (tmp_path / "run" / "configs").mkdir(parents=True)
    (tmp_path / "run" / "configs" / "inference.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    options = read_options({"bundle": "run", "versions": "kept", "mpp": "0.25", "slide_samples": "3"})
    assert options.bundle == tmp_path / "run" and options.versions_dir == tmp_path / "kept"
    assert (options.stated_mpp, options.slide_samples) == (0.25, 3)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"mpp": "fine"}, "`mpp` must be a number, got 'fine'"),
        ({"mpp": "-1"}, "`mpp` must be at least 0, got -1.0"),
        ({"mpp": "nan"}, "`mpp` must be at least 0, got nan"),
        ({"slide_samples": "0"}, "`slide_samples` must be at least 1"),
        ({"bundle": "/nowhere"}, "it has no configs/inference.json"),
    ],
)
def test_wrong_settings_are_refused(conf, message):
    with pytest.raises(ValueError, match=message):
        read_options(conf)


def test_settings_are_checked_however_they_are_given():
    with pytest.raises(ValueError, match="largest_mpx"):
        Options(largest_mpx=-1)


def test_the_page_says_what_can_be_set():
    page = (BUNDLE_ROOT / "docs" / "label.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", page, flags=re.MULTILINE)
    assert [name for name, _ in rows] == [field.name for field in fields(Options)]
    defaults = {field.name: field.default for field in fields(Options)}
    assert {name: float(text) for name, text in rows if text[0].isdigit()} == {
        name: value for name, value in defaults.items() if isinstance(value, (int, float)) and value
    }
