# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A function in a process of its own: its answer, its failures, its environment."""

import json
import os
import signal
import subprocess
from types import SimpleNamespace

import pytest

from detrex_mammo.benchmark import child
from detrex_mammo.benchmark.child import ChildError, in_child
from detrex_mammo.benchmark.units import quantity_text


def test_answer_of_another_process() -> None:
    assert in_child(quantity_text, value=0.5, unit="s") == "500 ms"


def test_an_error_is_its_last_line() -> None:
    with pytest.raises(ChildError, match="KeyError: 'furlong'"):
        in_child(quantity_text, value=0.5, unit="furlong")


def test_command_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def run(command, **options):
        calls.append((command, options))
        return SimpleNamespace(returncode=0, stdout="said by a library\n[1, 2]\n", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    assert in_child(quantity_text, {"A": "b"}, value=1) == [1, 2]
    ((command, options),) = calls
    assert command[-3:] == ["detrex_mammo.benchmark.units", "quantity_text", '{"value": 1}']
    assert options["env"] == {**os.environ, "A": "b"}


@pytest.mark.parametrize(
    ("number", "text"),
    [(signal.SIGKILL, "killed by SIGKILL .out of memory"), (signal.SIGSEGV, "killed by SIGSEGV$")],
)
def test_a_killed_process_is_named(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, text: str
) -> None:
    done = SimpleNamespace(returncode=-number, stdout="", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(ChildError, match=text):
        in_child(quantity_text)


def test_a_process_that_never_ends_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ChildError, match="longer than 1800 s"):
        in_child(quantity_text)


def test_main_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    child.main("detrex_mammo.benchmark.units", "quantity_text", '{"value": 2.0, "unit": "s"}')
    assert json.loads(capsys.readouterr().out) == "2.00 s"
