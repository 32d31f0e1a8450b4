# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The endless row of a run's training images, a function of seed and position alone.

N images, L images in an epoch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from detrex_mammo.data.columns import columns_of
from detrex_mammo.data.sampling import Sampling
from detrex_mammo.errors import UserError

_ORDER, _SAMPLE = 1, 2  # random numbers of one purpose tell nothing about those of another


class Order:
    """Epoch after epoch of a dataset, each in an order of its own, to be entered anywhere.

    Args:
        dataset: records; N of them.
        seed: the same in every process.
        sampling: how often an image is shown; once in an epoch when None.
        start_iter: steps of the run that are done.

    Raises:
        UserError: a rule of the sampling does not fit the dataset, or leaves no image.
    """

    def __init__(
        self,
        dataset: Sequence[dict[str, Any]],
        seed: int,
        sampling: Sampling | None = None,
        start_iter: int = 0,
    ):
        self.seed, self.start_iter = seed, start_iter
        self.sampling = sampling or Sampling()
        own = getattr(dataset, "dataset_weights", None)
        if own and self.sampling.dataset_weights is None:
            self.sampling = self.sampling.with_dataset_weights(own)
        # The dataset itself is not kept: a loader may hold it in another form.
        self._num_images = len(dataset)
        self._columns = None if self.sampling.is_plain else columns_of(dataset)
        self.length = round(float(self._repeats(0).sum()))
        if self.length < 1:
            raise UserError("dataloader.train.sampling leaves no image to train on: change it")

    def _repeats(self, epoch: int) -> np.ndarray:
        if self._columns is None:
            return np.ones(self._num_images)
        return self.sampling.repeats(self._columns, epoch)

    def epoch(self, number: int) -> np.ndarray:
        """Images of one epoch: (L,) int64."""
        rng = np.random.default_rng((self.seed, _ORDER, number))
        counts = round_to_total(self._repeats(number), self.length, rng)
        return rng.permutation(np.repeat(np.arange(len(counts)), counts))

    def images(self, first: int, stop: int) -> np.ndarray:
        """Images at the positions ``first`` to ``stop - 1`` of the row."""
        begin, end = first // self.length, -(-stop // self.length)
        row = [self.epoch(number) for number in range(begin, end)] or [np.empty(0, np.int64)]
        offset = begin * self.length
        return np.concatenate(row)[first - offset : stop - offset]


def sample_seed(seed: int, position: int) -> int:
    """Seed of the augmentation of the image at a position of a run, in [0, 2**32)."""
    return int(np.random.SeedSequence((seed, _SAMPLE, position)).generate_state(1)[0])


def round_to_total(repeats: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Round (N,) expected counts up or down so that they sum to ``total``; whole ones stay.

    Systematic sampling: on a line on which each image, in random order, has the length of its
    fraction, every whole number (shifted at random) that falls on an image adds one to its count.

    Args:
        repeats: (N,) at least 0.
        total: the rounded sum of the repeats.

    Returns:
        ndarray: (N,) int64.
    """
    nearest = np.rint(repeats)
    repeats = np.where(np.abs(repeats - nearest) < 1e-9, nearest, repeats)
    counts = np.floor(repeats).astype(np.int64)
    places = rng.permutation(len(repeats))
    line = np.cumsum((repeats - counts)[places])
    missing = total - counts.sum()
    # The shifts with which the line holds that many whole numbers.
    low, high = max(0.0, missing - line[-1]), min(1.0, missing + 1 - line[-1])
    shifted = np.floor(line + rng.uniform(low + 1e-6, high - 1e-6))
    counts[places] += np.diff(shifted, prepend=0).astype(np.int64)
    return counts
