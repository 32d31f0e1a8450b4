# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The process that starts the others: none is left when one fails, and the reason is told."""

import multiprocessing
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import pytest

from detrex_mammo.engine import supervision
from detrex_mammo.engine.supervision import End, forwarded_signals, raise_end, wait_for
from detrex_mammo.errors import UserError


def start(*jobs) -> list:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=job) for job in jobs]
    for process in processes:
        process.start()
    return processes


def wait_for_ever() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as one that is stuck in a library
    while True:
        time.sleep(100)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_all_that_end_well_are_waited_for() -> None:
    assert wait_for(start(int, int)) == End(0, 0, 2)


@pytest.mark.parametrize(("job", "code"), [(be_killed, -9), (lambda: sys.exit(3), 3)])
def test_one_that_hangs_is_killed_after_another_failed(job, code: int, monkeypatch) -> None:
    monkeypatch.setattr(supervision, "LEAVE_SECONDS", 0.2)
    processes = start(wait_for_ever, job)
    assert wait_for(processes) == End(1, code, 2)
    assert not any(process.is_alive() for process in processes)


def test_others_have_time_to_leave_by_themselves() -> None:
    """As when all save and leave together, one a little later."""

    def late() -> None:
        time.sleep(0.5)
        sys.exit(138)

    processes = start(lambda: sys.exit(138), late)
    assert wait_for(processes) == End(0, 138, 2)
    assert [process.exitcode for process in processes] == [138, 138]


def test_signal_to_this_process_reaches_the_others() -> None:
    with forwarded_signals() as processes:
        ready, written = os.pipe()

        def leave() -> None:
            signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))
            os.write(written, b"x")
            while True:
                time.sleep(100)

        processes += start(leave)
        os.read(ready, 1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert wait_for(processes) == End(0, 7, 1)


def test_signal_before_there_are_others_ends_this_process() -> None:
    with forwarded_signals(), pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert ended.value.code == 143


def test_reason_of_each_end(tmp_path: Path) -> None:
    """A kill is a sentence, an error its traceback, and an exit code the same exit code."""
    traceback, nothing = tmp_path / "traceback", tmp_path / "nothing"
    traceback.write_bytes(pickle.dumps("Traceback: ZeroDivisionError"))
    with pytest.raises(UserError, match=r"process 1 of 4 was killed \(SIGKILL\)"):
        raise_end(End(1, -9, 4), [str(nothing)] * 4)
    with pytest.raises(RuntimeError, match="process 2 of 4 failed:\nTraceback: ZeroDivision"):
        raise_end(End(2, 1, 4), [str(traceback)] * 4)
    with pytest.raises(SystemExit) as ended:
        raise_end(End(0, 143, 4), [str(nothing)] * 4)
    assert ended.value.code == 143


def test_signal_between_two_starts_leaves_no_process_to_wait_for() -> None:
    """The first one is there, the list is not yet; a process beside the run is left alone."""
    (beside,) = start(wait_for_ever)
    with pytest.raises(SystemExit) as ended, forwarded_signals():
        (first,) = start(wait_for_ever)
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
    first.join(20)
    assert first.exitcode == -signal.SIGKILL
    assert beside.is_alive()
    beside.kill()
    beside.join()
