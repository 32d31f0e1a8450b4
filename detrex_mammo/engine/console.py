# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Progress on the console: one short line with what is left, the loss and the speed."""

import datetime
import logging

import torch
from detectron2.utils.events import EventWriter, get_event_storage

from detrex_mammo.engine.record import peak_memory
from detrex_mammo.engine.summary import format_bytes

logger = logging.getLogger(__name__)
_MAIN_LOSSES = ("total_loss", "loss_class", "loss_bbox", "loss_giou", "grad_norm")


class ConsoleWriter(EventWriter):
    """Print step, epoch, remaining time, main losses, speed and memory.

    Auxiliary losses are in metrics.json and TensorBoard.

    Args:
        max_iter (int): steps of the run.
        iters_per_epoch (int): steps per epoch.
        window_size (int): losses are the median over so many steps.
    """

    def __init__(self, max_iter: int, iters_per_epoch: int, window_size: int = 20):
        self.max_iter = max_iter
        self.iters_per_epoch = iters_per_epoch
        self.window_size = window_size
        self.last_step = -1

    def write(self) -> None:
        """Print one line about the newest step that was finished, once."""
        storage = get_event_storage()
        _, step = storage.latest().get("total_loss", (0.0, -1))
        if step <= self.last_step:
            return
        self.last_step, done = step, step + 1
        known = storage.histories()
        parts = [f"step {done}/{self.max_iter}  epoch {done / self.iters_per_epoch:.2f}"]
        if "time" in known:
            left = known["time"].median(1000) * (self.max_iter - done)
            parts.append(f"eta {datetime.timedelta(seconds=int(left))}")
        for name in _MAIN_LOSSES:
            if name in known:
                parts.append(f"{name} {known[name].median(self.window_size):.4g}")
        if "lr" in known:
            parts.append(f"lr {known['lr'].latest():.3g}")
        if "time" in known:
            seconds = known["time"].median(self.window_size)
            waiting = known["data_time"].median(self.window_size) if "data_time" in known else 0.0
            parts.append(f"{seconds:.3g} s/step ({waiting:.2g} waiting for data)")
        peak = peak_memory("cuda" if torch.cuda.is_initialized() else "cpu")
        parts.append(f"{format_bytes(peak['bytes'])} peak")
        logger.info("  ".join(parts))
