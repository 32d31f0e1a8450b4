# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Progress of long loops: lines where nobody looks, a bar on a terminal, never on stdout."""

import ast
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from detrex_mammo import progress
from detrex_mammo.progress import Progress, counted, describe

ROOT = Path(progress.__file__).resolve().parents[1]


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock that stands still until the test moves it."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_file_gets_a_line_now_and_then(clock, capsys) -> None:
    """Forty images of 1 s: a line when 15 s have gone, again at 30, and one at the end."""
    for _ in counted(range(40), "evaluation"):
        clock[0] += 1
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err
    assert err.splitlines() == [
        "evaluation: 15 of 40 images in 00:15, 1 images/s, 00:25 left",
        "evaluation: 30 of 40 images in 00:30, 1 images/s, 00:10 left",
        "evaluation: 40 of 40 images in 00:40, 1 images/s",
    ]


def test_a_short_loop_says_nothing_and_all_items_come(clock, capsys) -> None:
    assert list(counted(iter("abc"), "letters", unit="letter")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_without_a_total_and_in_bytes(clock) -> None:
    loop = Progress("reading", None, "B")
    loop.update(3_000_000)
    assert describe(loop, 2.0) == "reading: 3.00M B in 00:02, 1.50M B/s"
    assert describe(Progress("x", 5), 0.0) == "x: 0 of 5 images in 00:00"


def test_lines_go_where_they_are_told_and_none_is_shown_if_so_wished(clock, capsys) -> None:
    told: list[str] = []
    for shown in (True, False):
        with Progress("mine", 2, is_shown=shown, tell=told.append) as loop:
            clock[0] += 20
            loop.update()
    assert [line[:16] for line in told] == [
        "mine: 1 of 2 ima"
    ] * 2 and capsys.readouterr().err == ""


def test_an_error_ends_it_without_a_word(clock, capsys) -> None:
    with pytest.raises(KeyError), Progress("mine", 9) as loop:
        clock[0] += 20
        loop.update()
        raise KeyError
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_other_processes_of_a_run_are_silent(clock, capsys, monkeypatch) -> None:
    import torch.distributed as dist

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    for rank, lines in ((1, 0), (0, 2)):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        for _ in counted(range(2), "mine"):
            clock[0] += 10
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_without_stderr_nothing_breaks(clock, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    begin = clock[0]
    for _ in counted(range(2), "mine"):
        clock[0] += 20  # a line is due
    assert clock[0] == begin + 40


BAR = """
import time
from detrex_mammo.progress import counted
for _ in counted(range(8), "mine"):
    time.sleep(0.15)
print("done")
"""


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    """A real pseudo terminal for stderr; stdout is a pipe."""
    above, below = pty.openpty()
    fcntl.ioctl(below, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", BAR], stdout=subprocess.PIPE, stderr=below, cwd=ROOT
    )
    os.close(below)
    shown = io.BytesIO()
    try:
        while part := os.read(above, 4096):
            shown.write(part)
    except OSError:  # the other end is closed
        pass
    os.close(above)
    text = shown.getvalue().decode()
    assert process.communicate()[0] == b"done\n" and process.returncode == 0
    assert "mine:" in text and "/8 [" in text and "image/s" in text
    assert text.endswith("\r") and text.rstrip("\r").rpartition("\r")[2].strip() == ""


def test_there_is_one_way_to_show_progress() -> None:
    """Nobody else imports tqdm."""
    users = []
    for file in sorted([*ROOT.glob("detrex_mammo/**/*.py"), *ROOT.glob("tools/*.py")]):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            module = getattr(node, "module", "") if isinstance(node, ast.ImportFrom) else ""
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [module or ""]
            users += [file.name for name in names if name.split(".")[0] in ("tqdm", "rich")]
    assert users == ["progress.py"]
