# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""SIGTERM and SIGUSR1 (Slurm, before a job's time is up): save after the step, and leave.

The exit code is 128 + the signal's number: 143 after SIGTERM, 138 after SIGUSR1. ``--resume`` goes
on from that very step.
"""

import logging
import signal
import threading
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from detrex_mammo.engine.checkpointer import RunCheckpointer

logger = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


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

    Only the main thread can; elsewhere nothing is changed.

    Attributes:
        received: number of the signal; 0 for none so far.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _remember(self, number: int, frame: Any) -> None:
        self.received = max(self.received, int(number))


class SaveAndLeave(HookBase):
    """Ends the run once any process has got a signal; register it right after the checkpoints.

    All processes learn of it together, with the losses of a step.

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
        if not self.trainer.is_interrupted:
            return
        number = max(comm.all_gather(self.trainer.signals.received))
        step = self.trainer.iter
        if self.checkpointer.last_saved != step:
            self.checkpointer.save(f"model_{step:07d}", iteration=step)
        comm.synchronize()  # nobody leaves before the file is there
        logger.warning("%s: saved after step %d, leaving", signal.Signals(number).name, step)
        raise Interrupted(number)
