# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Batches of images of nearly equal size, planned an epoch ahead from seed and step alone.

A batch is padded to its largest height and width: what lies beside a smaller image is computed and
thrown away. Sizes here are nominal: those that the network sees, before random scaling.

N images of an epoch, K images of the dataset, R processes.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from detrex_mammo.data.columns import columns_of
from detrex_mammo.data.order import Order, sample_seed
from detrex_mammo.errors import UserError
from detrex_mammo.progress import counted

logger = logging.getLogger(__name__)
_SHUFFLE = 3  # purpose of random numbers, see order.py


@dataclass(frozen=True)
class Plan:
    """The batches of an epoch.

    Attributes:
        images: (N,) in the order in which they are shown.
        starts: where in ``images`` each batch begins, and where the last one ends. Batch
            ``s * R + r`` is that of process r in step s.
        first: position of ``images[0]`` in the run.
    """

    images: np.ndarray
    starts: np.ndarray
    first: int

    @property
    def num_batches(self) -> int:
        """Over all processes."""
        return len(self.starts) - 1

    def padding(self, sizes: np.ndarray) -> float:
        """Share of the batches' pixels that is padding, in [0, 1).

        Args:
            sizes: (K, 2) height and width.
        """
        own = sizes[self.images]
        largest = np.maximum.reduceat(own, self.starts[:-1])
        padded = largest.prod(axis=1) * np.diff(self.starts)
        return float(1 - own.prod(axis=1).sum() / padded.sum())


class Batches(Sampler[list[tuple[int, int]]]):
    """The batches of one process, endless, entered at ``order.start_iter``.

    ``sort_window`` images that follow each other in the order, but no more than a quarter of the
    epoch, are sorted by size and cut into batches; then the batches of the whole epoch are
    shuffled. So other images come together in every epoch. All processes have as many batches.

    Args:
        order: which images, and the seed.
        sizes: (K, 2) height and width, 0 where unknown; see :func:`nominal_sizes`.
        total_batch_size: images of a step over all processes; with a token budget the most.
        token_budget: most pixels of a padded batch of one process; an image that has more is a
            batch of its own. None: every step has ``total_batch_size`` images.
        max_padding: with a token budget, most padding in a batch, as a share of its pixels.
        sort_window: images; 0 for no sorting.
        rank: number of this process.
        num_processes: R.

    Yields:
        list[tuple[int, int]]: image and seed of its augmentation.

    Raises:
        UserError: a setting is not possible, or a token budget lacks sizes.
    """

    def __init__(
        self,
        order: Order,
        sizes: np.ndarray,
        total_batch_size: int,
        token_budget: float | None = None,
        max_padding: float = 0.1,
        sort_window: int = 256,
        rank: int = 0,
        num_processes: int = 1,
    ):
        _check(token_budget, max_padding, sort_window)
        unknown = int((sizes <= 0).any(axis=1).sum())
        if unknown and token_budget is not None:
            raise UserError(
                f"token_budget needs the size of every image, but {unknown} of {len(sizes)} have "
                "no height and width in the dataset: add them or set token_budget to null"
            )
        self.order = order
        self.sizes = np.ones_like(sizes) if unknown else sizes
        self.total_batch_size = total_batch_size
        self.token_budget, self.max_padding = token_budget, max_padding
        self.sort_window = sort_window
        self.rank, self.num_processes = rank, num_processes
        self._plan = lru_cache(maxsize=1)(self.plan)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the first epoch, in which all of its images are seen.

        Without a token budget those of any epoch, up to one: the order is cut into batches without
        regard to where an epoch ends. With it others have about as many.
        """
        return self._num_steps(0)

    @property
    def mean_batch_size(self) -> float:
        """Images of a step over all processes, on average."""
        return len(self._plan(0).images) / self._num_steps(0)

    def plan(self, epoch: int) -> Plan:
        """The batches of an epoch, for all processes."""
        first, stop = self._borders(epoch)
        images = self.order.images(first, stop)
        sizes, share = self.sizes[images], self.total_batch_size // self.num_processes
        window = min(self.sort_window, len(images) // 4)
        if self.token_budget is None:
            window = max(1, window // self.total_batch_size) * self.total_batch_size
            places = by_size(sizes, window, self.total_batch_size)
            starts = np.arange(0, len(images) + 1, share)
        else:
            places = by_size(sizes, max(1, window), 1)
            starts = cut(sizes[places], self.token_budget, self.max_padding, share)
            starts = split_to_multiple(starts, self.num_processes)
        rng = np.random.default_rng((self.order.seed, _SHUFFLE, epoch))
        if self.sort_window or self.token_budget is not None:  # else the order is random as it is
            places, starts = _shuffle_steps(places, starts, self.num_processes, rng)
        return Plan(images[places], starts, first)

    def describe(self) -> str:
        """One line about the first epoch: batches, images in them, padding."""
        plan = self._plan(0)
        counts = np.diff(plan.starts)
        text = (
            f"{self.steps_per_epoch} steps an epoch, {counts.min()} / {counts.mean():.1f} / "
            f"{counts.max()} images in a batch of one process (least / mean / most)"
        )
        if len(np.unique(self.sizes, axis=0)) > 1:
            images = self.order.images(plan.first, plan.first + len(plan.images))
            starts = np.linspace(0, len(images), plan.num_batches + 1).astype(int)
            unsorted = Plan(images, starts, plan.first).padding(self.sizes)
            text += (
                f", {plan.padding(self.sizes):.1%} of the pixels padding ({unsorted:.1%} unsorted)"
            )
        if self.token_budget is not None:
            large = int((self.sizes.prod(axis=1) > self.token_budget).sum())
            text += f"; {large} images are larger than token_budget" if large else ""
        return text

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, done = 0, self.order.start_iter
        while done >= self._num_steps(epoch):
            done -= self._num_steps(epoch)
            epoch += 1
        while True:
            plan = self._plan(epoch)
            for batch in range(
                done * self.num_processes + self.rank, plan.num_batches, self.num_processes
            ):
                places = range(plan.starts[batch], plan.starts[batch + 1])
                yield [
                    (int(plan.images[i]), sample_seed(self.order.seed, plan.first + i))
                    for i in places
                ]
            epoch, done = epoch + 1, 0

    def _num_steps(self, epoch: int) -> int:
        if self.token_budget is not None:
            return self._plan(epoch).num_batches // self.num_processes
        first, stop = self._borders(epoch)
        return (stop - first) // self.total_batch_size

    def _borders(self, epoch: int) -> tuple[int, int]:
        """Positions of an epoch's steps: its last step is filled up from the next epoch."""
        unit = self.total_batch_size if self.token_budget is None else self.num_processes
        length = self.order.length
        return -(-epoch * length // unit) * unit, -(-(epoch + 1) * length // unit) * unit


def nominal_sizes(dataset: Sequence[dict[str, Any]], mapper: Any) -> np.ndarray:
    """Height and width that the network sees of each image, 0 where unknown: (K, 2) float64.

    From ``mapper.nominal_size(record) -> (height, width)`` where the mapper has it, else the size
    of the original image.
    """
    sizes = columns_of(dataset).sizes.astype(np.float64)
    if not hasattr(mapper, "nominal_size") or not (sizes > 0).all():
        return sizes
    indices = counted(range(len(dataset)), "sizes")
    return np.array([mapper.nominal_size(dataset[i]) for i in indices], np.float64)


def by_size(sizes: np.ndarray, window: int, unit: int) -> np.ndarray:
    """Bring images of nearly equal size together, each inside its window.

    A window is halved again and again, each time by the side, height or width, that varies more in
    it, until ``unit`` images are left. Images of equal size keep their order.

    Args:
        sizes: (N, 2) height and width, above 0.
        window: images, a multiple of ``unit``.
        unit: no part is smaller, but for the last.

    Returns:
        ndarray: (N,) places in ``sizes``.
    """
    logs, places = np.log(sizes), np.arange(len(sizes))
    starts = np.arange(0, len(sizes), window)
    while True:
        lengths = np.diff(starts, append=len(sizes))
        units = -(-lengths // unit)
        if not (units > 1).any():
            return places
        found = logs[places]
        spread = np.maximum.reduceat(found, starts) - np.minimum.reduceat(found, starts)
        part = np.repeat(np.arange(len(starts)), lengths)
        side = spread.argmax(axis=1)[part]
        key = np.where(units[part] > 1, found[np.arange(len(found)), side], 0.0)
        places = places[np.lexsort((key, part))]
        halves = starts + (units + 1) // 2 * unit
        starts = np.sort(np.concatenate([starts, halves[units > 1]]))


def cut(sizes: np.ndarray, budget: float, max_padding: float, most: int) -> np.ndarray:
    """Cut a row of images into batches, each as long as it may be.

    Args:
        sizes: (N, 2) height and width, in the order of the row.
        budget: most pixels of a padded batch.
        max_padding: most padding, as a share of these.
        most: images.

    Returns:
        ndarray: int64, where each batch begins, and N.
    """
    starts = []
    count, own, height, width = most, 0.0, 0.0, 0.0
    for index, (h, w) in enumerate(sizes.tolist()):
        height, width, own = max(height, h), max(width, w), own + h * w
        padded = (count + 1) * height * width
        if count >= most or padded > budget or own < (1 - max_padding) * padded:
            starts.append(index)
            count, own, height, width = 0, h * w, h, w
        count += 1
    return np.array([*starts, len(sizes)])


def split_to_multiple(starts: np.ndarray, multiple: int) -> np.ndarray:
    """Halve the longest batches until there are a multiple of so many."""
    while (len(starts) - 1) % multiple:
        lengths = np.diff(starts)
        longest = int(lengths.argmax())
        starts = np.insert(starts, longest + 1, starts[longest] + (lengths[longest] + 1) // 2)
    return starts


def _shuffle_steps(
    places: np.ndarray, starts: np.ndarray, num_processes: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Steps of ``num_processes`` batches in random order."""
    batches = np.arange(len(starts) - 1).reshape(-1, num_processes)
    batches = rng.permutation(batches).ravel()
    lengths = np.diff(starts)[batches]
    moved = np.concatenate(
        [np.empty(0, np.int64), *(places[starts[b] : starts[b + 1]] for b in batches)]
    )
    return moved, np.concatenate([[0], np.cumsum(lengths)])


def _check(token_budget: Any, max_padding: Any, sort_window: Any) -> None:
    if token_budget is not None and not (_is_number(token_budget) and token_budget >= 1):
        raise UserError(
            f"token_budget is {token_budget!r}; give the pixels of a padded batch of one process, "
            "such as 2132800 for two images of 1333x800, or null"
        )
    if not (_is_number(max_padding) and 0 <= max_padding < 1):
        raise UserError(f"max_padding is {max_padding!r}; use a share from 0 to below 1")
    if not (isinstance(sort_window, int) and sort_window >= 0):
        raise UserError(f"sort_window is {sort_window!r}; use a number of images, 0 for no sorting")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
