# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The reader gives what json.load gives, wherever its buffer happens to end."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detrex_mammo.data import json_stream
from detrex_mammo.data.json_stream import EntryWriter, read_entries
from detrex_mammo.errors import UserError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


def put_together(path):
    """What the entries say, as the object that they are of; empty lists are not told."""
    content = {}
    for key, index, value in read_entries(path):
        if index is None:
            content[key] = value
        else:
            content.setdefault(key, []).append(value)
            assert len(content[key]) == index + 1
    return content


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    content=st.dictionaries(st.text(max_size=5), VALUES, max_size=4),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    is_ascii=st.booleans(),
)
def test_equals_json_load_at_any_buffer_size(
    content, chunk, indent, is_ascii, tmp_path, monkeypatch
):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=is_ascii), encoding="utf-8")
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    expected = {key: value for key, value in content.items() if value != []}
    assert put_together(path) == expected


@pytest.mark.parametrize("chunk", range(1, 12))
def test_no_number_is_cut_by_the_buffer_s_end(chunk, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text('{"a": [0.5, 1e-7, -1.25E+3, NaN, -Infinity, true], "b": 12}')
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    found = put_together(path)
    assert str(found) == str({"a": [0.5, 1e-7, -1250.0, math.nan, -math.inf, True], "b": 12})


def test_a_byte_order_mark_and_windows_line_ends(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{\r\n"images": [\r\n1,\r\n2\r\n]}\r\n')
    assert put_together(path) == {"images": [1, 2]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "holds a list"),
        ("", "holds a list"),
        ('{"images": [1, 2', "the file's end"),
        ('{"images": [1 2]}', "',' or ']' expected at character 14"),
        ('{"images": [{"id": ]}', "at character 19"),
        ('{"images": "abc', "Unterminated string"),
        ('{"images": [tru]}', "at character 12"),
        ('{"images": []} more', "more text after the end"),
        ('{"images": []', "the file's end"),
        ("{images: []}", "a key is missing"),
        ('{"images": ' + "[" * 100_000, "nested too deeply"),
        ('{"images": [' + "9" * 5000 + "]}", "digits"),
        ('{"images": ["' + "x" * 3000 + '", nul', "at character"),
    ],
)
def test_damaged_text_is_one_sentence(text, told, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=told) as caught:
        list(read_entries(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_no_utf8_no_file_and_a_folder_are_one_sentence(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"images": ["\xff\xfe"]}')
    for file, told in (
        (path, "not whole JSON"),
        (tmp_path / "b.json", "does not exist"),
        (tmp_path, "is a folder"),
        (path / "c.json", "does not exist"),
    ):
        with pytest.raises(UserError, match=told):
            list(read_entries(file))


def test_what_the_writer_writes_is_json(tmp_path):
    path = tmp_path / "a.json"
    with EntryWriter(path) as out:
        out.add("info", '{"description": "x"}', is_entry=False)
        for number in range(3):
            out.add("images", json.dumps({"id": number}))
        out.add("categories", '{"id": 1}')
    assert json.loads(path.read_text()) == {
        "info": {"description": "x"},
        "images": [{"id": 0}, {"id": 1}, {"id": 2}],
        "annotations": [],
        "categories": [{"id": 1}],
    }


def test_an_interrupted_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(KeyError), EntryWriter(path) as out:
        out.add("images", "1")
        raise KeyError
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"


def test_the_writer_tells_a_folder_that_is_not_there(tmp_path):
    with (
        pytest.raises(UserError, match="cannot be written"),
        EntryWriter(tmp_path / "b" / "a.json"),
    ):
        pass
