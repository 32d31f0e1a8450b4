# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Candidates timed in turn: A B C, A B C, ... so that a busy minute of the machine hits all."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

# A sample repeats its call until it lasts about this long: clocks and schedulers are coarse.
SAMPLE_SECONDS = 0.05
MAX_CALLS = 1000


@dataclass(frozen=True)
class Candidate:
    """One way to do the work.

    Attributes:
        name: unique among those it is compared with.
        run: does the work once.
        around: entered outside of the time, around every use; such as a patch.
        warmup: untimed calls; the last one tells how often a sample repeats the call.
    """

    name: str
    run: Callable[[], Any]
    around: Callable[[], AbstractContextManager] = nullcontext
    warmup: int = 1


@dataclass(frozen=True)
class Sample:
    """Seconds of one call in one round, or the error that takes the candidate out.

    Attributes:
        candidate: name.
        round: from 0; -1 for a failure while warming up.
        seconds: of one call, NaN if it failed.
        error: empty if it did not.
    """

    candidate: str
    round: int
    seconds: float = math.nan
    error: str = ""


def seconds_of(run: Callable[[], Any], calls: int, device: str) -> float:
    """Mean wall-clock seconds of one of ``calls`` calls, until the device has finished them."""
    _wait_for(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    _wait_for(device)
    return (time.perf_counter() - start) / calls


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(
    candidates: Sequence[Candidate], repeats: int, device: str = "cpu"
) -> Iterator[Sample]:
    """Warm all up, then measure each once per round, in the order given.

    A candidate that raises gives one sample with its error and is left out from then on.

    Args:
        candidates: with different names.
        repeats: rounds.
        device: "cpu" or "cuda".
    """
    calls: dict[str, int] = {}
    alive = list(candidates)
    for candidate in candidates:
        seconds, error = _guarded(_warm_up, candidate, device)
        if error:
            alive.remove(candidate)
            yield Sample(candidate.name, -1, error=error)
        else:
            wanted = math.ceil(SAMPLE_SECONDS / max(seconds, 1e-9))
            calls[candidate.name] = min(wanted, MAX_CALLS)
    for number in range(repeats):
        gc.collect()
        for candidate in list(alive):
            seconds, error = _guarded(_measure, candidate, device, calls[candidate.name])
            if error:
                alive.remove(candidate)
            yield Sample(candidate.name, number, seconds, error)


def _warm_up(candidate: Candidate, device: str) -> float:
    """Seconds of the last untimed call."""
    with candidate.around():
        return [seconds_of(candidate.run, 1, device) for _ in range(candidate.warmup)][-1]


def _measure(candidate: Candidate, device: str, calls: int) -> float:
    with candidate.around():
        return seconds_of(candidate.run, calls, device)


def _guarded(function: Callable[..., float], *arguments: Any) -> tuple[float, str]:
    """Seconds and no error, or NaN and the error on one line."""
    try:
        return function(*arguments), ""
    except Exception as error:  # whatever a peer raises: the others are still measured
        return math.nan, one_line(error)


def one_line(error: BaseException) -> str:
    """Type and message of an error, shortened, on one line."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= 200 else text[:197] + "..."
