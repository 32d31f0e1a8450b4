# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The training loader: what a step sees depends on seed and step alone.

The augmentation of an image is seeded from its place in the run, so that neither the number of
workers nor an interruption changes a pixel.
"""

import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import queues
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
SKIPPED = "skipped_images"  # key of an item that took the place of others: their index and reason
# What readers raise at a damaged file; the last two are PIL's.
UNREADABLE = (UserError, OSError, EOFError, SyntaxError)
MAX_TRIES = 20
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
OUTLIVE_SECONDS = 60
LOOK_SECONDS = 5.0


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
    on_error: str = "fail",
    error_limit: int = 10,
) -> DataLoader:
    """Endless loader of this process's batches, each a list of what the mapper returns.

    Args:
        dataset: records.
        mapper: record to model input; with ``nominal_size(record) -> (height, width)`` batches are
            made by the sizes that the network sees, before random scaling, else by the originals'.
        total_batch_size: images of a step over all processes, or, with a token budget, the most.
        sampling: how often an image is shown; once in an epoch when None.
        sampler: the order of images, seed and start of the run; a tool that trains gives it, with
            the sampling in it. None starts at the beginning, with seed 0.
        num_workers: processes that load images; 0 loads them in this one.
        prefetch_factor: batches that each of them holds ready.
        token_budget, max_padding, sort_window: see :class:`detrex_mammo.data.batching.Batches`.
        on_error: "fail", or "skip" an image that cannot be read: another one is shown, drawn from
            the seed of its place, whatever the number of workers.
        error_limit: most images that a process may skip; one more ends the run.

    Raises:
        UserError: a setting is not possible or does not fit the dataset.
    """
    order = _checked(Order(dataset, 0, sampling) if sampler is None else sampler)
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
    return TrainLoader(
        SeededMap(records, mapper, _is_skipping(on_error, error_limit)),
        error_limit,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_as_list,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=prefetch_factor if num_workers else None,
        # Of its own: the model's random numbers do not depend on how images are loaded.
        generator=torch.Generator().manual_seed(order.seed),
        worker_init_fn=start_worker,
    )


def _checked(order: Any) -> Order:
    if not isinstance(order, Order):
        raise UserError(
            f"dataloader.train.sampler is a {type(order).__name__}, but this loader needs an order "
            "that can be entered anywhere: leave it out and set dataloader.train.sampling"
        )
    return order


def _is_skipping(on_error: str, error_limit: int) -> bool:
    if on_error not in ("fail", "skip"):
        raise UserError(f"dataloader.train.on_error is {on_error!r}, but must be 'fail' or 'skip'")
    if type(error_limit) is not int or error_limit < 0:
        raise UserError(
            f"dataloader.train.error_limit is {error_limit!r}, but must be a number of images"
        )
    return on_error == "skip"


class TrainLoader(DataLoader):
    """Counts and logs the images that were skipped, in the process that trains.

    Args:
        dataset: of :class:`SeededMap`.
        error_limit: most images that may be skipped.
        options: torch's.
    """

    def __init__(self, dataset: "SeededMap", error_limit: int, **options: Any):
        self.error_limit = error_limit
        self.skipped: dict[int, str] = {}
        super().__init__(dataset, **options)

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in super().__iter__():
            for item in batch:
                for index, reason in item.pop(SKIPPED, ()) if isinstance(item, dict) else ():
                    self._count(index, reason)
            yield batch

    def _count(self, index: int, reason: str) -> None:
        if index in self.skipped:
            return
        self.skipped[index] = reason
        count, limit = len(self.skipped), self.error_limit
        if count > limit:
            raise UserError(
                f"{count} training images cannot be read, more than "
                f"dataloader.train.error_limit={limit}; the last is {reason}: repair or remove "
                "them, or raise the limit"
            )
        logger.warning("%d of at most %d images skipped: %s", count, limit, reason)


class SeededMap(Dataset):
    """Records through a mapper whose random numbers come from a seed.

    Args:
        dataset: records.
        mapper: record to model input; may use Python's, NumPy's and torch's random numbers.
        skips: show another image in the place of one that cannot be read.
    """

    def __init__(
        self,
        dataset: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], Any],
        skips: bool = False,
    ):
        self.dataset, self.mapper, self.skips = dataset, mapper, skips

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        """Map an image.

        Args:
            place: its index, and the seed.

        Raises:
            UserError: with ``skips``, no image that was tried can be read.
        """
        index, seed = place
        if not self.skips:
            return self._map(index, seed)
        others, problems = random.Random(seed), []
        while len(problems) < MAX_TRIES:
            try:
                item = self._map(index, seed)
            except UNREADABLE as error:
                problems.append((index, self._describe(index, error)))
                index = others.randrange(len(self))
                continue
            return {**item, SKIPPED: problems} if problems else item
        raise UserError(
            f"{MAX_TRIES} training images in a row cannot be read; the last is {problems[-1][1]}"
        )

    def _map(self, index: int, seed: int) -> Any:
        with seeded(seed):
            return self.mapper(self.dataset[index])

    def _describe(self, index: int, error: Exception) -> str:
        record = self.dataset[index]
        name = record.get("file_name", record.get("image_id", index))
        reason = " ".join(str(error).split()) or type(error).__name__
        return reason if str(name) in reason else f"{name}: {reason}"


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


def start_worker(worker: int) -> None:
    """What a process that loads images does first."""
    outlive_signals(worker)
    queues.Queue._on_queue_feeder_error = staticmethod(_end_with_its_batch)


def _end_with_its_batch(error: Exception, batch: Any) -> None:
    """End a process whose batch cannot be handed over, as where /dev/shm is full.

    Python itself drops the batch, and the process that trains would wait for it forever.
    """
    reason = f"{type(error).__name__}: {error}"
    print(f"a batch cannot be handed over: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


def outlive_signals(worker: int) -> None:
    """Let a process that loads images live on after a signal to the whole job.

    The process that trains needs it to come to the end of its step and to save; a signal from that
    process itself, which has done with it, ends it at once. Where nobody can tell who sent a
    signal, it ends a while later.
    """

    def end_later(number: int, frame: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, OUTLIVE_SECONDS)

    for number in SIGNALS:
        signal.signal(number, end_later)
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_end_when_told, daemon=True).start()


def _end_when_told() -> None:
    """End this process when its parent says so, or is gone.

    torch looks for the latter too, but not for a parent that was killed while this one started.
    """
    parent = multiprocessing.parent_process()
    served = getattr(multiprocessing.context, "ForkServerProcess", ())  # is a server's child
    is_child = not isinstance(multiprocessing.current_process(), served)
    # A forked process may hold its siblings' ends of their pipes, which then look alive.
    while os.getppid() == parent.pid if is_child else parent.is_alive():
        told = signal.sigtimedwait(SIGNALS, LOOK_SECONDS)
        if told is not None and told.si_pid == parent.pid:
            break
    os._exit(0)


def _as_list(batch: list[Any]) -> list[Any]:
    return batch
