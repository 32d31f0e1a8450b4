# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Peak memory: what is allocated and freed again is seen, what was there before is not."""

import time
from collections.abc import Callable

import numpy as np
import pytest

from detrex_mammo.benchmark import memory
from detrex_mammo.benchmark.memory import Peak, peak_of

MEGABYTE = 2**20


def touch(megabytes: int) -> None:
    """Fill memory, hold it for a moment, give it back."""
    held = np.ones(megabytes * MEGABYTE, dtype=np.uint8)
    time.sleep(0.02)
    del held


@pytest.mark.parametrize("way", ["mark", "sampling"])
def test_memory_that_is_freed_again_is_counted(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "sampling":
        monkeypatch.setattr(memory, "_reset_mark", lambda: False)
    held_before = np.ones(64 * MEGABYTE, dtype=np.uint8)
    peak = peak_of(lambda: touch(128))
    assert 120 * MEGABYTE < peak.extra < 160 * MEGABYTE
    assert peak.before > held_before.nbytes


def test_an_earlier_peak_is_not_counted() -> None:
    touch(256)
    assert peak_of(lambda: touch(16)).extra < 64 * MEGABYTE


def test_a_mark_that_cannot_be_reset_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "missing" / "clear_refs")
    used: list[str] = []
    monkeypatch.setattr(
        memory, "_peak_by_sampling", lambda run: used.append("sampling") or Peak(0, 1)
    )
    assert peak_of(lambda: None).extra == 1
    assert used == ["sampling"]


def test_the_watching_thread_ends_when_the_call_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_reset_mark", lambda: False)
    threads: list[memory.threading.Thread] = []
    make: Callable = memory.threading.Thread

    def keep(**arguments):
        threads.append(make(**arguments))
        return threads[-1]

    monkeypatch.setattr(memory.threading, "Thread", keep)
    with pytest.raises(ZeroDivisionError):
        peak_of(lambda: 1 / 0)
    assert [thread.is_alive() for thread in threads] == [False]
