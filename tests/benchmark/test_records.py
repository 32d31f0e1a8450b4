# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The records' mode: its JSON, what it measures in a process of its own, its rows."""

import json
from pathlib import Path

import pytest

from detrex_mammo.benchmark import main as tool
from detrex_mammo.benchmark import records
from detrex_mammo.benchmark.child import ChildError, in_child
from detrex_mammo.benchmark.records import SMAPS, measure, write_dataset
from detrex_mammo.benchmark.results import Row, load_results
from detrex_mammo.benchmark.session import Session
from detrex_mammo.errors import UserError
from tests.benchmark.example import make_results


def test_json_is_as_large_as_asked_and_in_no_order(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(records, "_CHUNK", 30)
    write_dataset(tmp_path / "a.json", 20, 100)
    content = json.loads((tmp_path / "a.json").read_text())
    assert len(content["images"]) == 20
    assert [a["id"] for a in content["annotations"]] == list(range(100))
    owners = [a["image_id"] for a in content["annotations"]]
    assert owners != sorted(owners) and set(owners) <= set(range(20))
    for annotation in content["annotations"]:  # inside: nothing is clipped or dropped
        x, y, width, height = annotation["bbox"]
        assert 0 <= x < x + width <= 3000 and 0 <= y < y + height <= 4000


@pytest.mark.skipif(not SMAPS.exists(), reason="looks into /proc")
def test_a_worker_adds_little(tmp_path: Path) -> None:
    """20,000 images with 200,000 boxes are 27 MB; as Python's objects a worker would copy them all.
    Of the arrays it copies nothing: what it adds is its own stack and heap, however many there
    are."""
    file = tmp_path / "a.json"
    write_dataset(file, 20_000, 200_000)
    found = in_child(measure, json_file=str(file))
    # Of a box 32 + 4 + 1 bytes and 8 of a place beside the bytes of its text; 24 + 24 of an image.
    text = sum(
        len(f'{{"pathology":"BENIGN","lesion_id":"L{i}","source":"mask"}}') for i in range(200_000)
    )
    arrays = 200_000 * 45 + 20_000 * 48 + text
    assert arrays < found["store"] < arrays + 20_000 * 350
    assert found["peak"] > found["store"] and found["seconds"] > 0
    assert found["touched"] == 20_000 and len(found["workers"]) == records.NUM_WORKERS
    for before, after in found["workers"]:
        assert 0 < after - before < 8e6 < found["store"] / 3


def test_what_was_found_becomes_rows(tmp_path: Path, monkeypatch) -> None:
    """A worker's 3 MB of 200 MB are 1.5 %."""
    found = {"seconds": 2.0, "peak": 5e8, "store": 2e8, "workers": [(1e6, 3e6)], "touched": 7}
    asked = []
    monkeypatch.setattr(records, "write_dataset", lambda path, *n: (asked.append(n), path.touch()))
    monkeypatch.setattr(records, "in_child", lambda function, json_file: found)
    session = Session("records", "cpu", False, 1, make_results(tmp_path, "records"), 2)
    records.run(session, 1000, 5000)
    assert asked == [(1000, 5000)]
    rows = {row.quantity: row for row in session.results.rows}
    assert {row.case for row in rows.values()} == {"1,000 images, 5,000 boxes"}
    assert rows["load"].values == [2.0, 2.0] and rows["load"].unit == "s"
    assert rows["peak of the process while loading"].values == [5e8, 5e8]
    assert rows["size of the store"].values == [2e8, 2e8]
    worker = rows["unique memory of a forked worker, 7 records read"]
    assert worker.values == [3e6, 3e6] and worker.unit == "B"
    assert worker.note.startswith("1.50% of the store (bar with ten million boxes: 2%)")
    assert worker.note.endswith("1.00 MB before the first")


def test_a_process_that_dies_is_a_row(tmp_path: Path, monkeypatch) -> None:
    def killed(function, json_file) -> None:
        raise ChildError("killed by SIGKILL (out of memory?)")

    monkeypatch.setattr(records, "in_child", killed)
    session = Session("records", "cpu", True, 1, make_results(tmp_path, "records"), 1)
    records.run(session, 10**9, 10**9)  # quick: never mind how many
    (row,) = session.results.rows
    assert row.error == "killed by SIGKILL (out of memory?)"
    assert row.case == "2,000 images, 20,000 boxes"


def test_it_is_a_mode_of_the_tool(tmp_path: Path, monkeypatch, capsys) -> None:
    def run(session: Session, images: int, boxes: int) -> None:
        session.results.add(Row(f"{images} images, {boxes} boxes", "load", "c", values=[2.0]))

    monkeypatch.setitem(tool.RUN, "records", run)
    tool.main(["records", "--images", "7", "--boxes", "20", "--output", str(tmp_path)])
    assert "7 images, 20 boxes: load" in capsys.readouterr().out
    assert (tmp_path / "records_cpu.png").is_file()
    with pytest.raises(UserError, match="--boxes is 0; use 1 or more"):
        tool.main(["records", "--boxes", "0"])


@pytest.mark.slow
def test_quick_run(tmp_path: Path) -> None:
    tool.main(["records", "--quick", "--output", str(tmp_path)])
    results = load_results(tmp_path / "records_cpu_quick.json")
    assert [row.error for row in results.rows] == [""] * len(results.rows)
    assert {row.unit for row in results.rows} == {"s", "B"}
