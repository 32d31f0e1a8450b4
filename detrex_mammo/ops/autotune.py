# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""How the Triton kernels are cut into programs: timed once, the fastest kept on disk.

What is in the file decides nothing but speed: only configurations known here are taken from it.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from detrex_mammo.ops import c_compiler

AUTOTUNE_VARIABLE = "DETREX_MAMMO_AUTOTUNE"  # 0 turns it off
FILE_NAME = "triton_autotune.json"
REPEATS = 7


class Config(NamedTuple):
    """A cut: 16-byte loads of each thread for one corner of one level, and warps of a program.

    No num_stages: the kernels have no loop whose loads could run ahead.
    """

    loads: int
    num_warps: int


# The first one is used where nothing may be timed. Fewer loads: fewer registers, more warps at once
# (48 registers in forward). More: corners are found once and handed to the threads that share them.
CANDIDATES: dict[str, tuple[Config, ...]] = {
    "forward_kernel": tuple(
        Config(*pair) for pair in ((1, 4), (1, 1), (1, 8), (2, 2), (2, 4), (4, 1), (4, 2))
    ),
    # One warp needs no barrier where gradients change hands.
    "backward_kernel": tuple(Config(*pair) for pair in ((1, 1), (1, 2), (1, 4), (1, 8))),
}


def run(
    name: str, key: str, launch: Callable[[Config], None], reset: Callable[[], None], device: str
) -> None:
    """Launch a kernel in the fastest known way; find that way out first if it is not known.

    Args:
        name: the kernel, a key of ``CANDIDATES``.
        key: everything that the choice depends on.
        launch: launches the kernel once.
        reset: undoes what launches leave behind, before the one that counts.
        device: type of the device; only "cuda" is timed.
    """
    candidates = CANDIDATES[name]
    is_fixed = os.environ.get(AUTOTUNE_VARIABLE) == "0" or device != "cuda"
    if is_fixed or torch.are_deterministic_algorithms_enabled():
        launch(candidates[0])
        return
    config = _winners().get(key)
    if config not in candidates:
        if torch.cuda.is_current_stream_capturing():
            launch(candidates[0])
            return
        config = min(candidates, key=lambda candidate: _measure(launch, candidate))
        _remember(key, config)
        reset()
    launch(config)


def _measure(launch: Callable[[Config], None], config: Config) -> float:
    """Milliseconds of a launch, the median; infinite when the device lacks what it needs."""
    from triton.runtime.errors import OutOfResources

    times = []
    try:
        for _ in range(REPEATS + 1):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            launch(config)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
    except OutOfResources:
        return float("inf")
    return statistics.median(times[1:])  # the first one compiles


@cache
def _winners() -> dict[str, Config]:
    """What this process knows, at first what the file says."""
    return _read(_file())


def _file() -> Path:
    return c_compiler.cache_folder() / FILE_NAME


def _read(file: Path) -> dict[str, Config]:
    """The entries of a file that are configurations; nothing if it is no such file."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    known = {config for candidates in CANDIDATES.values() for config in candidates}
    found = {}
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        is_pair = isinstance(entry, list) and [type(number) for number in entry] == [int, int]
        if is_pair and Config(*entry) in known:
            found[key] = Config(*entry)
    return found


def _remember(key: str, config: Config) -> None:
    """Add to the file; of processes that do so at once one entry may be lost, never the file."""
    _winners()[key] = config
    file = _file()
    try:
        handle, partial = tempfile.mkstemp(dir=file.parent, prefix=FILE_NAME, suffix=".partial")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump({**_read(file), key: config}, stream, indent=1, sort_keys=True)
        os.replace(partial, file)
    except OSError:
        pass  # a full disk costs a second of timing at the next start, no more
