# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Dataset dicts held in a few arrays: one copy for all loader workers and processes of a machine.

Forked workers read the arrays where they lie: no object of Python's stands for a single record, so
nothing is written there when one is read. For processes that are no forks the arrays lie in one
memory-mapped file without a name, which is gone when the last of them ends, however it ends.

N images, M boxes of all images in the order of the images.
"""

import json
import mmap
import operator
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from multiprocessing import reduction
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from detectron2.utils import comm
from torch.utils.data import Dataset

from detrex_mammo.data.columns import Columns
from detrex_mammo.errors import UserError

_ALIGNMENT = 64
Layout = dict[str, tuple[str, tuple[int, ...], int]]  # name: dtype, shape, place in the file


@dataclass(frozen=True)
class RecordArrays:
    """What a store holds.

    Attributes:
        images: uint8, each record without its annotations, as JSON.
        image_starts: (N + 1,) int64 place in ``images``.
        sizes: (N, 2) int32 height, width.
        patients: (N,) int32 number of the patient, in the order in which they come.
        datasets: (N,) int32 number of the dataset, likewise.
        box_starts: (N + 1,) int64 first box of each image.
        boxes: (M, 4) float64 xywh, pixels of the original image.
        classes: (M,) int32, from 0.
        is_crowd: (M,) uint8, 0 or 1.
        extras: uint8, what a box has beside these, as JSON; nothing for a box that has none.
        extra_starts: (M + 1,) int64 place in ``extras``; (0,) if no box has any.
    """

    images: np.ndarray
    image_starts: np.ndarray
    sizes: np.ndarray
    patients: np.ndarray
    datasets: np.ndarray
    box_starts: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray
    extras: np.ndarray
    extra_starts: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(getattr(self, item.name).nbytes for item in fields(self))


class RecordStore(Dataset, Sequence):
    """A list of dataset dicts, without the list; each is made anew when it is asked for.

    A store that is pickled for a process that starts hands over its file, not its records.

    Args:
        arrays: all records; :class:`detrex_mammo.data.record_builder.RecordBuilder` makes them.
        image_root: folder of the records' file names.
        dataset_names: of ``arrays.datasets``; "" for images that name none.
    """

    def __init__(self, arrays: RecordArrays, image_root: str, dataset_names: Sequence[str]):
        self.arrays, self.image_root = arrays, image_root
        self.dataset_names = list(dataset_names)
        self._file: Any = None
        self._layout: Layout = {}

    def __len__(self) -> int:
        return len(self.arrays.sizes)

    def __getitem__(self, index: Any) -> Any:
        """A record as a dict of its own; a list of them for a slice."""
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = row_of(index, len(self))
        return {**self.image(row), "annotations": self._annotations(row)}

    def image(self, row: int) -> dict[str, Any]:
        """The record without its annotations.

        Args:
            row: from 0.
        """
        start, end = self.arrays.image_starts[row : row + 2].tolist()
        image = json.loads(self.arrays.images[start:end].tobytes())
        image["file_name"] = os.path.join(self.image_root, image["file_name"])
        return image

    def _annotations(self, row: int) -> list[dict[str, Any]]:
        arrays = self.arrays
        start, end = arrays.box_starts[row : row + 2].tolist()
        annotations = [
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": label,
                "iscrowd": is_crowd,
            }
            for box, label, is_crowd in zip(
                arrays.boxes[start:end].tolist(),
                arrays.classes[start:end].tolist(),
                arrays.is_crowd[start:end].tolist(),
            )
        ]
        if len(arrays.extra_starts):
            places = arrays.extra_starts[start : end + 1].tolist()
            for annotation, first, last in zip(annotations, places, places[1:]):
                if last > first:
                    annotation.update(json.loads(arrays.extras[first:last].tobytes()))
        return annotations

    @cached_property
    def columns(self) -> Columns:
        """What samplers ask for, without the records; made once."""
        arrays = self.arrays
        starts, classes = arrays.box_starts, arrays.classes
        if arrays.is_crowd.any():
            is_box = arrays.is_crowd == 0
            before = np.concatenate([[0], np.cumsum(is_box, dtype=np.int64)])
            starts, classes = before[starts], classes[is_box]
        return Columns(
            image_ids=ImageIds(self),
            sizes=arrays.sizes,
            box_starts=starts,
            box_classes=classes,
            patients=arrays.patients,
            datasets=arrays.datasets,
            dataset_names=self.dataset_names,
        )

    def __deepcopy__(self, memo: dict) -> "RecordStore":
        return self  # it never changes

    def __reduce__(self) -> tuple:
        if self._file is None:
            os.unlink(self.move_to_file())
        handle = reduction.DupFd(self._file.fileno())
        return _received, (handle, self._layout, self.image_root, self.dataset_names)

    def move_to_file(self) -> str:
        """Put the arrays into a private temporary file and go on from there.

        Returns:
            str: its path. It stays open, so whoever asked may remove it once the others have it.

        Raises:
            UserError: the disk is full.
        """
        number, path = tempfile.mkstemp(prefix="detrex_mammo_records_")
        file = os.fdopen(number, "w+b")
        try:
            self._layout = _write(self.arrays, file)
        except OSError as error:
            os.unlink(path)
            raise UserError(
                f"the folder for temporary files, {tempfile.gettempdir()!r}, cannot take the "
                f"{self.arrays.nbytes / 1e6:.0f} MB of annotations that processes share "
                f"({error.strerror}): set TMPDIR to a folder with more room"
            ) from error
        self._file, self.arrays = file, _mapped(file, self._layout)
        self.__dict__.pop("columns", None)  # they lie in the arrays of before
        return path


def row_of(index: Any, length: int) -> int:
    """The place from 0 that a list's index, also a negative one, means."""
    row = operator.index(index)
    row += length if row < 0 else 0
    if not 0 <= row < length:
        raise IndexError(f"record {index} of {length}")
    return row


class ImageIds(Sequence):
    """The ``image_id`` of every record, read when it is asked for.

    Args:
        store: has ``image`` and a length.
    """

    def __init__(self, store: Any):
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        return self._store.image(row_of(index, len(self)))["image_id"]


def patient_key(image: dict[str, Any], row: Any) -> tuple:
    """What tells patients apart: two datasets may both have a "1", and no name is nobody else.

    Args:
        image: a record.
        row: its own mark.
    """
    patient = image.get("patient_id")
    return (row,) if patient in (None, "") else (image.get("dataset") or "", str(patient))


def once_per_machine(
    read: Callable[[], tuple[list[RecordStore], Any]],
) -> tuple[list[RecordStore], Any]:
    """Let one process of each machine read; the others map what it has read.

    All processes of a distributed run call it together.

    Args:
        read: returns stores, and facts that can be pickled.

    Raises:
        UserError: what ``read`` raised, in every process.
    """
    if comm.get_world_size() == 1 or comm.get_local_size() == 1:
        return read()
    local_rank = comm.get_local_rank()
    stores, facts, error, paths = [], None, "", []
    try:
        if local_rank == 0:
            try:
                stores, facts = read()
                for store in stores:
                    paths.append(store.move_to_file())
            except UserError as caught:
                error = str(caught)
        handles = [
            (path, store._layout, store.image_root, store.dataset_names)
            for path, store in zip(paths, stores)
        ]
        told = comm.all_gather((handles, facts, error))
        first = next((message for *_, message in told if message), "")
        if first:
            raise UserError(first)
        if local_rank:
            handles, facts, _ = told[comm.get_rank() - local_rank]
            stores = [_from_file(open(path, "rb"), *rest) for path, *rest in handles]
        comm.synchronize()
    finally:
        for path in paths:
            os.unlink(path)
    return stores, facts


def _received(handle: Any, layout: Layout, *more: Any) -> RecordStore:
    """In the process that was started: the store of the one that started it."""
    return _from_file(os.fdopen(handle.detach(), "rb"), layout, *more)


def _from_file(file: Any, layout: Layout, image_root: str, names: list[str]) -> RecordStore:
    store = RecordStore(_mapped(file, layout), image_root, names)
    store._file, store._layout = file, layout
    return store


def _write(arrays: RecordArrays, file: Any) -> Layout:
    layout: Layout = {}
    for item in fields(arrays):
        array = np.ascontiguousarray(getattr(arrays, item.name))
        place = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
        file.seek(place)
        layout[item.name] = (array.dtype.str, array.shape, place)
        file.write(array.data)
    file.truncate(file.tell())  # an empty array may lie at the end
    file.flush()
    return layout


def _mapped(file: Any, layout: Layout) -> RecordArrays:
    whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return RecordArrays(
        **{
            name: np.ndarray(shape, dtype, buffer=whole, offset=place)
            for name, (dtype, shape, place) in layout.items()
        }
    )
