# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Several datasets as one for training, with one list of classes."""

import logging
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from detrex_mammo.data.class_names import match_classes
from detrex_mammo.data.columns import Columns
from detrex_mammo.data.datasets import CocoFile, register
from detrex_mammo.data.record_store import (
    ImageIds,
    RecordStore,
    once_per_machine,
    patient_key,
    row_of,
)
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
_NEEDED, _OPTIONAL = ("json_file", "image_root"), ("weight",)


def load_mixed(
    name: str,
    parts: Mapping[str, Mapping[str, Any]],
    classes: Sequence[str] | None = None,
    class_map: Mapping[str, str | None] | None = None,
) -> "MixedStore":
    """Read several COCO JSONs, match their classes by name, and register them as one dataset.

    A test set of one of them is loaded by ``load_coco_json`` with the same ``classes`` and
    ``class_map``. In a distributed run all processes call this together.

    Args:
        name: of the whole.
        parts: name of a part -> ``json_file``, ``image_root`` and, if need be, ``weight``: its
            share in an epoch, in any unit, for all parts or none. Without weights every image
            counts the same.
        classes: names in the order of the model; all that the parts have when None.
        class_map: name in a part -> name here, or None to leave its boxes out, which is counted.

    Returns:
        MixedStore: the records of all parts, one part after the other.

    Raises:
        UserError: a part's settings or file are wrong, or a class is in neither ``classes`` nor
            ``class_map``.
    """
    weights = _weights(_checked(parts))

    def read() -> tuple[list[RecordStore], list[str]]:
        files = {part: CocoFile(settings["json_file"]) for part, settings in parts.items()}
        names, tables = match_classes(list(files.values()), classes, class_map)
        stores = [
            files.pop(part).store(settings["image_root"], table)  # what was read is given up
            for (part, settings), table in zip(parts.items(), tables)
        ]
        return stores, names

    stores, names = once_per_machine(read)
    mixed = MixedStore(dict(zip(parts, stores)), weights)
    register(
        name,
        mixed,
        thing_classes=names,
        thing_dataset_id_to_contiguous_id={index + 1: index for index in range(len(names))},
        json_files={part: str(settings["json_file"]) for part, settings in parts.items()},
    )
    for part, store in mixed.parts.items():
        logger.info(
            "dataset %s: %s with %d images, %d boxes%s",
            name,
            part,
            len(store),
            len(store.arrays.classes),
            f", weight {weights[part]:g}" if weights else "",
        )
    return mixed


class MixedStore(Dataset, Sequence):
    """Dataset dicts of several stores, one store after the other.

    A record has its part's name in ``image_id`` ("part/id"), which is unique, and as ``dataset``
    if its file names none.

    Args:
        parts: name -> records.
        weights: name -> share of the part in an epoch, in any unit; empty for none.

    Attributes:
        dataset_weights: ``weights``, for samplers.
    """

    def __init__(self, parts: Mapping[str, RecordStore], weights: Mapping[str, float]):
        self.parts = dict(parts)
        self.dataset_weights = dict(weights)
        self._names, self._stores = list(self.parts), list(self.parts.values())
        self._starts = [0, *accumulate(len(store) for store in self._stores)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: Any) -> Any:
        """A record as a dict of its own; a list of them for a slice."""
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        part, row = self._place(row_of(index, len(self)))
        return self._named(self._stores[part][row], part)

    def image(self, row: int) -> dict[str, Any]:
        """The record without its annotations.

        Args:
            row: from 0.
        """
        part, row = self._place(row)
        return self._named(self._stores[part].image(row), part)

    def _place(self, row: int) -> tuple[int, int]:
        part = bisect_right(self._starts, row) - 1
        return part, row - self._starts[part]

    def _named(self, record: dict[str, Any], part: int) -> dict[str, Any]:
        name = self._names[part]
        record["image_id"] = f"{name}/{record['image_id']}"
        record["dataset"] = record.get("dataset") or name
        return record

    @cached_property
    def columns(self) -> Columns:
        """What samplers ask for; ``datasets`` are the parts. Made once."""
        columns = [store.columns for store in self._stores]
        boxes_before = [0, *accumulate(len(part.box_classes) for part in columns)]
        starts = [part.box_starts[:-1] + before for part, before in zip(columns, boxes_before)]
        return Columns(
            image_ids=ImageIds(self),
            sizes=np.concatenate([part.sizes for part in columns]),
            box_starts=np.concatenate([*starts, boxes_before[-1:]]).astype(np.int64),
            box_classes=np.concatenate([part.box_classes for part in columns]),
            patients=self._patients(columns),
            datasets=np.repeat(
                np.arange(len(columns), dtype=np.int32), [len(store) for store in self._stores]
            ),
            dataset_names=self._names,
        )

    def _patients(self, columns: Sequence[Columns]) -> np.ndarray:
        """(N,) int32; parts that name the same dataset share its patients."""
        known: dict[tuple, int] = {}
        numbers = []
        for start, part in zip(self._starts, columns):
            _, first = np.unique(part.patients, return_index=True)
            keys = (patient_key(self.image(start + row), start + row) for row in first.tolist())
            table = [known.setdefault(key, len(known)) for key in keys]
            numbers.append(np.array(table, dtype=np.int32)[part.patients])
        return np.concatenate(numbers)

    def __deepcopy__(self, memo: dict) -> "MixedStore":
        return self  # it never changes

    def __reduce__(self) -> tuple:
        return MixedStore, (self.parts, self.dataset_weights)


def _checked(parts: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(parts, Mapping) or not parts:
        raise UserError(
            f"parts is {parts!r}: give a name for each dataset, with its json_file and image_root"
        )
    for part, settings in parts.items():
        if not isinstance(part, str) or not part or "/" in part:
            raise UserError(f"parts has a dataset named {part!r}: use a text without '/'")
        keys = list(settings) if isinstance(settings, Mapping) else []
        if set(_NEEDED) - set(keys) or set(keys) - {*_NEEDED, *_OPTIONAL}:
            raise UserError(
                f"parts.{part} has {', '.join(map(str, keys)) or 'nothing'}: it needs "
                f"{' and '.join(_NEEDED)}, and may have {', '.join(_OPTIONAL)}"
            )
    return parts


def _weights(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    weights = {part: settings.get("weight") for part, settings in parts.items()}
    for part, weight in weights.items():
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if weight is not None and not (is_number and 0 <= weight < math.inf):
            raise UserError(f"parts.{part}.weight is {weight!r}: use 0, to leave it out, or more")
    without = [part for part, weight in weights.items() if weight is None]
    if len(without) == len(weights):
        return {}
    if without or not any(weights.values()):
        what = f"parts.{without[0]} has no weight, others have" if without else "all weights are 0"
        raise UserError(f"{what}: give all parts one, some above 0, or none")
    return {part: float(weight) for part, weight in weights.items()}
