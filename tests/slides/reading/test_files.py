import logging
import os

import pytest

from scripts.slides.reading.files import find_slides, holds_slides, list_slides


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names_in(slides):
    return [slide.name for slide in list_slides(slides)]


def test_subfolders_are_searched_and_names_keep_them(tmp_path):
    touch(tmp_path, "top.svs", "case1/a.tif", "case2/deeper/b.ome.tif", "case2/a.tif", "case3/series/1.dcm")
    assert sorted(names_in(tmp_path)) == ["case1/a", "case2/a", "case2/deeper/b", "case3/series", "top"]
    assert holds_slides(tmp_path)


def test_what_is_skipped_is_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    touch(tmp_path, "a.svs", "._a.svs", ".cache/b.svs", "a_thumbnail.tif", "case/Label.tiff", "notes.txt", "c.qptf")
    touch(tmp_path, "out/a/record.json", "out/a/classes.ome.tif", "out/a/entropy.ome.tif", "unlabel.tif")
    assert names_in(tmp_path) == ["a", "unlabel"]
    for text in (
        "skipped hidden files: ._a.svs.",
        "skipped pictures of slides: a_thumbnail.tif, case/Label.tiff.",
        "skipped results of an earlier run: out/a.",
        "skipped files that are no slides by their suffix: c.qptf, notes.txt.",
    ):
        assert f"{tmp_path}: {text}" in caplog.text
    assert names_in(tmp_path / "a_thumbnail.tif") == ["a_thumbnail"]  # since it is asked for


def test_mrxs_keeps_its_pixels_in_a_folder(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    touch(tmp_path, "a.mrxs", "a/Slidedat.ini", "a/Data0000.dat")
    assert names_in(tmp_path) == ["a"] and "skipped" not in caplog.text


def test_links_are_followed_once(tmp_path):
    touch(tmp_path, "store/x.svs")
    (tmp_path / "in").mkdir()
    os.symlink(tmp_path / "store", tmp_path / "in" / "case")
    os.symlink(tmp_path / "in", tmp_path / "in" / "round")
    assert names_in(tmp_path / "in") == ["case/x"]


def test_patterns_lists_and_commas(tmp_path, monkeypatch):
    touch(tmp_path, "a.svs", "b.svs", "c.tif", "case1/x.svs", "case2/x.svs", "d, e.svs", "f[1].svs")
    monkeypatch.chdir(tmp_path)
    assert names_in("?.svs") == ["a", "b"] == names_in("a.svs, b.svs") == names_in(["a.svs", "b.svs"])
    assert names_in("case*/x.svs") == ["case1/x", "case2/x"] == names_in(f"{tmp_path}/**/x.svs")
    assert names_in("case*") == ["case1/x", "case2/x"]
    assert names_in("d, e.svs") == ["d, e"] and names_in("f[1].svs") == ["f[1]"]
    assert names_in("a.svs,c*.tif") == ["a", "c"]
    assert holds_slides("*.svs") and holds_slides("b.svs,a.svs")
    with pytest.raises(FileNotFoundError, match="got .*none.svs; it has none"):
        list_slides("*none.svs")
    with pytest.raises(FileNotFoundError, match="none.svs must be an image, a slide or a folder of either"):
        holds_slides("none.svs")


def test_slides_of_one_name_get_their_folders(tmp_path):
    touch(tmp_path, "one/x.svs", "two/x.svs", "two/y.svs")
    paths = [tmp_path / "one" / "x.svs", tmp_path / "two" / "x.svs", tmp_path / "two" / "y.svs"]
    assert names_in(paths) == ["one/x", "two/x", "y"]
    assert names_in([tmp_path / "one", tmp_path / "two"]) == ["one/x", "two/x", "y"]
    assert find_slides([paths[0], paths[0]]) == paths[:1]


def test_results_must_not_lie_in_each_other(tmp_path):
    touch(tmp_path, "a.svs", "a/b.svs")
    with pytest.raises(ValueError, match=r"must not have the name of a folder with slides, got \['a/b'\]"):
        list_slides(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "slide,mpp,name\nx.svs,0.5,case1/first\ny.svs,,\n",
        "\ufeffslide;mpp;name\r\nx.svs;0,5;case1/first\r\ny.svs;;\r\n;;\r\n",
        "Slide\t MPP\tname\nx.svs\t0.50\tcase1/first\n\ny.svs\t\t\n",
        'name,slide,mpp\n"case1/first","x.svs"," 0.5"\n,y.svs,\n',
    ],
)
def test_tables_say_sizes_and_names(tmp_path, text):
    (tmp_path / "slides.csv").write_text(text, encoding="utf-8")
    found = [(slide.path, slide.name, slide.mpp) for slide in list_slides(tmp_path / "slides.csv")]
    assert found == [(tmp_path / "x.svs", "case1/first", 0.5), (tmp_path / "y.svs", "y", None)]


@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_lists_have_a_path_in_each_line(tmp_path, name):
    (tmp_path / name).write_text(f"# two slides\nx.svs\n\n{tmp_path}/case/y z.svs\n", encoding="utf-8")
    assert find_slides(tmp_path / name) == [tmp_path / "x.svs", tmp_path / "case" / "y z.svs"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,mpp\nx.svs,half\n", "in row 2, such as 0.5, got 'half'"),
        ("slide,mpp\nx.svs,0.5\n,0.5\n", "must name a slide in row 3"),
        ("slide,mpp\nx.svs,-1\n", "in row 2, such as 0.5, got '-1'"),
        ("slide,mpp\nx.svs,0,5\n", "row 2 must have 2 cells like the header"),
        ("slide,microns\nx.svs,0.5\n", r"got \['microns'\] too"),
        ("file,mpp\nx.svs,0.5\n", r"must have the columns \['slide'\], but"),
        ("slide,mpp\nx.svs,0.5\nx.svs,0.25\n", "must list each slide once"),
        ("slide,name\nx.svs,../x\n", "in row 2, got '../x'"),
        ("slide,name\nx.svs,/x\n", "in row 2, got '/x'"),
        ("slide,name\nx.svs,C:/x\n", "in row 2, got 'C:/x'"),
        ("slide,name\nx.svs,a\ny.svs,a\n", r"unique names, ignoring suffixes, got \['a'\] twice"),
    ],
)
def test_rows_that_cannot_be_are_named(tmp_path, text, message):
    (tmp_path / "slides.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        list_slides(tmp_path / "slides.csv")


def test_other_encodings_and_missing_lists_are_named(tmp_path):
    (tmp_path / "slides.csv").write_bytes("slide,name\nx.svs,é\n".encode("cp1252"))
    with pytest.raises(ValueError, match="in UTF-8 or UTF-16, but .*; save it as"):
        list_slides(tmp_path / "slides.csv")
    with pytest.raises(FileNotFoundError, match="must be a table, but it does not exist"):
        list_slides(tmp_path / "none.csv")
