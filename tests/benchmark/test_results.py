# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The file of results: what it holds, that it is there at once, that nothing whole is lost."""

import json
from pathlib import Path

import pytest

from detrex_mammo.benchmark.results import Row, curves, load_results, sections
from detrex_mammo.errors import UserError
from tests.benchmark.example import MACHINE, fill, make_results


def test_contents_of_the_file(tmp_path: Path) -> None:
    results = fill(make_results(tmp_path))
    content = json.loads((tmp_path / "op_cpu_unfinished.json").read_text())
    assert content["command"] == "python tools/benchmark.py op"
    assert content["machine"] == MACHINE
    assert content["versions"]["torch"] == "2.14.1"
    assert content["missing"] == {"deformops": "its kernels need a GPU"}
    assert (content["mode"], content["device"], content["quick"]) == ("op", "cpu", False)
    assert content["started"] and not content["finished"]
    by_name = {(r["quantity"], r["candidate"]): r for r in content["rows"] if r["x"] is None}
    assert by_name["forward", "c"] == {
        "case": "encoder, unfused, fp32",
        "quantity": "forward",
        "candidate": "c",
        "unit": "s",
        "values": [0.02, 0.02, 0.03],
        "x": None,
        "note": "hot",
        "error": "",
        "spread": {"low": 0.02, "median": 0.02, "high": 0.025, "count": 3},
    }
    failed = by_name["forward", "transformers"]
    assert (failed["values"], failed["spread"], failed["error"]) == ([], None, "ValueError: no")
    assert len(content["rows"]) == len(results.rows) == 9


def test_every_measurement_is_on_disk_at_once(tmp_path: Path) -> None:
    results = make_results(tmp_path)
    for count in (1, 2, 3):
        results.add(Row("case", "forward", "c", values=[float(count)]))
        (row,) = json.loads(results.path.read_text())["rows"]
        assert len(row["values"]) == count


def test_an_unfinished_run_leaves_the_last_whole_one_alone(tmp_path: Path) -> None:
    first = fill(make_results(tmp_path))
    first.finish()
    assert [file.name for file in tmp_path.iterdir()] == ["op_cpu.json"]
    whole = first.path.read_text()
    second = make_results(tmp_path)
    second.add(Row("case", "forward", "c", values=[1.0]))
    assert first.path.read_text() == whole
    assert second.path.name == "op_cpu_unfinished.json"
    second.finish()
    assert [file.name for file in tmp_path.iterdir()] == ["op_cpu.json"]
    assert len(load_results(first.path).rows) == 1


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    results = fill(make_results(tmp_path))
    results.finish()
    assert load_results(results.path).to_dict() == results.to_dict()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [1], "missing": {}}', '{"rows": 3}'])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "op_cpu.json"
    file.write_text(text)
    with pytest.raises(UserError, match="is no file of results"):
        load_results(file)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output .* cannot be written"):
        make_results(tmp_path / "file").save()


def test_values_notes_and_errors_of_one_row_are_joined(tmp_path: Path) -> None:
    results = make_results(tmp_path)
    results.add(Row("case", "forward", "c", values=[1.0]))
    results.add(Row("case", "forward", "c", note="batch 4"))
    results.add(Row("case", "forward", "c", values=[3.0]))
    results.add(Row("case", "forward", "c", error="gone"))
    assert results.rows == [
        Row("case", "forward", "c", values=[1.0, 3.0], note="batch 4", error="gone")
    ]
    assert results.rows[0].spread.median == 2.0


def test_sections_and_curves_are_kept_apart(tmp_path: Path) -> None:
    rows = fill(make_results(tmp_path)).rows
    assert [(quantity, len(found)) for (_, quantity), found in sections(rows).items()] == [
        ("forward", 3),
        ("extra memory, forward + backward", 2),
    ]
    lines = curves(rows)["by queries", "forward"]
    assert [row.x for row in lines["c"]] == [10, 100]
