# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Bars: judged on the right rows, in the right direction."""

from pathlib import Path

import pytest

from detrex_mammo.benchmark.bars import BARS, Bar, compare, judge
from detrex_mammo.benchmark.results import Row
from tests.benchmark.example import fill, make_results

ENCODER = "encoder, unfused, fp32"


def find(text: str) -> Bar:
    (bar,) = (bar for bar in BARS if bar.text == text)
    return bar


def verdict_of(bar: Bar, tmp_path: Path, ours: list[float], theirs: list[float]):
    results = make_results(tmp_path, bar.mode, bar.device)
    unit = "B" if "memory" in bar.text else "s"
    results.add(Row(*bar.ours, unit=unit, values=ours))
    if bar.theirs:
        results.add(Row(*bar.theirs, unit=unit, values=theirs))
    (verdict,) = (v for v in judge(results) if v.bar is bar)
    return verdict


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [([0.02], "aim met"), ([0.025], "met"), ([0.04], "not met"), ([], "not measured")],
)
def test_forward_is_30_times_with_an_aim_of_50(
    tmp_path: Path, ours: list[float], verdict: str
) -> None:
    """1 s of the reference: 0.02 s is 50 times, 0.025 s 40 times, 0.04 s 25 times."""
    bar = find("operator, encoder, unfused, forward")
    assert (bar.at_least, bar.aim) == (30, 50)
    assert verdict_of(bar, tmp_path, ours, [1.0]).verdict == verdict


@pytest.mark.parametrize(("size", "verdict"), [(50e6, "aim met"), (66e6, "met"), (70e6, "not met")])
def test_memory_is_a_fifteenth(tmp_path: Path, size: float, verdict: str) -> None:
    """1 GB of the reference: a fifteenth is 66.7 MB, a twentieth 50 MB."""
    bar = find("operator, encoder, fused, extra memory, forward + backward")
    assert verdict_of(bar, tmp_path, [size], [1e9]).verdict == verdict


@pytest.mark.parametrize(("size", "verdict"), [(5.4e9, "met"), (5.6e9, "not met")])
def test_patched_transformers_needs_55_percent(tmp_path: Path, size: float, verdict: str) -> None:
    bar = find("R50 two-stage, training, peak memory: transformers, patched")
    assert verdict_of(bar, tmp_path, [size], [10e9]).verdict == verdict


@pytest.mark.parametrize(("seconds", "verdict"), [(0.004, "met"), (0.006, "not met")])
def test_cached_start_takes_5_ms(tmp_path: Path, seconds: float, verdict: str) -> None:
    bar = find("cached start of the C kernel")
    assert verdict_of(bar, tmp_path, [seconds], []).verdict == verdict


def test_bars_are_those_of_the_mode_and_device(tmp_path: Path) -> None:
    for device, count in (("cpu", 2), ("cuda", 0)):
        verdicts = judge(make_results(tmp_path, "inference", device))
        assert len(verdicts) == count
        assert {v.verdict for v in verdicts} <= {"not measured"}


def test_a_quick_run_is_not_judged(tmp_path: Path) -> None:
    assert judge(fill(make_results(tmp_path, quick=True))) == []


@pytest.mark.parametrize(
    ("quantity", "ours", "theirs", "verdict"),
    [
        ("peak memory", 1.14e9, 1e9, "met"),
        ("peak memory", 1.16e9, 1e9, "not met"),
        ("activations", 0.49e9, 1e9, "met"),
        ("activations", 0.51e9, 1e9, "not met"),
        ("training step", 1.34, 1.0, "met"),
        ("training step", 1.36, 1.0, "not met"),
        ("tiny", 1.9e-3, None, "met"),
        ("tiny", 2.1e-3, None, "not met"),
        ("engine, R50", 0.029, 1.0, "met"),
        ("engine, R50", 0.031, 1.0, "not met"),
    ],
)
def test_bars_of_the_engine(tmp_path: Path, quantity, ours, theirs, verdict) -> None:
    """At most 1.15 times the memory, half the activations, 1.35 times the time, 2 ms, 3 %."""
    (bar,) = (bar for bar in BARS if bar.mode == "engine" and quantity in bar.text)
    found = verdict_of(bar, tmp_path, [ours], [theirs])
    assert found.verdict == verdict


def test_every_bar_has_its_own_text() -> None:
    assert len({bar.text for bar in BARS}) == len(BARS) == 29


def test_what_cannot_be_compared() -> None:
    full, empty = Row("c", "q", "a", values=[2.0]), Row("c", "q", "b")
    assert compare(full, None) is compare(None, full) is compare(full, empty) is None
    assert compare(full, Row("c", "q", "b", values=[0.0])) is None
    assert compare(full, full).median == 1.0
