# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Peak memory: what is allocated and freed again is seen, what was there before is not."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from detrex_mammo.benchmark import memory
from detrex_mammo.benchmark.memory import Peak, peak_of

MEGABYTE = 2**20


FRESH = """
import sys, time
import numpy as np
from detrex_mammo.benchmark import memory

looks, look = [], memory.resident_bytes

def counted():
    looks.append(1)
    return look()

def touch(megabytes):
    "Fill memory, hold it until it has been looked at, give it back."
    held = np.ones(megabytes * 2**20, dtype=np.uint8)
    begin = len(looks)
    while "sampling" in sys.argv and len(looks) < begin + 2:
        time.sleep(0.001)
    del held

if "sampling" in sys.argv:
    memory._reset_mark, memory.resident_bytes = lambda: False, counted
if "earlier" in sys.argv:
    touch(256)
held_before = np.ones(64 * 2**20, dtype=np.uint8)
peak = memory.peak_of(lambda: touch(int(sys.argv[1])))
print(peak.before, peak.extra)
"""


def peak_in_a_fresh_process(*arguments: str) -> tuple[int, int]:
    """Bytes before and extra; a process that has run other tests would reuse what they freed."""
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *arguments], capture_output=True, text=True, check=True
    )
    before, extra = map(int, done.stdout.split())
    return before, extra


@pytest.mark.parametrize("way", ["mark", "sampling"])
def test_memory_that_is_freed_again_is_counted(way: str) -> None:
    before, extra = peak_in_a_fresh_process("128", way)
    assert 120 * MEGABYTE < extra < 160 * MEGABYTE
    assert before > 64 * MEGABYTE


def test_an_earlier_peak_is_not_counted() -> None:
    _, extra = peak_in_a_fresh_process("16", "mark", "earlier")
    assert extra < 64 * MEGABYTE


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
