# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The process that ends a killed run's ``status.json``: waits until the run has let go of a pipe.

Run with nothing but Python's standard library: it must be small, and start before the run does.
"""

import errno
import json
import os
import sys
from datetime import datetime, timezone

DONE = b"done"  # what a run says that has written its last line itself
MESSAGE = "the process was killed or crashed: go on with --resume"


def append(path: str, line: str) -> None:
    """Append one line in one piece, on a line of its own even if the one before was cut short.

    Raises:
        OSError: the disk is full, and the file as it was, or the folder is gone.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(file).st_size
        is_cut = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        text = b"\n" * is_cut + line.encode() + b"\n"
        if os.write(file, text) < len(text):  # a full disk takes a part
            os.ftruncate(file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(file)


def append_end(path: str, line: str) -> None:
    """Append the last line of a run; on a full disk it takes the place of lines that are there.

    Raises:
        OSError: as for :func:`append`, and there is nothing whose place it could take.
    """
    try:
        append(path, line)
    except OSError:
        file = os.open(path, os.O_RDWR)
        try:
            _replace_running(file, line.encode() + b"\n")
        finally:
            os.close(file)


def _replace_running(file: int, text: bytes) -> None:
    """Write over the newest RUNNING lines, whose place on the disk is taken already."""
    content = os.pread(file, os.fstat(file).st_size, 0)
    lines, room = content.splitlines(keepends=True), 0
    while room < len(text):
        if not lines or b'"status": "RUNNING"' not in lines[-1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room += len(lines.pop())
    start = len(content) - room
    os.pwrite(file, text, start)
    os.ftruncate(file, start + len(text))


def watch(path: str, pid: int, stdin: int = 0) -> None:
    """Wait for the other end of the pipe; add the last line unless the run, or its next start, has.

    Args:
        path: of the file.
        pid: of the run, as its first line has it.
        stdin: the pipe.
    """
    said = b""
    # A data-loading process may hold the pipe open for a while after the run has gone.
    while said != DONE and (part := os.read(stdin, 64)):
        said += part
    if said == DONE or not _is_open(path, pid):
        return
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    content = {"time": time, "status": "INTERRUPTED", "exit_code": None, "message": MESSAGE}
    append_end(path, json.dumps(content))


def _is_open(path: str, pid: int) -> bool:
    """Whether the newest start in the file is that of ``pid``, and has not ended."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in reversed(file.read().splitlines()):
            if '"status": "RUNNING"' in line:
                continue
            if '"status": "' in line:
                return '"status": "STARTED"' in line and json.loads(line).get("pid") == pid
    return False


if __name__ == "__main__":
    watch(sys.argv[1], int(sys.argv[2]))
