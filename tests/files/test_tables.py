import pytest

from scripts.files.tables import parse_number, read_table

ROWS = [(2, {"image": "a.png", "tumor": "1"}), (3, {"image": "b.png", "tumor": "0"})]


def read(tmp_path, content, columns=("image", "tumor"), optional=()):
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, columns, optional)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", ", ", " ;"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_separator_and_end_of_line_gives_the_same_rows(tmp_path, separator, end):
    text = end.join(["image,tumor", "a.png,1", "b.png,0", ""])
    assert read(tmp_path, text.replace(",", separator)) == ROWS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_encodings_that_spreadsheets_choose(tmp_path, encoding):
    text = "image,Größe µm\nä.png,1\n"
    content = text.encode(encoding)
    if encoding == "utf-16-be":
        content = b"\xfe\xff" + content
    assert read(tmp_path, content, ("image", "größe µm")) == [(2, {"image": "ä.png", "größe µm": "1"})]


def test_columns_of_any_order_and_case_further_ones_and_unnamed_ones(tmp_path):
    text = (
        ",Tumor,note,IMAGE,,\n0,1,x,a.png,,\n,,,,,\n1,0,,b.png,,\n"  # pandas' index, a note, what Excel leaves behind
    )
    assert read(tmp_path, text) == [ROWS[0], (4, ROWS[1][1])]
    assert read(tmp_path, text, ("image",), ("note", "mpp"))[1] == (4, {"image": "b.png", "note": ""})


def test_quoted_cells_may_hold_separators_quotes_and_breaks(tmp_path):
    text = 'image, tumor\n"a, ""b"".png", 1\n"c\nd.png", 0\n"e.png",1\n'
    names = [(number, cells["image"]) for number, cells in read(tmp_path, text)]
    assert names == [(2, 'a, "b".png'), (3, "c\nd.png"), (4, "e.png")]


def test_a_header_with_more_commas_does_not_hide_the_separator(tmp_path):
    text = "image;tumor;a, b, c, d\na.png;1;x\nb.png;0;y\n"
    assert read(tmp_path, text) == ROWS


def test_the_separator_that_excel_states_is_used(tmp_path):
    assert read(tmp_path, "sep=;\r\nimage;tumor\r\na.png;1\r\nb.png;0\r\n") == ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image\na.png\n", r"must have the columns \['image', 'tumor'\], but \['tumor'\] are missing"),
        ("", r"\['image', 'tumor'\] are missing"),
        ("image,tumor,Tumor\na.png,1,0\n", r"must have each column once, but has \['tumor'\] more than once"),
        ("image,tumor\na.png,1\nb.png\n", r"row 3 must have 2 cells like the header, got \['b.png'\]"),
        ("image,tumor\n\na.png,1,0\n", r"row 3 must have 2 cells like the header, got \['a.png', '1', '0'\]"),
        ("image,tumor\nä.png,1\n".encode("latin-1"), "must be a CSV table in UTF-8 or UTF-16, but 'utf-8' codec"),
        ("image,tumor\na.png,1\n".encode("utf-16-le"), "zero bytes; save it as 'CSV UTF-8'"),
        (b"PK\x03\x04\x14\x00\xff", "it is a workbook; save it as 'CSV UTF-8'"),
        ('image,tumor\n"a.png,1\n', "must be a CSV table, but cannot be read: unexpected end of data"),
    ],
)
def test_refusals_name_the_file_and_the_row(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"table.csv.*{message}"):
        read(tmp_path, content)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="x.csv must be a table, but it does not exist"):
        read_table(tmp_path / "x.csv", ["image"])


def test_numbers_with_a_decimal_comma():
    assert [parse_number(cell) for cell in ("1", "1.0", "0,25", "-1e-3")] == [1, 1, 0.25, -0.001]
    with pytest.raises(ValueError):
        parse_number("1.000,5")
