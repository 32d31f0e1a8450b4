# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Random generators of a process: kept apart, left as they were, and put into checkpoints."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm

logger = logging.getLogger(__name__)


def get_state() -> dict[str, Any]:
    """State of the generators of Python, NumPy and torch (CPU, and this process's GPU)."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_state(state: dict[str, Any]) -> None:
    """Go on from a state of :func:`get_state`."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def torch_states(device: torch.device) -> dict[str, torch.Tensor]:
    """States of torch's generators, by device type: of the CPU, and of the GPU if it is one."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_torch_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Go on from states of :func:`torch_states`."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def gather_states() -> list[dict[str, Any]]:
    """The states of all processes, in the main process; an empty list elsewhere."""
    return comm.gather(get_state())


def restore(states: list[dict[str, Any]] | None, steps_done: int) -> None:
    """Go on from the state that :func:`gather_states` found in this process.

    Without one, because the number of processes is another or the checkpoint is an old one, the
    generators are seeded anew, by the run's seed and the steps that are done.
    """
    if states and len(states) == comm.get_world_size():
        set_state(states[comm.get_rank()])
        return
    logger.warning(
        "the checkpoint holds random states of %d process(es), not of %d: dropout draws anew",
        len(states or ()),
        comm.get_world_size(),
    )
    seed = torch.initial_seed() + steps_done
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever is drawn inside, outside it has not been drawn."""
    state = get_state()
    try:
        yield
    finally:
        set_state(state)


class TorchStream:
    """A state of torch's CPU generator that is in force inside ``with`` only, and goes on there.

    For loading data in the process that trains: what the model draws does not depend on it.
    """

    def __init__(self) -> None:
        self.inside = torch.get_rng_state()

    def __enter__(self) -> None:
        self.outside = torch.get_rng_state()
        torch.set_rng_state(self.inside)

    def __exit__(self, *error: object) -> None:
        self.inside = torch.get_rng_state()
        torch.set_rng_state(self.outside)
