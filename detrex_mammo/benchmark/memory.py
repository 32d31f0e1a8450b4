# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Peak memory of a call: of the process on a CPU, of torch's allocator on a GPU."""

import gc
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SAMPLING_SECONDS = 0.001


@dataclass(frozen=True)
class Peak:
    """Bytes that were held before a call, and at most during it."""

    before: int
    highest: int

    @property
    def extra(self) -> int:
        """Bytes above those held before."""
        return self.highest - self.before


def peak_of(run: Callable[[], Any], device: str = "cpu") -> Peak:
    """Peak memory of a call.

    On a CPU it is only right in a fresh process: the C library hands memory that was freed before
    out again, and the call seems to need less.

    Args:
        run: the call.
        device: "cpu" or "cuda".
    """
    gc.collect()
    if device == "cuda":
        return _peak_of_gpu(run)
    # The kernel's own high-water mark, where it can be reset (Linux: proc(5), clear_refs).
    return _peak_by_mark(run) if _reset_mark() else _peak_by_sampling(run)


def _peak_of_gpu(run: Callable[[], Any]) -> Peak:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return Peak(before, torch.cuda.max_memory_allocated())


def _peak_by_mark(run: Callable[[], Any]) -> Peak:
    before = _status("VmRSS")
    run()
    return Peak(before, _status("VmHWM"))


def _peak_by_sampling(run: Callable[[], Any]) -> Peak:
    """Look every millisecond; a shorter peak is missed."""
    before = highest = resident_bytes()
    stop = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not stop.wait(SAMPLING_SECONDS):
            highest = max(highest, resident_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        run()
    finally:
        stop.set()
        watcher.join()
    return Peak(before, max(highest, resident_bytes()))


def _reset_mark() -> bool:
    """Set the high-water mark to what is held now; False where that is not possible."""
    try:
        CLEAR.write_text("5")
        # Where it had no effect, the mark would still tell of this process's start.
        return _status("VmHWM") <= _status("VmRSS") + 2**20
    except (OSError, KeyError):
        return False


def _status(key: str) -> int:
    """Bytes of a line of /proc/self/status, which counts in KiB."""
    for line in STATUS.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == key:
            return int(rest.split()[0]) * 1024
    raise KeyError(key)


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
