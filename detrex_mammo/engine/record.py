# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""``run.json``: what a run ran on, how long and how fast; read by the model zoo and model card."""

import json
import resource
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from detrex_mammo.checkpoint.reading import file_sha256, source_sha256
from detrex_mammo.engine.integrity import replace_text
from detrex_mammo.engine.provenance import command_line, git_commit, package_versions
from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.hardware import describe_machine

NAME = "run.json"
WARM_UP_BATCHES = 5  # as detectron2's evaluation loop leaves out


class RunRecord(EventWriter):
    """Facts of a run that its other files do not tell, kept up to date while it goes on.

    ``sessions`` has one entry for each start of the run (a resumed run has several): command,
    commit, versions, machine, and, measured in the main process, seconds and peak memory.

    Args:
        folder: the run's output folder; nothing is written before :meth:`write`.
        device: "cuda" or "cpu".
        mode: "training" or "evaluation".
        resume: keep the sessions of an earlier start.

    Raises:
        UserError: the record of the earlier start is damaged.
    """

    def __init__(self, folder: Path, device: str, mode: str, resume: bool = False):
        self.path, self.device = folder / NAME, device
        self.start = time.perf_counter()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.session = {
            "mode": mode,
            "started": now(),
            "command": command_line(),
            "git_commit": git_commit(),
            "versions": package_versions(),
            "device": device,
            "processes": comm.get_world_size(),
            "machine": describe_machine(),
        }
        earlier = _read(self.path) if resume and self.path.exists() else {"sessions": []}
        self.content = {**earlier, "sessions": [*earlier["sessions"], self.session]}

    def add(self, **facts: Any) -> None:
        """Add facts beside the sessions, or replace them."""
        self.content.update(facts)

    def add_data(self, **splits: dict[str, str]) -> None:
        """Add the fingerprints of data: a split's annotation files by data set name."""
        self.content["data"] = {
            split: {
                name: {"file": file, "sha256": file_sha256(file)} for name, file in files.items()
            }
            for split, files in splits.items()
        }

    def write(self) -> None:
        """Write the file, whole or not at all; detectron2 calls this while training goes on."""
        if not comm.is_main_process():
            return
        self.session["seconds"] = round(time.perf_counter() - self.start, 3)
        self.session["peak_memory"] = peak_memory(self.device)
        replace_text(self.path, json.dumps(self.content, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content["sessions"], list):
            return content
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{str(path)!r} is damaged: remove it and resume again")


def describe_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint as named by the user, and its SHA-256 (of a folder, those of its files)."""
    return {"file": path, "sha256": source_sha256(path)}


def peak_memory(device: str) -> dict[str, Any]:
    """Most bytes this process has held so far, and of which memory."""
    if device == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated(), "of": "GPU memory"}
    unit = 1 if sys.platform == "darwin" else 1024
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"bytes": highest * unit, "of": "process memory"}


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class SpeedMeter:
    """Times a model in an evaluation loop, from outside; the first batches are not counted.

    Args:
        model: whose calls are timed; each takes a list of images.
        num_batches: of the loop; at least one is counted.
    """

    def __init__(self, model: nn.Module, num_batches: int):
        self.model = model
        self.warm_up = min(WARM_UP_BATCHES, max(num_batches - 1, 0))
        self.calls = self.images = self.largest_batch = 0
        self.in_model = self.called = 0.0
        self.begin = self.end = time.perf_counter()

    def __enter__(self) -> "SpeedMeter":
        self.handles = [
            self.model.register_forward_pre_hook(self._before),
            self.model.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _before(self, model: nn.Module, inputs: tuple) -> None:
        self.called = time.perf_counter()

    def _after(self, model: nn.Module, inputs: tuple, outputs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.end = time.perf_counter()
        self.calls += 1
        if self.calls <= self.warm_up:
            self.begin = self.end
            return
        self.images += len(inputs[0])
        self.largest_batch = max(self.largest_batch, len(inputs[0]))
        self.in_model += self.end - self.called

    def result(self) -> dict[str, Any]:
        """Images a second of one process: in the whole loop (with reading), in the model alone."""
        whole = self.end - self.begin
        return {
            "counted_images": self.images,
            "batch_size": self.largest_batch,
            "images_per_second": self.images / whole if whole > 0 else None,
            "model_images_per_second": self.images / self.in_model if self.in_model > 0 else None,
        }
