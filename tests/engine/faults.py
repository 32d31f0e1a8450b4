# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A detector and a mapper that break on demand, and runs that can be killed."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from detectron2.utils import comm

from detrex_mammo.engine.main import main
from detrex_mammo.errors import UserError, run_tool
from tests.engine.tiny import TinyDetector, TinyMapper, write_config


class FaultyDetector(TinyDetector):
    """Sends its own process, the last one, a signal in one training step.

    Args:
        signal_at: the step, counted in this start of the run.
        name: of the signal.
        gradient_is_finite: of the loss that becomes NaN at ``nan_at``.
        width: see there, as the rest.
        nan_at: see there.
        dropout: see there.
    """

    def __init__(
        self,
        signal_at: int = -1,
        name: str = "SIGTERM",
        gradient_is_finite: bool = False,
        width: int = 8,
        nan_at: int = -1,
        dropout: float = 0.0,
    ):
        super().__init__(width, nan_at, dropout)
        self.signal_at, self.name, self.done = signal_at, name, 0
        self.gradient_is_finite = gradient_is_finite
        if gradient_is_finite:
            self.nan_at, self.late_nan_at = -1, self.nan_at

    def forward(self, batch: list[dict]):
        is_last = comm.get_rank() == comm.get_world_size() - 1
        if self.training and is_last and self.done == self.signal_at:
            # As Slurm does: to those that load images too, and not by their parent.
            children = [str(child.pid) for child in multiprocessing.active_children()]
            if children:
                subprocess.run(["kill", f"-{self.name[3:]}", *children], check=True)
                time.sleep(0.2)
            os.kill(os.getpid(), getattr(signal, self.name))
        result = super().forward(batch)
        if self.training and self.gradient_is_finite and self.done == self.late_nan_at:
            result["loss_bbox"] = result["loss_bbox"] + torch.tensor(float("nan"))
        self.done += self.training
        return result


class FaultyMapper(TinyMapper):
    """Images of these numbers are unreadable; at ``die_at`` the process that loads dies.

    Args:
        unreadable: numbers of images.
        die_at: number of an image; -1 for none.
        fail_at: see there, as the rest.
        noise: see there.
    """

    def __init__(
        self,
        unreadable: tuple[int, ...] = (),
        die_at: int = -1,
        fail_at: int = -1,
        noise: float = 0.0,
    ):
        super().__init__(fail_at, noise)
        self.unreadable, self.die_at = unreadable, die_at

    def __call__(self, item: dict) -> dict:
        if item["image_id"] in self.unreadable:
            raise UserError(f"image_{item['image_id']}.png is damaged")
        if item["image_id"] == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(item)


def faulty_config(folder: Path, output: str = "run") -> str:
    """The tiny config with these two in it."""
    path = Path(write_config(folder, output))
    text = path.read_text().replace("TinyDetector)(", "FaultyDetector)(")
    text = text.replace("mapper=L(TinyMapper)(), total", "mapper=L(FaultyMapper)(), total")
    path.write_text("from tests.engine.faults import FaultyDetector, FaultyMapper\n" + text)
    return str(path)


def run(config: str, *arguments: str) -> None:
    main(["--config-file", config, *arguments])


def start(config: str, *arguments: str) -> int:
    """The tool in a process of its own, which is forked: it need not import torch again.

    Returns:
        int: its number.
    """
    torch.set_num_threads(1)
    child = os.fork()
    if child == 0:
        # As multiprocessing does in what it forks: the processes of the parent are not its own.
        multiprocessing.process._children.clear()
        gc.freeze()  # nor is what the tests before have left to the garbage collector, as loaders
        code = 1
        try:
            with open(os.devnull, "w") as sink:
                sys.stdout = sys.stderr = sink
                run_tool(lambda: run(config, *arguments))
        except SystemExit as ended:
            code = ended.code
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    """Wait for a process; negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
