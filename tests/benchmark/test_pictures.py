# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The picture is drawn whatever was measured."""

from pathlib import Path

import cv2
import pytest

from detrex_mammo.benchmark import pictures
from detrex_mammo.benchmark.pictures import draw
from detrex_mammo.benchmark.results import Row
from tests.benchmark.example import fill, make_results


@pytest.fixture
def drawn_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written beside the bars."""
    texts: list[str] = []
    original = pictures.Axes.annotate

    def annotate(self, text, *rest, **more):
        texts.append(text.strip())
        return original(self, text, *rest, **more)

    monkeypatch.setattr(pictures.Axes, "annotate", annotate)
    return texts


def test_bars_and_curves(tmp_path: Path, drawn_texts: list[str]) -> None:
    file = tmp_path / "op_cpu.png"
    draw(fill(make_results(tmp_path)), file)
    height, width, _ = cv2.imread(str(file)).shape
    assert height > 500 and width > 1000
    assert drawn_texts == ["800 ms", "20.0 ms  (35.0x)", "1.10 GB", "55.0 MB  (20.0x)"]


def test_a_run_without_any_value(tmp_path: Path, drawn_texts: list[str]) -> None:
    results = make_results(tmp_path, quick=True)
    results.add(Row("case", "forward", "reference", error="no"))
    draw(results, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000
    assert drawn_texts == []


def test_more_candidates_than_colours(tmp_path: Path, drawn_texts: list[str]) -> None:
    results = make_results(tmp_path, "data")
    for count in range(20):
        row = Row("16-bit PNG", "rate", f"{count} workers", "images/s", values=[1.0 + count])
        results.add(row)
    draw(results, tmp_path / "data.png")
    assert drawn_texts[:2] == ["1.00 images/s", "2.00 images/s  (2.00x)"]
    assert len(drawn_texts) == 20
