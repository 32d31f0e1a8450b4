# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Checkpoints of a run: everything needed to go on, evaluate or predict, in one file."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from detrex_mammo.checkpoint.loading import load_weights
from detrex_mammo.checkpoint.reading import read_checkpoint, weights_of
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
BEST = "model_best"


class RunCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer with our contents, whole files only, and strict loading.

    Args:
        model (nn.Module): wrapped in DistributedDataParallel or not.
        save_dir (str): the run's output folder.
        describe: returns what else goes into the file: ``config``, ``classes``,
            ``preprocessing``, ``provenance``; called at each save.
        checkpointables: objects with ``state_dict`` and ``load_state_dict``, such as ``trainer``.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str,
        describe: Callable[[], dict[str, Any]] = dict,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, save_to_disk=comm.is_main_process(), **checkpointables)
        self.describe = describe
        self.last_saved: int | None = None  # iteration of the newest checkpoint of this start

    def save(self, name: str, **extra: Any) -> None:
        """Write ``name.pth``, to resume from; every process takes part, the main one writes."""
        self.last_saved = extra.get("iteration")
        content = {key: item.state_dict() for key, item in self.checkpointables.items()}
        if self._write(name, {**content, **extra}):
            self.tag_last_checkpoint(f"{name}.pth")

    def save_best(self, **best: Any) -> None:
        """Write ``model_best.pth``: no state to resume from, but how good it is, as ``best``."""
        self._write(BEST, {"best": best})

    def best(self) -> dict[str, Any] | None:
        """What :meth:`save_best` was told last, in this start of the run or an earlier one."""
        path = Path(self.save_dir) / f"{BEST}.pth"
        return read_checkpoint(str(path)).get("best") if path.is_file() else None

    def _write(self, name: str, more: dict[str, Any]) -> bool:
        """Write weights and ``more`` so that a kill at any point leaves a whole file behind."""
        if not self.save_dir or not self.save_to_disk:
            return False
        content = {"model": self.model.state_dict(), **self.describe(), **more}
        target = Path(self.save_dir) / f"{name}.pth"
        partial = target.with_suffix(".pth.partial")
        with open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
        logger.info("saved %s", target)
        return True

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Point ``last_checkpoint`` at a file, in one step."""
        tag = Path(self.save_dir) / "last_checkpoint"
        partial = tag.with_suffix(".partial")
        partial.write_text(last_filename_basename)
        os.replace(partial, tag)

    def keep_newest(self, count: int) -> None:
        """Delete all but the newest ``count`` periodic checkpoints, earlier starts included."""
        if not self.save_to_disk or count <= 0:
            return
        for old in sorted(Path(self.save_dir).glob("model_" + "[0-9]" * 7 + ".pth"))[:-count]:
            old.unlink()

    def newest(self) -> dict[str, Any] | None:
        """The content of the folder's newest checkpoint; None if there is none."""
        return read_checkpoint(self.get_checkpoint_file()) if self.has_checkpoint() else None

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Load all that :meth:`newest` read: weights and the state of every checkpointable."""
        path = self.get_checkpoint_file()
        load_weights(self.model, weights_of(checkpoint, path), path)
        for key, item in self.checkpointables.items():
            try:
                item.load_state_dict(checkpoint[key])
            except (ValueError, KeyError) as error:
                raise UserError(
                    f"{key} state of checkpoint {path!r} does not fit this config ({error}): "
                    "resume with the config it was written by"
                ) from error
        logger.info("resumed from %s", path)
