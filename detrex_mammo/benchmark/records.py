# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Seconds and memory of reading a COCO JSON of any size, and what a loader worker adds to it."""

import json
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from detrex_mammo.benchmark.child import ChildError, in_child
from detrex_mammo.benchmark.memory import peak_of
from detrex_mammo.benchmark.results import Row
from detrex_mammo.benchmark.session import Session
from detrex_mammo.benchmark.units import quantity_text
from detrex_mammo.data.datasets import load_coco_json
from detrex_mammo.data.record_store import RecordStore

TOUCHED = 20_000  # records that each worker reads
NUM_WORKERS = 2
BAR = 0.02  # of a store of ten million boxes: unique memory of a worker
CANDIDATE = "RecordStore"
QUICK = (2_000, 20_000)
_SIZE = 4000, 3000  # of every image
_CHUNK = 100_000
SMAPS = Path("/proc/self/smaps_rollup")


def run(session: Session, images: int = 100_000, boxes: int = 1_000_000) -> None:
    """Write a JSON, then read it in a process of its own, which starts workers.

    Args:
        images: in the file; a quick run takes fewer.
        boxes: in the file.
    """
    if session.quick:
        images, boxes = QUICK
    case = f"{images:,} images, {boxes:,} boxes"
    with tempfile.TemporaryDirectory(prefix="detrex_mammo_benchmark_") as folder:
        file = Path(folder, "train.json")
        session.say(f"writing {case}")
        write_dataset(file, images, boxes)
        session.say(f"reading {quantity_text(file.stat().st_size, 'B')}")
        for _ in range(session.rounds(1)):
            try:
                found = in_child(measure, json_file=str(file))
            except ChildError as error:
                session.results.add(Row(case, "load", CANDIDATE, error=str(error)))
                continue
            for row in rows(case, found):
                session.results.add(row)
                session.say(f"  {row.quantity}: {quantity_text(row.values[0], row.unit)}")


def rows(case: str, found: dict[str, Any]) -> list[Row]:
    """What :func:`measure` found, as rows of a table.

    Args:
        case: what was read.
    """
    store = found["store"]
    table = [
        Row(case, "load", CANDIDATE, values=[found["seconds"]]),
        Row(case, "peak of the process while loading", CANDIDATE, "B", [found["peak"]]),
        Row(case, "size of the store", CANDIDATE, "B", [store]),
    ]
    for before, after in found["workers"]:
        told = f"{after / store:.2%} of the store (bar with ten million boxes: {BAR:.0%}); "
        told += f"{quantity_text(before, 'B')} before the first"
        quantity = f"unique memory of a forked worker, {found['touched']:,} records read"
        table.append(Row(case, quantity, CANDIDATE, "B", [after], note=told))
    return table


def measure(json_file: str, touched: int = TOUCHED) -> dict[str, Any]:
    """Load, fork workers, let each read records. For a process of its own.

    Args:
        json_file: COCO JSON.
        touched: records that each worker reads.

    Returns:
        dict: ``seconds`` of loading; in bytes: ``peak`` of the process, ``store`` (its arrays), and
        for each of the ``workers`` unique memory before and after it has read; ``touched``.
    """
    stores: list[RecordStore] = []
    start = time.perf_counter()
    peak = peak_of(lambda: stores.append(load_coco_json("benchmark_records", json_file, "images")))
    seconds = time.perf_counter() - start
    (store,) = stores
    touched = min(touched, len(store))
    return {
        "seconds": seconds,
        "peak": peak.highest,
        "store": store.arrays.nbytes,
        "workers": unique_memory(store, touched, NUM_WORKERS) if SMAPS.exists() else [],
        "touched": touched,
    }


def unique_memory(store: RecordStore, touched: int, num_workers: int) -> list[tuple[int, int]]:
    """Memory that forked workers share with nobody, while all of them live.

    Args:
        store: what they read.
        touched: records that each of them reads, at random.
        num_workers: of them.

    Returns:
        list: bytes of each worker before and after it has read.
    """
    context = multiprocessing.get_context("fork")
    workers = []
    for seed in range(num_workers):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(store, touched, seed, theirs), daemon=True)
        process.start()
        workers.append((process, ours))
    found = []
    for order in ("read", "measure", "end"):  # one step of all of them after the other
        for _, connection in workers:
            connection.send(order)
        found = [connection.recv() for _, connection in workers] if order != "end" else found
    for process, _ in workers:
        process.join()
    return [tuple(pair) for pair in found]


def _work(store: RecordStore, touched: int, seed: int, connection: Connection) -> None:
    before = unique_bytes()
    connection.recv()
    for row in np.random.default_rng(seed).choice(len(store), touched, replace=False).tolist():
        store[row]
    connection.send(None)
    connection.recv()
    connection.send((before, unique_bytes()))
    connection.recv()


def unique_bytes() -> int:
    """Memory of this process that no other has mapped (USS: proc(5), smaps_rollup)."""
    lines = (line.split() for line in SMAPS.read_text().splitlines())
    kept = ("Private_Clean:", "Private_Dirty:")
    return sum(int(words[1]) for words in lines if words[0] in kept) * 1024


def write_dataset(path: Path, images: int, boxes: int) -> None:
    """COCO JSON with the keys of a real set; annotations lie in no order, as in COCO's own files.

    Args:
        path: to write.
        images: number of them, four of each patient.
        boxes: number of them, on images drawn at random.
    """
    rng = np.random.default_rng(0)
    height, width = _SIZE
    known = {"height": height, "width": width, "density": "B", "bits_stored": 12, "split": "train"}
    known |= {"pixel_spacing": [0.07, 0.07], "manufacturer": "synthetic", "dataset": "benchmark"}
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"categories": [')
        file.write(", ".join(json.dumps({"id": i, "name": f"class {i}"}) for i in range(1, 4)))
        file.write('],\n"images": [')
        for i in range(images):
            name = {"id": i, "file_name": f"images/{i // 1000:04}/{i:08}.png", "view": "CC"}
            name |= {"patient_id": f"P{i // 4:07}", "study_id": f"S{i // 4:07}", "laterality": "L"}
            file.write((",\n" if i else "") + json.dumps({**name, **known}))
        file.write('],\n"annotations": [')
        for first in range(0, boxes, _CHUNK):
            number = min(_CHUNK, boxes - first)
            owners = rng.integers(0, images, number).tolist()
            corners = (rng.integers(0, width - 310, (number, 2)) + rng.random((number, 2))).round(2)
            sides = rng.integers(2, 300, (number, 2)) + 0.5
            lines = [
                f'{{"id": {i}, "image_id": {owner}, "category_id": {1 + i % 3}, "bbox": {box}, '
                f'"area": {box[2] * box[3]}, "iscrowd": 0, "source": "mask", '
                f'"pathology": "BENIGN", "lesion_id": "L{i}"}}'
                for i, owner, box in zip(
                    range(first, first + number), owners, np.hstack([corners, sides]).tolist()
                )
            ]
            file.write((",\n" if first else "") + ",\n".join(lines))
        file.write("]}\n")
