# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Tables and paths that somebody else wrote."""

import pytest

from detrex_mammo.data.convert import tables
from detrex_mammo.data.convert.dataset import Report
from detrex_mammo.errors import UserError


def rows(path, columns=("a", "b"), **options):
    report = Report()
    return list(tables.read_rows(path, columns, report, **options)), dict(report.counts["dropped"])


def test_byte_order_mark_line_ends_and_a_newline_in_a_cell(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfA, b\r\n1,"x\n"\r\n\r\n2,y\r\n')
    found, dropped = rows(path)
    assert found == [
        ("t.csv line 3", {"a": "1", "b": "x"}),
        ("t.csv line 5", {"a": "2", "b": "y"}),
    ]
    assert dropped == {}


def test_damaged_rows_are_reported_and_the_rest_is_read(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b\n1\n\xff\0,2\n3,4,5\n" + b"z" * (1 << 21) + b",1\n6,7\n")
    found, dropped = rows(path)
    assert [cells["b"] for _, cells in found] == ["2", "7"]
    assert sum(dropped.values()) == 3


def test_each_line_of_a_quote_that_does_not_close_is_counted(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('a,b\n1,2\n3,"4\n5,6\n7,8\n')
    report = Report()
    cells = [found for _, found in tables.read_cells(path, report, is_strict=True)]
    assert cells == [["a", "b"], ["1", "2"]]
    reason = "rows that are no CSV (unexpected end of data)"
    assert report.examples["dropped", reason] == [f"t.csv line {n}" for n in (3, 4, 5)]


def test_a_table_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        list(tables.read_cells(tmp_path, Report()))
    (tmp_path / "t.csv").write_bytes(b"a,b\n\xff,1\n")
    with pytest.raises(UserError, match="cannot be read as UTF-8 text"):
        list(tables.read_cells(tmp_path / "t.csv", Report(), is_strict=True))


def test_missing_column_names_those_that_are_there(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a;c\n")
    with pytest.raises(UserError, match="lacks the column 'b'; it has a, c"):
        rows(path, delimiter=";")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a/b.dcm", "a/b.dcm"),
        ("a\\b.dcm\n", "a/b.dcm"),
        ("a/../b", "b"),
        ("../b", None),
        ("a/../../b", None),
        ("..\\..\\b", None),
        ("/etc/passwd", None),
        ("C:\\x", None),
        ("a\0b", None),
        ("", None),
        ("..", None),
    ],
)
def test_a_path_stays_inside(text, expected):
    assert tables.inside(text) == expected


def test_a_literal_is_never_run():
    assert tables.literal_list("['a', 1]") == ["a", 1]
    for text in (
        "__import__('os').system('x')",
        "[" * 9000,
        "{}",
        "",
        "[1," * 300,
        "[x]",
        "1" * 9999,
    ):
        assert tables.literal_list(text) is None


def test_small_readings():
    texts = ("BI-RADS 4", "4a", "3.0", "BI-RADS 5C", "", "7", "14", None)
    assert [tables.birads(t) for t in texts] == ["4", "4a", "3", "5c", None, None, None, None]
    assert tables.numbers({"a": "1", "b": "2"}, "b", "a") == [2, 1]
    assert tables.numbers({"a": "1", "b": "nan"}, "b", "a") is None
    assert [tables.number(t) for t in ("1.5", "", "nan", "inf", "x", None)] == [1.5] + [None] * 5
    assert [tables.side(t) for t in ("Left", "r", "", "B", None)] == ["L", "R", None, None, None]
    texts = ("1", "4.0", "DENSITY B", "d", "0", "9", "", None)
    assert [tables.density(t) for t in texts] == ["A", "D", "B", "D", None, None, None, None]


def test_longest_tail_of_a_path_of_another_machine(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/c.dcm").touch()
    (tmp_path / "c.dcm").touch()
    (tmp_path.parent / "secret.dcm").touch()
    assert tables.longest_tail(tmp_path, f"{tmp_path.parent}/a/b/c.dcm") == "b/c.dcm"
    assert tables.longest_tail(tmp_path, "x\\c.dcm") == "c.dcm"
    for path in ("a/d.dcm", "../secret.dcm", "b/../../secret.dcm", "", "b", "\0"):
        assert tables.longest_tail(tmp_path, path) is None
