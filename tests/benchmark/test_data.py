# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The loader's mode: its synthetic mammograms, its workers, its rates."""

from pathlib import Path

import pytest
import torch

from detrex_mammo.benchmark import data
from detrex_mammo.benchmark.data import (
    images_per_second,
    worker_counts,
    write_cache,
    write_dataset,
    write_dicom,
)
from detrex_mammo.benchmark.session import Session
from detrex_mammo.data.datasets import load_coco_json
from detrex_mammo.data.mapper import MammographyMapper
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

    def rate(folder: Path, workers: int, count: int, cache: str) -> float:
        calls.append((folder.name, bool(cache), workers))
        if workers == 1:
            raise OSError("no more processes")
        return 5.0 * (workers + 1)

    monkeypatch.setattr(data, "images_per_second", rate)
    session = Session("data", "cpu", True, 1, make_results(tmp_path, "data"))
    data.run(session)
    once = [(Path(calls[0][0]).name, False), ("dicom", False), ("dicom", True)]
    assert calls == [(*source, workers) for source in once for workers in (0, 1, 2)] * 2
    for source in ("16-bit PNG", "DICOM, RLE Lossless", "cache"):
        rows = {r.candidate: r for r in session.results.rows if r.case.startswith(f"{source}, ")}
        assert rows["0 workers"].values == [5.0, 5.0]
        assert rows["2 workers"].values == [15.0, 15.0]
        assert rows["1 worker"].error == "OSError: no more processes"
        assert {row.unit for row in rows.values()} == {"images/s"}


def test_the_three_sources_give_one_image(tmp_path: Path) -> None:
    """What is timed does the same work: PNG, DICOM and the cache end in the same pixels."""
    write_dataset(tmp_path, 1.0, 1)
    write_dicom(tmp_path)
    write_cache(tmp_path / "dicom", tmp_path / "cache")
    images = []
    for folder, cache in ((tmp_path, ""), (tmp_path / "dicom", ""), (tmp_path / "dicom", "cache")):
        name = f"benchmark_same_{folder.name}_{cache}"
        (record,) = load_coco_json(name, str(folder / "train.json"), str(folder))
        mapper = MammographyMapper(True, cache_dir=str(tmp_path / cache) if cache else "")
        image = mapper(record)["image"]
        images.append((image - image.min()) / (image.max() - image.min()))
    torch.testing.assert_close(images[1], images[2], rtol=0, atol=0)
    # Without windows DICOM is stretched to its own range, a PNG is not.
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-5)
