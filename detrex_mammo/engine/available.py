# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""How much memory is there for this process: of its GPU, or of the machine and its limits."""

from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path("/")
# (limit, what is taken, line of memory.stat with what would be given back) of control groups,
# version 2 and version 1.
_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def available_bytes(device: str, root: Path = ROOT) -> int | None:
    """Bytes that this process could have, those of its tensors on a GPU included.

    Args:
        device: "cuda" for the current GPU, or "cpu".
        root: of the files that Linux tells it in.

    Returns:
        int: None where the system does not tell, which is outside of Linux.
    """
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved()
    return min(_free(root), default=None)


def _free(root: Path) -> Iterator[int]:
    """What the machine has free, and every control group that this process is in."""
    lines = _lines(root / "proc/meminfo")
    yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers not in _FILES:
            continue
        top = root / "sys/fs/cgroup" / controllers
        # In a container the path may be that of the host, of which only the top is seen.
        inner = top / path.lstrip("/")
        for folder in dict.fromkeys((inner, *inner.parents, top)):
            if folder == top or top in folder.parents:
                yield from _free_in(folder, *_FILES[controllers])


def _free_in(folder: Path, limit: str, taken: str, cache: str) -> Iterator[int]:
    numbers = [line for name in (limit, taken) for line in _lines(folder / name)]
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        return  # no such group here, or no limit: "max"
    pairs = (line.split() for line in _lines(folder / "memory.stat"))
    given_back = next((int(pair[1]) for pair in pairs if pair[0] == cache), 0)
    yield max(0, int(numbers[0]) - int(numbers[1]) + given_back)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []
