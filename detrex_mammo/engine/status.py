# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""``status.json``: what a run is doing, one JSON object a line, for programs that watch it.

Every start of a run leaves STARTED, RUNNING (one per log period and per evaluation) and exactly one
of SUCCESS, FAILURE and INTERRUPTED, however it ends: a process of its own (status_watch.py) adds
the last line for a run that was killed. Numbers are numbers; one that is not finite is null.
"""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from detrex_mammo.engine import status_watch
from detrex_mammo.engine.evaluation import Evaluation, flatten
from detrex_mammo.engine.record import now, peak_memory
from detrex_mammo.engine.supervision import LOST_SENTENCE, is_lost_connection
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
NAME = "status.json"
SUCCESS, FAILURE, INTERRUPTED = "SUCCESS", "FAILURE", "INTERRUPTED"
ENDS = (SUCCESS, FAILURE, INTERRUPTED)
FIRST_SIGNAL = 128  # a process that a signal ends has this exit code plus the signal's number


class StatusFile:
    """Appends to a run's ``status.json``; a full disk is logged once and never breaks the run.

    Args:
        folder: of the run, which is there.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self.is_broken = False

    def write(self, status: str, **facts: Any) -> None:
        """Append one line, in one piece."""
        try:
            line = json.dumps({"time": now(), "status": status, **_plain(facts)}, allow_nan=False)
            put = status_watch.append_end if status in ENDS else status_watch.append
            put(str(self.path), line)
            self.is_broken = False
        except (OSError, ValueError, TypeError) as error:
            if not self.is_broken:
                logger.warning("%s is not written, the run goes on: %s", self.path, error)
            self.is_broken = True

    def lines(self) -> list[dict[str, Any]]:
        """What has been written, oldest first; a line that was cut short is left out."""
        return read_status(self.path)


def read_status(path: Path) -> list[dict[str, Any]]:
    """Lines of a ``status.json``; none if there is no such file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            found.append(content)
    return found


@contextmanager
def reported(folder: Path, mode: str, **facts: Any) -> Iterator[dict[str, Any]]:
    """Report the start of a run and, whatever happens inside, its end; in the main process.

    Args:
        folder: of the run, which is there.
        mode: "training" or "evaluation".
        facts: more for the first line.

    Yields:
        dict: what is put into it goes into the last line.
    """
    last: dict[str, Any] = {}
    if not comm.is_main_process():
        yield last
        return
    status = StatusFile(folder)
    earlier = status.lines()
    if earlier and earlier[-1].get("status") not in ENDS:
        status.write(INTERRUPTED, message=status_watch.MESSAGE)  # its watcher was killed too
    start = time.perf_counter()
    status.write("STARTED", mode=mode, processes=comm.get_world_size(), pid=os.getpid(), **facts)
    watcher = _watch(status.path)
    end: dict[str, Any] = {"status": SUCCESS, "exit_code": 0, "message": f"{mode} is done"}
    try:
        yield last
    except BaseException as error:
        end = describe_end(error)
        raise
    finally:
        status.write(**end, seconds=round(time.perf_counter() - start, 3), **last)
        _release(watcher)


def describe_end(error: BaseException) -> dict[str, Any]:
    """How a run ends by an exception: ``status``, ``exit_code`` and ``message``."""
    message = " ".join(str(error).split())
    if isinstance(error, UserError):
        return {"status": FAILURE, "exit_code": 2, "message": message}
    if isinstance(error, KeyboardInterrupt):
        code = FIRST_SIGNAL + signal.SIGINT
        return {"status": INTERRUPTED, "exit_code": code, "message": "interrupted by Ctrl-C"}
    if isinstance(error, SystemExit):
        return _describe_exit(error.code)
    if isinstance(error, RuntimeError) and is_lost_connection(error):
        message = f"the main process {LOST_SENTENCE}"  # the other one's exit code counts
        return {"status": FAILURE, "exit_code": None, "message": message}
    message = f"{type(error).__name__}: {message}".rstrip(": ")
    return {"status": FAILURE, "exit_code": 1, "message": message[:2000]}


def _describe_exit(code: Any) -> dict[str, Any]:
    code = code if isinstance(code, int) else int(code is not None)
    if code == 0:
        return {"status": SUCCESS, "exit_code": 0, "message": "ended"}
    if code <= FIRST_SIGNAL:
        return {"status": FAILURE, "exit_code": code, "message": f"ended with exit code {code}"}
    try:
        name = signal.Signals(code - FIRST_SIGNAL).name
    except ValueError:
        name = str(code - FIRST_SIGNAL)
    return {"status": INTERRUPTED, "exit_code": code, "message": f"ended by signal {name}"}


def _watch(path: Path) -> subprocess.Popen | None:
    """Start the process that writes the last line if this one cannot."""
    command = [sys.executable, "-I", "-S", status_watch.__file__, str(path.resolve())]
    command.append(str(os.getpid()))
    try:
        # A session of its own: Ctrl-C and signals to the process group do not reach it.
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        logger.warning("a kill of this run will not be in %s: %s", path, error)
        return None


def _release(watcher: subprocess.Popen | None) -> None:
    if watcher is None:
        return
    try:
        watcher.communicate(status_watch.DONE, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        watcher.kill()
        watcher.wait()


class StatusHook(HookBase):
    """One line per log period and one, with ``kpi``, per evaluation; register it after that hook.

    Args:
        folder: of the run.
        iters_per_epoch: steps per epoch.
        period: steps between two lines.
        evaluation: of the run, if it has one.
    """

    def __init__(
        self,
        folder: Path,
        iters_per_epoch: int,
        period: int,
        evaluation: Evaluation | None = None,
    ):
        self.status = StatusFile(folder)
        self.iters_per_epoch, self.period = iters_per_epoch, period
        self.evaluation = evaluation
        self.seen = evaluation.results if evaluation else None
        self.last_step = -1

    def before_train(self) -> None:
        """Report the evaluation that an earlier start owed, if it was made now."""
        self._report_evaluation(self.trainer.start_iter)

    def after_step(self) -> None:
        """Report the step if it is time, and an evaluation if there was one."""
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.trainer.max_iter:
            self._report_step()
        self._report_evaluation(done)

    def after_train(self) -> None:
        """Report the evaluation after the last step."""
        self._report_evaluation(self.trainer.iter)

    def _report_step(self) -> None:
        storage = self.trainer.storage
        known = storage.histories()
        _, step = storage.latest().get("total_loss", (0.0, -1))
        if step <= self.last_step:
            return
        self.last_step, done = step, step + 1
        facts: dict[str, Any] = self._place(done)
        facts |= dict.fromkeys(("eta_seconds", "seconds_per_step", "data_seconds_per_step"))
        if "time" in known:  # detectron2 does not time the first steps
            facts["eta_seconds"] = known["time"].median(1000) * (self.trainer.max_iter - done)
            facts["seconds_per_step"] = known["time"].median(self.period)
        if "data_time" in known:
            facts["data_seconds_per_step"] = known["data_time"].median(self.period)
        for name in ("lr", "grad_norm"):
            if name in known:
                facts[name] = known[name].latest()
        facts["losses"] = {
            name: known[name].median(self.period)
            for name, (_, at) in storage.latest().items()
            if "loss" in name and "/" not in name and at == step
        }
        device = "cuda" if torch.cuda.is_initialized() else "cpu"
        facts["peak_memory_bytes"] = peak_memory(device)["bytes"]
        self.status.write("RUNNING", **facts)

    def _report_evaluation(self, done: int) -> None:
        results = self.evaluation.results if self.evaluation else None
        if results is self.seen or not results:
            return
        self.seen = results
        self.status.write("RUNNING", **self._place(done), kpi=flatten(results))

    def _place(self, done: int) -> dict[str, Any]:
        epoch = round(done / self.iters_per_epoch, 4)
        return {"iteration": done, "max_iter": self.trainer.max_iter, "epoch": epoch}


def _plain(value: Any) -> Any:
    """Numbers as Python's own, what is not finite as None, anything unknown as text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
