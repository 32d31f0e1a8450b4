# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The loader's mode: its synthetic mammograms, its workers, its rates."""

from pathlib import Path

import pytest

from detrex_mammo.benchmark import data
from detrex_mammo.benchmark.data import images_per_second, worker_counts, write_dataset
from detrex_mammo.benchmark.session import Session
from detrex_mammo.data.datasets import load_coco_json
from tests.benchmark.example import make_results


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(1, [0, 1]), (2, [0, 1, 2]), (6, [0, 1, 2, 4]), (96, [0, 1, 2, 4, 8, 16])],
)
def test_numbers_of_workers(cores: int, expected: list[int]) -> None:
    assert worker_counts(cores) == expected


def test_dataset_is_one_that_the_loader_reads(tmp_path: Path) -> None:
    height, width = write_dataset(tmp_path, 1.0, 2)
    records = load_coco_json("benchmark_test_dataset", str(tmp_path / "train.json"), str(tmp_path))
    assert [(r["height"], r["width"]) for r in records] == [(height, width)] * 2
    assert all(len(r["annotations"]) == 1 for r in records)


@pytest.mark.parametrize("workers", [0, 1])
def test_rate_counts_the_images_that_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """A clock that adds 2 s between its two readings: 4 images are 2 a second."""
    readings = iter((10.0, 12.0))
    write_dataset(tmp_path, 1.0, 2)
    monkeypatch.setattr(data.time, "perf_counter", lambda: next(readings))
    rate = images_per_second(tmp_path, workers, 4)
    monkeypatch.undo()
    assert rate == 2.0


def test_workers_take_turns_and_a_failure_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def rate(folder: Path, workers: int, count: int) -> float:
        calls.append(workers)
        if workers == 1:
            raise OSError("no more processes")
        return 5.0 * (workers + 1)

    monkeypatch.setattr(data, "images_per_second", rate)
    session = Session("data", "cpu", True, 1, make_results(tmp_path, "data"))
    data.run(session)
    assert calls == [0, 1, 2, 0, 1, 2]
    rows = {row.candidate: row for row in session.results.rows}
    assert rows["0 workers"].values == [5.0, 5.0]
    assert rows["2 workers"].values == [15.0, 15.0]
    assert rows["1 worker"].error == "OSError: no more processes"
    assert {row.unit for row in rows.values()} == {"images/s"}
