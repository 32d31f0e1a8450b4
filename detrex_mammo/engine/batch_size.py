# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""``train.batch_size``: a number, or "auto" for what fits into memory.

"auto" predicts the peak of a step (see memory.py) at the largest size that the images can have, and
takes as many images as fit with a margin; a GPU then does two real steps, with half as many images
if memory runs out.
"""

import gc
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from omegaconf import DictConfig

from detrex_mammo.config import instantiate, without_pretrained
from detrex_mammo.engine.accumulation import summed_losses
from detrex_mammo.engine.available import available_bytes
from detrex_mammo.engine.freezing import freeze
from detrex_mammo.engine.largest_size import largest_sizes
from detrex_mammo.engine.loaders import dataset_errors
from detrex_mammo.engine.memory import blank_image, bytes_besides, predict_peak, step
from detrex_mammo.engine.optimizer import build_optimizer
from detrex_mammo.engine.precision import amp_dtype
from detrex_mammo.engine.summary import format_bytes
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
# A prediction times this must fit. On a GPU it stands for the prediction's error, work spaces and
# what the allocator cannot hand out; on a CPU for what the C library keeps of what is freed.
MARGIN = {"cuda": 1.25, "cpu": 1.5}
WORKER_BYTES = 500 * 2**20  # of a process that loads images
BOXES = 20  # in each image of the real steps


@dataclass(frozen=True)
class Fit:
    """What fits into memory.

    Attributes:
        images: of a batch of one process.
        need: bytes of its step, the margin included.
        size: (height, width) that it was predicted for.
        is_whole: it is all images that there are, and more may fit.
    """

    images: int
    need: float
    size: tuple[int, int]
    is_whole: bool


def settle_batch_size(
    cfg: DictConfig, device: str, resumed: Mapping[str, Any] | None = None
) -> None:
    """Turn ``train.batch_size`` into ``dataloader.train.total_batch_size``, in place.

    Args:
        cfg: of the run.
        device: "cuda" or "cpu".
        resumed: the checkpoint that a run goes on from, whose number "auto" takes.

    Raises:
        UserError: no such setting, or not one image fits.
    """
    wanted = cfg.train.get("batch_size")
    if wanted is None:
        return
    if wanted == "auto":
        wanted = _number_of(resumed) if resumed is not None else find_batch_size(cfg, device)
    elif type(wanted) is not int or wanted < 1:
        raise UserError(
            f"train.batch_size is {wanted!r}, but must be a whole number above 0, 'auto', or null "
            "for dataloader.train.total_batch_size"
        )
    cfg.dataloader.train.total_batch_size = wanted
    cfg.train.batch_size = None


def _number_of(checkpoint: Mapping[str, Any]) -> int:
    found = yaml.safe_load(checkpoint["config"])["dataloader"]["train"]["total_batch_size"]
    logger.info("train.batch_size=auto: %d, as in the run that goes on", found)
    return found


def find_batch_size(cfg: DictConfig, device: str) -> int:
    """Images of a step over all processes that fit into every process's memory, and say so.

    Args:
        cfg: of the run.
        device: "cuda" or "cpu".

    Raises:
        UserError: it cannot be told, or not one image fits.
    """
    world = comm.get_world_size()
    free = min(comm.all_gather(memory_of_process(cfg, device)))
    # In every process: what builds data or model may itself wait for the others.
    found = fit(cfg, device, free, world, dataset_of(cfg))
    images = found.images
    if device == "cuda":
        images = halved(images, lambda number: fits_really(cfg, found.size, number, device))
    _tell(cfg, device, found, images, free)
    return images * world


def _tell(cfg: DictConfig, device: str, found: Fit, images: int, free: int) -> None:
    world, accumulate = comm.get_world_size(), cfg.train.accumulate
    notes = ["these are all images of the data set"] if found.is_whole else []
    if images < found.images:
        notes.append(f"{found.images} ran out of memory in a real step")
    if cfg.train.fsdp.enabled:
        notes.append("predicted without sharding, so that more may fit")
    logger.info(
        "train.batch_size=auto: %d images at a time (%d process(es) x %d) of up to %dx%d%s. "
        "A step with %d is predicted to need %s, %.0f%% of it margin, of %s free. An optimizer "
        "step sees %d (train.accumulate=%d); by itself this does not change optimizer.lr",
        images * world,
        world,
        images,
        *found.size,
        "".join(f"; {note}" for note in notes),
        found.images,
        format_bytes(found.need),
        100 * (1 - 1 / MARGIN[device]),
        format_bytes(free),
        images * world * accumulate,
        accumulate,
    )


def dataset_of(cfg: DictConfig) -> Sequence[Mapping[str, Any]]:
    """The records of the training data."""
    with dataset_errors("dataloader.train"):
        return instantiate(cfg.dataloader.train.get("dataset"))


def memory_of_process(cfg: DictConfig, device: str) -> int:
    """Bytes that one process of the run may take."""
    free = available_bytes(device)
    if free is None:
        raise UserError(
            "train.batch_size is 'auto', but this system does not tell how much memory is free: "
            "give a number"
        )
    if device == "cuda":
        return free
    here = comm.get_local_size() if comm.get_world_size() > 1 else 1
    workers = cfg.dataloader.train.get("num_workers") or 0
    return free // here - workers * WORKER_BYTES


def fit(
    cfg: DictConfig,
    device: str,
    free: int,
    num_processes: int = 1,
    dataset: Sequence[Mapping[str, Any]] = (),
) -> Fit:
    """The largest batch of one process whose step is predicted to fit.

    Args:
        cfg: of the run.
        device: "cuda" or "cpu".
        free: bytes for one process.
        num_processes: of the run.
        dataset: its training images, for their number and sizes; empty if it is not at hand.

    Raises:
        UserError: it cannot be told, or not one image fits.
    """
    if cfg.dataloader.train.get("token_budget") is not None:
        raise UserError(
            "train.batch_size is 'auto', but dataloader.train.token_budget already bounds what is "
            "computed at a time: set one of them to null"
        )
    alone, together = _sizes(cfg, dataset)
    most = max(1, len(dataset) // num_processes) if len(dataset) else None

    def need(images: int) -> float:
        size = alone if images == 1 else together
        return MARGIN[device] * predict_peak(cfg, size, images, num_processes).peak

    first = need(1)
    if first > free:
        fewer = "take fewer dataloader.train.num_workers, " if device == "cpu" else ""
        raise UserError(
            f"train.batch_size is 'auto', but one image of {alone[0]}x{alone[1]} already needs "
            f"{format_bytes(first)} and {format_bytes(max(free, 0))} are free: {fewer}make images "
            "smaller in dataloader.train.mapper, set train.amp.enabled=True, or use activation "
            "checkpointing in model"
        )
    if most == 1:
        return Fit(1, first, alone, True)
    images, needed = _search(need, free, most)
    if images == 1:
        return Fit(1, first, alone, False)
    return Fit(images, needed, together, images == most)


def _search(need: Callable[[int], float], free: int, most: int | None) -> tuple[int, float]:
    """The largest number of images that fits, and what it needs; 1 if two do not fit.

    Need grows by as much with every image, so that two numbers of images tell the third.
    """
    two, three = need(2), need(3)
    if two > free:
        return 1, 0
    images = 2 + int((free - two) / max(three - two, 1))
    images = images if most is None else min(images, most)
    needed = need(images)
    while needed > free and images > 2:
        images = max(2, images - math.ceil((needed - free) / max(three - two, 1)))
        needed = need(images)
    return images, needed


def _sizes(
    cfg: DictConfig, dataset: Sequence[Mapping[str, Any]]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of the largest image, and what a batch of the largest is padded to."""
    known = [(item.get("height"), item.get("width")) for item in dataset]
    known = [] if any(None in size for size in known) else known
    sizes = largest_sizes(cfg.dataloader.train.get("mapper"), known)
    if sizes is None:
        raise UserError(
            "train.batch_size is 'auto', but dataloader.train.mapper has no resize that limits "
            "the images and the data set does not tell their sizes: give a number"
        )
    height, width = max(sizes, key=math.prod)
    heights, widths = zip(*sizes, strict=True)
    return (math.ceil(height), math.ceil(width)), (math.ceil(max(heights)), math.ceil(max(widths)))


def halved(images: int, fits: Callable[[int], bool]) -> int:
    """Halve a number of images until all processes say that it fits.

    Args:
        images: of one process.
        fits: tries a number in this process.

    Raises:
        UserError: not even one does.
    """
    while not all(comm.all_gather(fits(images))):
        if images == 1:
            raise UserError(
                "train.batch_size is 'auto', but a real step ran out of memory with one image: "
                "free the GPU, make images smaller in dataloader.train.mapper, set "
                "train.amp.enabled=True, or use activation checkpointing in model"
            )
        logger.warning("a step with %d images ran out of memory: trying half of it", images)
        images //= 2
    return images


def fits_really(cfg: DictConfig, size: tuple[int, int], images: int, device: str) -> bool:
    """Whether two real steps of one process do not run out of memory.

    They are those of a model of their own, and draw no random number of the run.

    Args:
        cfg: of the run.
        size: (height, width) of every image.
        images: of the batch.
        device: "cuda" or "cpu".
    """
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            _real_steps(cfg, size, images, device)
        except torch.OutOfMemoryError:
            fits = False
        else:
            fits = True
    gc.collect()  # a model's parts may point at one another
    if device == "cuda":
        torch.cuda.empty_cache()
    return fits


def _real_steps(cfg: DictConfig, size: tuple[int, int], images: int, device: str) -> None:
    model = instantiate(without_pretrained(cfg.model)).to(device).train()
    freeze(model, cfg.train.freeze)
    optimizer = build_optimizer(cfg.optimizer, model)
    beside = bytes_besides(cfg, model, comm.get_world_size())
    ballast = torch.empty(beside, dtype=torch.uint8, device=device)
    batch = [_filled(blank_image(size)) for _ in range(images)]
    rounds = min(cfg.train.accumulate, 2)
    with summed_losses(model):  # no process waits for another that has run out of memory
        for _ in range(2):
            step(model, optimizer, batch, amp_dtype(cfg.train.amp), rounds, device)
    del ballast


def _filled(item: dict[str, Any]) -> dict[str, Any]:
    """An image with boxes, all alike."""
    height, width = item["height"], item["width"]
    boxes = torch.tensor([[0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height]])
    truth = Instances((height, width), gt_boxes=Boxes(boxes.repeat(BOXES, 1)))
    truth.gt_classes = torch.zeros(BOXES, dtype=torch.int64)
    return {**item, "instances": truth}
