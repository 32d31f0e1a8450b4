# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The order of training images, as a sampler."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.utils import comm
from torch.utils.data import Sampler

from detrex_mammo.data.order import Order
from detrex_mammo.data.sampling import Sampling


class SeededSampler(Order, Sampler[int]):
    """An order that detectron2's own loader takes too: the images of this process, one by one.

    Args:
        dataset: records.
        seed: the same in every process.
        sampling: how often an image is shown; once in an epoch when None.
        start_iter: steps that are done: a resumed run sees what is still to come.
        total_batch_size: images of a step over all processes.
    """

    def __init__(
        self,
        dataset: Sequence[dict[str, Any]],
        seed: int,
        sampling: Sampling | None = None,
        start_iter: int = 0,
        total_batch_size: int = 1,
    ):
        super().__init__(dataset, seed, sampling, start_iter)
        self.start = start_iter * total_batch_size

    def __iter__(self) -> Iterator[int]:
        first = self.start % self.length + comm.get_rank()
        row = (self.epoch(number) for number in itertools.count(self.start // self.length))
        images = itertools.chain.from_iterable(row)
        yield from map(int, itertools.islice(images, first, None, comm.get_world_size()))
