# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""SIGTERM and SIGUSR1 (Slurm, before a job's time is up): save after the step, and leave.

The exit code is 128 + the signal's number: 143 after SIGTERM, 138 after SIGUSR1. ``--resume`` goes
on from that very step. Where there is nothing to save, and in an evaluation, which the resumed run
makes again, a run does not wait for the end of what it does.

Processes that work together leave together: each looks in its loops whether any has been asked to
(:meth:`Signals.is_asked`), and all meet where the loop ends (:func:`leave_if_asked`).
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import distributed as dist

from detrex_mammo.data.loader import SIGNALS
from detrex_mammo.engine.checkpointer import RunCheckpointer

logger = logging.getLogger(__name__)
LOOK_SECONDS = 1.0  # between two looks whether another process has been asked to leave
_KEY = "detrex_mammo/leaving"  # in the store that the processes share
_entered: list["Signals"] = []


class Interrupted(SystemExit):
    """A run that was asked to leave, and has saved itself.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number


class Signals:
    """Remembers a signal instead of ending the process, inside ``with``.

    Only the main thread can; elsewhere nothing is changed. A process that is forked inside, to load
    images, does nothing about it.

    Args:
        at_once: leave where the signal finds the process.

    Attributes:
        received: number of the signal; 0 for none so far.
        has_left: something was left unfinished for it, once.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.received, self.has_left = 0, False
        self._may_leave: Callable[[], bool] = lambda: at_once
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._looked = 0.0

    def __enter__(self) -> "Signals":
        _entered.append(self)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        _entered.remove(self)

    def _remember(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return
        self.received = max(self.received, int(number))
        if not self.has_left and self._may_leave():
            self.has_left = True  # a second signal must not disturb the leaving
            raise Interrupted(self.received)

    @contextmanager
    def leaving_at_once(self, may_leave: Callable[[], bool]) -> Iterator[None]:
        """Inside, a signal ends the work where it stands if the function says so when it comes."""
        before, self._may_leave = self._may_leave, may_leave
        try:
            yield
        finally:
            self._may_leave = before

    def is_asked(self) -> bool:
        """Whether this process or another has got a signal; for loops, costs next to nothing."""
        if comm.get_world_size() == 1:
            return self.received > 0
        if self.received:
            _store().set(_KEY, str(self.received))
            return True
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        return _store().check([_KEY])


def current() -> Signals:
    """The innermost :class:`Signals` that is in force; one that hears nothing if there is none."""
    return _entered[-1] if _entered else Signals()


def leave_if_asked() -> None:
    """Leave if any process was asked to; every process comes here.

    Raises:
        Interrupted: in all of them.
    """
    signals = current()
    number = max(comm.all_gather(signals.received))
    if number:
        signals.has_left = True
        raise Interrupted(number)


@contextmanager
def main_process_works() -> Iterator[None]:
    """For work that the main process ends alone, such as scoring, while the others wait for it.

    Every process comes in and out. A signal to the main process ends the work once the others
    wait at the end, that is: when nobody waits for a message out of the work itself.

    Raises:
        Interrupted: at the end and in all processes, if any was asked to leave.
    """
    world, rank = comm.get_world_size(), comm.get_rank()
    _Meeting.count += 1
    place = f"{_KEY}/{_Meeting.count}"
    others = [f"{place}/{other}" for other in range(1, world)]
    may_leave = (lambda: not others or _store().check(others)) if rank == 0 else (lambda: False)
    try:
        with current().leaving_at_once(may_leave):
            yield
    except Interrupted:
        pass  # all hear of it below
    if rank > 0:
        _store().set(f"{place}/{rank}", "1")
    leave_if_asked()


class _Meeting:
    """Tells meetings apart; all processes have been to equally many."""

    count = 0


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()


class SaveAndLeave(HookBase):
    """Ends the run once any process has got a signal; register it right after the checkpoints.

    All processes learn of it together, with the losses of a step. A run that an error ends (NaN in
    the losses, an image that cannot be read, an evaluation) is saved as well, as the last whole
    step has left it, if all processes know of the error.

    Args:
        checkpointer: of the run.
    """

    def __init__(self, checkpointer: RunCheckpointer):
        self.checkpointer = checkpointer

    def after_step(self) -> None:
        """Save and leave, if it is time.

        Raises:
            Interrupted: in every process, when the checkpoint is on the disk.
        """
        self.trainer.unfinished = (self.trainer.iter + 1, None)
        if not self.trainer.is_interrupted:
            return
        number = max(comm.all_gather(self.trainer.signals.received))
        self._save()
        comm.synchronize()  # nobody leaves before the file is there
        name = signal.Signals(number).name
        logger.warning("%s: saved after step %d, leaving", name, self.trainer.iter)
        raise Interrupted(number)

    def after_train(self) -> None:
        """Save the step whose evaluation was left, unless it is one of an earlier start."""
        trainer = self.trainer
        if trainer.unfinished is not None:
            self._save_step_before(*trainer.unfinished)
        if not trainer.signals.has_left:
            return
        logger.warning("the evaluation is left, --resume makes it again")
        if trainer.start_iter <= trainer.iter < trainer.max_iter:
            self._save()
            comm.synchronize()  # nobody leaves before the file is there

    def _save_step_before(self, step: int, take_back: Callable[[], None] | None) -> None:
        """What the step before left, after an error that has changed nothing of it."""
        trainer = self.trainer
        fail_together = comm.get_world_size() == 1 or trainer.nan.has_stopped
        if not fail_together or step <= trainer.start_iter:
            return
        now, trainer.iter = trainer.iter, step - 1
        try:
            if take_back is not None:
                take_back()
            self._save()
            comm.synchronize()  # nobody leaves before the file is there
        except Exception as error:  # the disk's or a broken device's: the first one is the reason
            logger.warning("step %d is not saved: %s", step - 1, error)
        trainer.iter = now

    def _save(self) -> None:
        step = self.trainer.iter
        if self.checkpointer.last_saved != step:
            self.checkpointer.save(f"model_{step:07d}", iteration=step)
