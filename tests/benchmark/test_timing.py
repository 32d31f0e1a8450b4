# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Candidates in turn: their order, their failures, and what stays outside of the time."""

import math
import time
from contextlib import contextmanager

import pytest

from detrex_mammo.benchmark import timing
from detrex_mammo.benchmark.timing import Candidate, Sample, interleaved, one_line, seconds_of


def told(calls: list[str], name: str, seconds: float = 1.0):
    """A call that writes its name down and makes the clock believe it took ``seconds``."""

    def run() -> None:
        calls.append(name)
        clock[0] += seconds

    return run


clock = [0.0]


@pytest.fixture(autouse=True)
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock[0] = 0.0
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])


def test_candidates_take_turns_after_all_have_warmed_up() -> None:
    calls: list[str] = []
    candidates = [
        Candidate("a", told(calls, "a", 1.0), warmup=2),
        Candidate("b", told(calls, "b", 3.0)),
        Candidate("c", told(calls, "c", 0.5)),
    ]
    samples = list(interleaved(candidates, repeats=2))
    assert "".join(calls) == "aab" + "c" + "abc" + "abc"
    assert [(s.candidate, s.round, s.seconds) for s in samples] == [
        ("a", 0, 1.0), ("b", 0, 3.0), ("c", 0, 0.5), ("a", 1, 1.0), ("b", 1, 3.0), ("c", 1, 0.5),
    ]  # fmt: skip


def test_a_short_call_is_repeated_until_the_sample_is_long_enough() -> None:
    """0.02 s a call: three of them fill 0.05 s, and the sample tells the time of one."""
    calls: list[str] = []
    (sample,) = interleaved([Candidate("a", told(calls, "a", 0.02))], repeats=1)
    assert len(calls) == 1 + 3
    assert sample.seconds == pytest.approx(0.02)


def test_the_number_of_calls_is_bounded() -> None:
    calls: list[str] = []
    list(interleaved([Candidate("a", told(calls, "a", 0.0))], repeats=1))
    assert len(calls) == 1 + timing.MAX_CALLS


def test_a_failing_candidate_leaves_and_the_others_go_on() -> None:
    calls: list[str] = []
    tries = iter((False, False, True))

    def breaks_in_the_second_round() -> None:
        if next(tries):
            raise MemoryError("no room\nat all")
        clock[0] += 1.0

    candidates = [
        Candidate("never", lambda: 1 / 0),
        Candidate("breaks", breaks_in_the_second_round),
        Candidate("good", told(calls, "good")),
    ]
    samples = list(interleaved(candidates, repeats=3))
    assert [(s.candidate, s.round, s.error) for s in samples] == [
        ("never", -1, "ZeroDivisionError: division by zero"),
        ("breaks", 0, ""), ("good", 0, ""),
        ("breaks", 1, "MemoryError: no room at all"), ("good", 1, ""),
        ("good", 2, ""),
    ]  # fmt: skip
    assert all(math.isnan(s.seconds) == bool(s.error) for s in samples)


def test_a_keyboard_interrupt_is_no_failing_candidate() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(interleaved([Candidate("a", interrupt)], repeats=1))


def test_around_is_entered_for_its_candidate_alone_and_outside_of_the_time() -> None:
    calls: list[str] = []

    @contextmanager
    def patch():
        calls.append("(")
        clock[0] += 100.0
        yield
        clock[0] += 100.0
        calls.append(")")

    candidates = [Candidate("a", told(calls, "a"), patch), Candidate("b", told(calls, "b"))]
    samples = list(interleaved(candidates, repeats=1))
    assert "".join(calls) == "(a)b" + "(a)b"
    assert [s.seconds for s in samples] == [1.0, 1.0]


def test_around_is_left_after_a_failure() -> None:
    calls: list[str] = []

    @contextmanager
    def patch():
        try:
            yield
        finally:
            calls.append("left")

    assert list(interleaved([Candidate("a", lambda: 1 / 0, patch)], 1))[0].error
    assert calls == ["left"]


def test_seconds_of_the_real_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert seconds_of(lambda: time.sleep(0.01), 2, "cpu") >= 0.01


def test_errors_are_told_on_one_short_line() -> None:
    assert one_line(ValueError("a\n   b")) == "ValueError: a b"
    assert len(one_line(ValueError("x" * 1000))) == 200


def test_sample_without_a_time_is_not_a_number() -> None:
    assert math.isnan(Sample("a", 0, error="x").seconds)
