# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Images per second of the mammography loader, by number of worker processes."""

import gc
import json
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from detrex_mammo.benchmark.results import Row
from detrex_mammo.benchmark.session import Session
from detrex_mammo.benchmark.timing import one_line
from detrex_mammo.benchmark.units import RATE, quantity_text
from detrex_mammo.config import get_config, instantiate
from detrex_mammo.data.image_io import write_png16
from detrex_mammo.data.synthetic_breast import synthetic_breast
from detrex_mammo.evaluation.hardware import num_cores

CONFIG = "configs/common/data/mammography.py"
QUANTITY = "training images mapped"
MAX_WORKERS = 16
BATCH = 2
PREFETCHED = 2  # items that each worker of torch's DataLoader makes ahead


def run(session: Session) -> None:
    """Make synthetic mammograms, then load them with 0, 1, 2, ... workers in turn."""
    pitch, count, timed = (1.0, 2, 4) if session.quick else (0.1, 6, 24)
    workers = worker_counts(2 if session.quick else num_cores())
    rounds = session.rounds(3)
    with tempfile.TemporaryDirectory(prefix="detrex_mammo_benchmark_") as folder:
        session.say(f"drawing {count} synthetic mammograms")
        height, width = write_dataset(Path(folder), pitch, count)
        case = f"16-bit PNG, {height} x {width} to 1333 x 800"
        for number in range(rounds):
            for num_workers in workers:
                row = Row(case, QUANTITY, worker_name(num_workers), unit=RATE)
                try:
                    row.values.append(images_per_second(Path(folder), num_workers, timed))
                    rate = quantity_text(row.values[-1], RATE)
                    session.say(f"  {number + 1} of {rounds}: {row.candidate}, {rate}")
                except Exception as error:  # the other numbers of workers are still measured
                    row.error = one_line(error)
                session.results.add(row)


def worker_name(count: int) -> str:
    """As in the tables."""
    return f"{count} worker{'' if count == 1 else 's'}"


def worker_counts(cores: int) -> list[int]:
    """0, then 1, 2, 4, ... up to the number of cores.

    Args:
        cores: processors of this machine.
    """
    counts = [0, 1]
    while counts[-1] * 2 <= min(cores, MAX_WORKERS):
        counts.append(counts[-1] * 2)
    return counts


def write_dataset(folder: Path, pitch_mm: float, count: int) -> tuple[int, int]:
    """Synthetic mammograms as 16-bit PNG, each with a box, and ``train.json``.

    Returns:
        tuple[int, int]: height and width of the images.
    """
    images, annotations = [], []
    for index in range(count):
        background = synthetic_breast(np.random.default_rng(index), pitch_mm)
        name = f"{index}.png"
        write_png16(folder / name, background.pixels)
        height, width = background.pixels.shape
        y, x = (int(v) for v in np.argwhere(background.tissue).mean(axis=0))
        record = {**background.record, "chest_wall": background.chest_wall}
        images.append({"id": index, "file_name": name, "height": height, "width": width, **record})
        side = height // 20
        box = [max(0, x - side // 2), max(0, y - side // 2), side, side]
        annotations.append({"id": index, "image_id": index, "category_id": 1, "bbox": box})
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "lesion"}]
    (folder / "train.json").write_text(json.dumps(content))
    return height, width


def images_per_second(folder: Path, workers: int, count: int) -> float:
    """Rate of the shipped training loader, without what its workers had made ahead.

    Args:
        folder: see :func:`write_dataset`.
        workers: processes beside this one; 0 maps in this one.
        count: images to time, for each worker beyond the first as many more.
    """
    config = get_config(CONFIG).dataloader.train
    config.dataset.name = f"benchmark_{folder.name}"
    config.dataset.json_file, config.dataset.image_root = str(folder / "train.json"), str(folder)
    config.total_batch_size, config.num_workers = BATCH, workers
    images = _images(instantiate(config))
    ahead = (PREFETCHED + 1) * workers + 2 * BATCH
    for _ in islice(images, ahead):
        pass
    count *= max(1, workers)
    start = time.perf_counter()
    for _ in islice(images, count):
        pass
    rate = count / (time.perf_counter() - start)
    del images
    gc.collect()  # ends the workers
    return rate


def _images(loader) -> Iterator[dict]:
    for batch in loader:
        yield from batch
