# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Make or complete a cache of preprocessed mammograms; a kill at any point costs a few images.

One process writes: an image's pixels first, then its line of the index. What lies behind the last
whole line after a kill is cut off, and only missing, changed or damaged images are made.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from detrex_mammo.data.breast import find_breast
from detrex_mammo.data.cache import (
    DESCRIPTION,
    VERSION,
    Entry,
    ImageCache,
    Key,
    check_description,
    describe_source,
    encode,
    index_line,
    key_of,
    read_index,
    shard_path,
    source_has_changed,
)
from detrex_mammo.data.mapper import ground_truth
from detrex_mammo.data.preprocessing import Preprocessing, laterality_conflict
from detrex_mammo.errors import UserError
from detrex_mammo.progress import counted

SHARD_MEGABYTES = 1024


@dataclass
class CacheReport:
    """What :func:`build_cache` did.

    Attributes:
        kept: images that were there already.
        made: images that were made now, why: "new", "changed", "damaged" or "other crop".
        failed: one sentence for each image that cannot be read.
        wrong_sides: one sentence for each image that contradicts its header's laterality.
        num_bytes: of the images, without what is outdated.
        outdated_bytes: of images that were made again.
    """

    kept: int = 0
    made: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    wrong_sides: list[str] = field(default_factory=list)
    num_bytes: int = 0
    outdated_bytes: int = 0

    def describe(self) -> str:
        """For people."""
        made = ", ".join(f"{count} {why}" for why, count in self.made.items())
        lines = [
            f"{self.kept} images were there; made: {made or 'none'}; failed: {len(self.failed)}; "
            f"{self.num_bytes / 2**20:.1f} MiB in use, {self.outdated_bytes / 2**20:.1f} outdated"
        ]
        lines += [f"failed: {sentence}" for sentence in self.failed]
        lines += [f"side: {sentence}" for sentence in self.wrong_sides]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Job:
    """One image, all the records that show it, and why it is made."""

    key: Key
    records: list[Mapping[str, Any]]
    why: str


def build_cache(
    folder: str | os.PathLike,
    records: Sequence[Mapping[str, Any]],
    preprocessing: Preprocessing,
    workers: int = 1,
    verify: bool = False,
    shard_megabytes: float = SHARD_MEGABYTES,
    progress: bool = True,
) -> CacheReport:
    """Add to a cache what it lacks.

    Args:
        folder: made if need be.
        records: of :func:`detrex_mammo.data.datasets.load_coco_json`.
        preprocessing: as in training.
        workers: processes that decode.
        verify: compare every image there with its hash, and make the damaged ones again.
        shard_megabytes: a shard this large is followed by another.
        progress: show a bar.

    Returns:
        CacheReport: an image that cannot be read is listed there and stops nothing.

    Raises:
        UserError: the folder holds something else or is in use, or a setting is not possible.
    """
    if workers < 1 or not shard_megabytes > 0:
        raise UserError(
            f"workers is {workers} and shard_megabytes {shard_megabytes}; use 1 or more, above 0"
        )
    folder, report = Path(folder), CacheReport()
    with _locked(folder):
        _describe(folder, preprocessing)
        _cut_unfinished(folder)
        cache = ImageCache(folder, preprocessing)
        jobs = _jobs(cache, records, verify, report, progress)
        results = counted(
            _made(jobs, preprocessing, workers), "caching", len(jobs), is_shown=progress
        )
        with _ShardWriter(folder, int(shard_megabytes * 2**20)) as writer:
            for job, result in zip(jobs, results, strict=True):
                _keep(job, result, writer, report)
        entries = ImageCache(folder, preprocessing).entries()
    report.num_bytes = sum(entry.num_bytes for entry in entries)
    report.outdated_bytes = (
        sum(path.stat().st_size for path in folder.glob("shard-*.bin")) - report.num_bytes
    )
    return report


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One builder at a time; the lock goes with its process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "cache.lock", "w")
    except OSError as error:
        raise UserError(f"cache folder {str(folder)!r}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"cache folder {str(folder)!r} is being written by another process: wait for it"
            ) from error
        yield


def _describe(folder: Path, preprocessing: Preprocessing) -> None:
    path = folder / DESCRIPTION
    if not path.exists():
        content = {"version": VERSION, "preprocessing": preprocessing.to_dict()}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
    check_description(folder, preprocessing)


def _cut_unfinished(folder: Path) -> None:
    """Drop what a kill left half written: a line's beginning, and pixels without a line."""
    for path in folder.glob("shard-*.bin"):
        index = path.with_suffix(".jsonl")
        index.touch()
        entries, whole = read_index(index)
        os.truncate(index, whole)
        end = max((entry.offset + entry.num_bytes for entry in entries), default=0)
        if path.stat().st_size > end:
            os.truncate(path, end)


def _jobs(
    cache: ImageCache,
    records: Sequence[Mapping[str, Any]],
    verify: bool,
    report: CacheReport,
    progress: bool,
) -> list[_Job]:
    """Images to make, in the order of the records."""
    by_key: dict[Key, list[Mapping[str, Any]]] = {}
    for record in records:
        by_key.setdefault(key_of(record), []).append(record)
    entries = {entry.key: entry for entry in cache.entries()}
    jobs = []
    for key, same in counted(by_key.items(), "looking", is_shown=progress):
        why = _why(cache, entries.get(key), same, verify)
        if why:
            jobs.append(_Job(key, same, why))
        else:
            report.kept += 1
    return jobs


def _why(cache: ImageCache, entry: Entry | None, records: list, verify: bool) -> str:
    """Why an image must be made; "" if it need not."""
    if entry is None:
        return "new"
    if source_has_changed(entry):
        return "changed"
    if verify and not cache.is_whole(entry):
        return "damaged"
    for record in records:
        if entry.geometry(cache.preprocessing, record, ground_truth(record)[0]) is None:
            return "other crop"
    return ""


def _made(jobs: list[_Job], preprocessing: Preprocessing, workers: int) -> DataLoader:
    """What :class:`_Images` gives for each job, in their order, by so many processes."""
    return DataLoader(
        _Images(jobs, preprocessing),
        batch_size=None,
        num_workers=0 if workers == 1 else workers,
        # forking a process that has loaded OpenCV's threads can hang
        multiprocessing_context=None if workers == 1 else "spawn",
        collate_fn=_same,
        worker_init_fn=_start_worker,
    )


def _keep(job: _Job, result: tuple | str, writer: "_ShardWriter", report: CacheReport) -> None:
    """Write one image, or note why there is none."""
    if isinstance(result, str):
        report.failed.append(result)
        return
    facts, data, conflict = result
    writer.add(facts, data)
    report.made[job.why] = report.made.get(job.why, 0) + 1
    if conflict:
        report.wrong_sides.append(conflict)


class _Images(torch.utils.data.Dataset):
    """Makes an image in whichever process asks for it."""

    def __init__(self, jobs: list[_Job], preprocessing: Preprocessing):
        self.jobs, self.preprocessing = jobs, preprocessing

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], list, str | None] | str:
        try:
            return _make(self.jobs[index], self.preprocessing)
        except UserError as error:
            return str(error)
        except OSError as error:
            return f"{self.jobs[index].key[0]!r} cannot be read ({error.strerror})"


def _make(
    job: _Job, preprocessing: Preprocessing
) -> tuple[dict[str, Any], list[np.ndarray], str | None]:
    """Facts of an entry, its arrays, and a contradiction between header and pixels."""
    file, frame = job.key
    if not os.path.isfile(file):
        raise UserError(f"image {file!r} does not exist: check file_name and image_root")
    source = describe_source(file)
    pixels = preprocessing.read(file, frame)
    needs_region = any(preprocessing.needs_region(record) for record in job.records)
    region = find_breast(pixels) if needs_region else None
    crops = [
        preprocessing.geometry_from(pixels.shape, region, record, ground_truth(record)[0]).crop
        for record in job.records
    ]
    part = (*np.min(crops, axis=0)[:2].tolist(), *np.max(crops, axis=0)[2:].tolist())
    x0, y0, x1, y1 = part
    stored, levels = encode(pixels[y0:y1, x0:x1])
    facts = {
        "file": file,
        "frame": frame,
        "source": source,
        "original_size": tuple(pixels.shape),
        "part": part,
        "region": region.without_mask() if region else None,
    }
    conflict = laterality_conflict(job.records[0], region) if region else None
    return facts, [stored, levels], f"{file!r}: {conflict}" if conflict else None


class _ShardWriter:
    """Appends to the last shard; starts another when it is full."""

    def __init__(self, folder: Path, capacity: int):
        self.folder, self.capacity = folder, capacity
        self.number = max((int(p.stem[6:]) for p in folder.glob("shard-*.bin")), default=0)
        self._pixels, self._index = self._open()

    def __enter__(self) -> "_ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def add(self, facts: dict[str, Any], arrays: list[np.ndarray]) -> None:
        """Write one image, then its line."""
        if self._pixels.tell() >= self.capacity:
            self._close()
            self.number += 1
            self._pixels, self._index = self._open()
        stored, levels = arrays
        data = stored.astype("<u2").tobytes() + levels.astype("<f4").tobytes()
        digest = hashlib.sha256(data).hexdigest()
        place = {"shard": self.number, "offset": self._pixels.tell(), "num_levels": len(levels)}
        try:
            self._pixels.write(data)
            self._pixels.flush()
            self._index.write(index_line(Entry(**facts, **place, sha256=digest)))
            self._index.flush()
        except OSError as error:
            raise UserError(
                f"cache folder {str(self.folder)!r} cannot be written: {error.strerror}; what is "
                "there is kept, so make room and run again"
            ) from error

    def _open(self) -> tuple[Any, Any]:
        path = shard_path(self.folder, self.number)
        return open(path, "ab"), open(path.with_suffix(".jsonl"), "ab")

    def _close(self) -> None:
        for file in (self._pixels, self._index):
            os.fsync(file.fileno())
            file.close()


def _same(item: Any) -> Any:
    return item


def _start_worker(_: int) -> None:
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent reads no results, and a worker would wait for ever to hand over its last."""
    multiprocessing.parent_process().join()
    os._exit(1)
