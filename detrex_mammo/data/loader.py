# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The training loader: what a step sees depends on seed and step alone.

The augmentation of an image is seeded from its place in the run, so that neither the number of
workers nor an interruption changes a pixel.
"""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from detrex_mammo.data.batching import Batches, nominal_sizes
from detrex_mammo.data.order import Order
from detrex_mammo.data.sampling import Sampling
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)


def build_train_loader(
    dataset: Sequence[dict[str, Any]],
    mapper: Callable[[dict[str, Any]], Any],
    total_batch_size: int,
    sampling: Sampling | None = None,
    sampler: Order | None = None,
    num_workers: int = 4,
    prefetch_factor: int = 2,
    token_budget: float | None = None,
    max_padding: float = 0.1,
    sort_window: int = 256,
) -> DataLoader:
    """Endless loader of this process's batches, each a list of what the mapper returns.

    Args:
        dataset: records.
        mapper: record to model input; with ``nominal_size(record) -> (height, width)`` batches are
            made by the sizes that the network sees, else by those of the original images. Random
            scaling adds padding that no plan knows.
        total_batch_size: images of a step over all processes, or, with a token budget, the most.
        sampling: how often an image is shown; once in an epoch when None.
        sampler: the order of images, seed and start of the run; a tool that trains gives it, with
            the sampling in it. None starts at the beginning, with seed 0.
        num_workers: processes that load images; 0 loads them in this one.
        prefetch_factor: batches that each of them holds ready.
        token_budget: see :class:`detrex_mammo.data.batching.Batches`.
        max_padding: see there.
        sort_window: see there.

    Raises:
        UserError: a setting is not possible or does not fit the dataset.
    """
    order = Order(dataset, 0, sampling) if sampler is None else sampler
    if not isinstance(order, Order):
        raise UserError(
            f"dataloader.train.sampler is a {type(order).__name__}, but this loader needs an order "
            "that can be entered anywhere: leave it out and set dataloader.train.sampling"
        )
    batches = Batches(
        order,
        nominal_sizes(dataset, mapper),
        total_batch_size,
        token_budget,
        max_padding,
        sort_window,
        comm.get_rank(),
        comm.get_world_size(),
    )
    logger.info("training batches: %s", batches.describe())
    # A list is serialised, so that workers share it instead of copying it bit by bit.
    records = DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset
    return DataLoader(
        SeededMap(records, mapper),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_as_list,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=prefetch_factor if num_workers else None,
        # Of its own: the model's random numbers do not depend on how images are loaded.
        generator=torch.Generator().manual_seed(order.seed),
    )


class SeededMap(Dataset):
    """Records through a mapper whose random numbers come from a seed.

    Args:
        dataset: records.
        mapper: record to model input; may use Python's, NumPy's and torch's random numbers.
    """

    def __init__(self, dataset: Sequence[dict[str, Any]], mapper: Callable[[dict[str, Any]], Any]):
        self.dataset, self.mapper = dataset, mapper

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        """Map an image.

        Args:
            place: its index, and the seed.
        """
        index, seed = place
        with seeded(seed):
            return self.mapper(self.dataset[index])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch on the CPU; afterwards they go on as if nothing had been."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch the GPU's, too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _as_list(batch: list[Any]) -> list[Any]:
    return batch
