# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The order of training images, a function of seed and step alone."""

import itertools
from collections.abc import Iterator

from detectron2.data.samplers import TrainingSampler


class SeededSampler(TrainingSampler):
    """detectron2's endless shuffle, entered anywhere: a resumed run sees what is still to come.

    Args:
        size (int): images.
        seed (int): the same in every process.
        start (int): images that all processes together have had.
    """

    def __init__(self, size: int, seed: int, start: int = 0):
        super().__init__(size, shuffle=True, seed=seed)
        self.start = start

    def __iter__(self) -> Iterator[int]:
        first = self.start + self._rank
        yield from itertools.islice(self._infinite_indices(), first, None, self._world_size)
