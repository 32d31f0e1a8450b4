# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The process that starts the others: passes signals on, and ends all of them when one fails."""

import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, connection
from pathlib import Path
from typing import Any

from torch import distributed as dist

from detrex_mammo.engine.interruption import SIGNALS
from detrex_mammo.errors import UserError

# Seconds that the others have to leave by themselves when one has failed; a broken connection
# makes them. Then they are killed.
LEAVE_SECONDS = 15
LOST = 3  # exit code of a process that has lost another; behind those that tell why that one left
LOST_SENTENCE = (
    "has lost the connection to another one, so it has left: see the output of the other machines "
    "for the reason, and go on with --resume from the last checkpoint"
)
_LOST_WORDS = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting")


@dataclass(frozen=True)
class End:
    """How the processes ended.

    Attributes:
        index: the one that ended first with an error; 0 if none did.
        exit_code: its; negative for the signal that killed it.
        count: of all processes.
    """

    index: int
    exit_code: int
    count: int


@contextmanager
def forwarded_signals() -> Iterator[list[Any]]:
    """Pass SIGTERM and SIGUSR1 on to processes, which save and leave.

    Yields:
        list: to be filled with the processes.
    """
    processes: list[Any] = []
    others = active_children()

    def forward(number: int, frame: Any) -> None:
        if not processes:  # nothing has begun, but some may be there, which Python would wait for
            for process in active_children():
                if process not in others:
                    process.kill()
            raise SystemExit(128 + number)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, forward) for number in SIGNALS} if is_main else {}
    try:
        yield processes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for(processes: Sequence[Any]) -> End:
    """Wait until all have ended; ``LEAVE_SECONDS`` after the first error none is left."""
    end = None
    try:
        end = _first_error(processes)
        return end
    finally:  # also after Ctrl-C, which the others have got too
        if end is None or end.exit_code != 0:
            deadline = time.monotonic() + LEAVE_SECONDS
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


def _first_error(processes: Sequence[Any]) -> End:
    left = {process.sentinel: index for index, process in enumerate(processes)}
    while left:
        ended = [left.pop(sentinel) for sentinel in connection.wait(list(left))]
        for index in ended:
            processes[index].join()
        # One that was killed is the reason of what the others ran into.
        failed = sorted((processes[index].exitcode, index) for index in ended)
        for code, index in failed:
            if code != 0:
                return End(index, code, len(processes))
    return End(0, 0, len(processes))


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether an exchange between processes failed because another is gone, or silent."""
    text = str(error)
    return isinstance(error, dist.DistError) or any(words in text for words in _LOST_WORDS)


def raise_end(end: End, error_files: Sequence[str]) -> None:
    """Raise what ended the processes.

    Args:
        end: with an exit code other than 0.
        error_files: where each process has put its traceback, if it had time to.

    Raises:
        UserError: one was killed, or has lost one of another machine.
        RuntimeError: one had an error, here with its traceback.
        SystemExit: one left with an exit code of its own, or was asked to at its start.
    """
    if -end.exit_code in SIGNALS:  # asked to leave before it could listen; nothing had begun
        raise SystemExit(128 - end.exit_code)
    if end.exit_code < 0:
        name = signal.Signals(-end.exit_code).name
        raise UserError(
            f"process {end.index} of {end.count} was killed ({name}), most often because memory "
            "was full, and the others have been ended: go on with --resume from the last checkpoint"
        )
    if end.exit_code == LOST:
        raise UserError(f"process {end.index} of {end.count} {LOST_SENTENCE}")
    path = Path(error_files[end.index])
    if path.is_file() and path.stat().st_size:
        raise RuntimeError(
            f"process {end.index} of {end.count} failed:\n{pickle.loads(path.read_bytes())}"
        )
    raise SystemExit(end.exit_code)
