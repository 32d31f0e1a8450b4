# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The folder ``nan_step_N``: all that a step needed, to run it again by tools/replay_batch.py.

Plain data only (tensors, numbers, texts), so reading it runs nothing.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from detrex_mammo.engine.accumulation import Kept
from detrex_mammo.engine.checkpointer import RunCheckpointer

logger = logging.getLogger(__name__)
STATE, CONFIG, FACTS = "state.pth", "config.yaml", "step.json"


class NanDump:
    """Writes the folder of a step; each process its batches, the main one all the rest.

    Args:
        folder: of the run.
        checkpointer: of the run: weights and what describes them.
        config_text: the run's config.yaml.
        amp_dtype: of autocast; None for full precision.
    """

    def __init__(
        self,
        folder: Path,
        checkpointer: RunCheckpointer,
        config_text: str,
        amp_dtype: torch.dtype | None,
    ):
        self.folder, self.checkpointer, self.config_text = folder, checkpointer, config_text
        self.amp = "" if amp_dtype is None else str(amp_dtype).removeprefix("torch.")

    def __call__(self, step: int, kept: Sequence[Kept], bad: Mapping[str, float]) -> str:
        """Write; a disk that does not take it is logged.

        Args:
            step: number of the step.
            kept: small batches of this process that may be the reason.
            bad: the losses and the norm that are not finite.

        Returns:
            str: the folder, "" if nothing could be written.
        """
        place = self.folder / f"nan_step_{step}"
        weights = self.checkpointer.weights()  # all processes take part
        try:
            place.mkdir(parents=True, exist_ok=True)
            batches = [{"items": pack(list(one.items)), "rng": one.rng} for one in kept]
            torch.save({"batches": batches}, place / batch_name(comm.get_rank()))
            if comm.is_main_process():
                self._write_state(place, step, bad, weights)
        except (OSError, RuntimeError) as error:
            logger.warning("the batch of step %d is not kept: %s", step, error)
            return ""
        return str(place)

    def _write_state(
        self, place: Path, step: int, bad: Mapping[str, float], weights: Mapping[str, Any]
    ) -> None:
        torch.save({"model": weights, **self.checkpointer.describe()}, place / STATE)
        (place / CONFIG).write_text(self.config_text, encoding="utf-8")
        facts = {
            "step": step,
            "processes": comm.get_world_size(),
            "amp": self.amp,
            "not_finite": {name: str(value) for name, value in bad.items()},
        }
        (place / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def batch_name(rank: int) -> str:
    """File of the batches of one process."""
    return f"batch_{rank}.pth"


def pack(value: Any) -> Any:
    """A batch as plain data; what has no plain form becomes text."""
    if isinstance(value, Instances):
        fields = {name: pack(field) for name, field in value.get_fields().items()}
        return {"_instances": fields, "image_size": list(value.image_size)}
    if isinstance(value, Boxes):
        return {"_boxes": value.tensor.detach().cpu()}
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {str(name): pack(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [pack(item) for item in value]
    if hasattr(value, "item") and getattr(value, "size", 0) == 1:
        return value.item()  # a NumPy number
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def unpack(value: Any) -> Any:
    """What :func:`pack` was given, but for tuples and what became text."""
    if isinstance(value, dict) and "_instances" in value:
        fields = {name: unpack(field) for name, field in value["_instances"].items()}
        return Instances(tuple(value["image_size"]), **fields)
    if isinstance(value, dict) and "_boxes" in value:
        return Boxes(value["_boxes"])
    if isinstance(value, dict):
        return {name: unpack(item) for name, item in value.items()}
    return [unpack(item) for item in value] if isinstance(value, list) else value
