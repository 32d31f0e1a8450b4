# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What both evaluators need to know of a registered data set."""

import logging
import os
from collections.abc import Iterable, Mapping

from detectron2.data import MetadataCatalog

from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)


def annotation_file(dataset_name: str) -> str:
    """Path of the COCO JSON of a registered data set.

    Raises:
        UserError: the data set is not registered, or its annotation file is not there.
    """
    path = MetadataCatalog.get(dataset_name).get("json_file")
    if not path:
        raise UserError(
            f"data set {dataset_name!r} has no annotation file (json_file) registered: register "
            "it, or set dataloader.evaluator.dataset_name to the name of the test data set"
        )
    if not os.path.isfile(path):
        raise UserError(
            f"annotation file {path} of data set {dataset_name!r} does not exist: "
            "prepare the data set first, or correct the path"
        )
    return path


def dataset_category_ids(dataset_name: str, known: Iterable[int]) -> list[int]:
    """The annotation file's category id of every contiguous class, in order.

    It is the registered ``thing_dataset_id_to_contiguous_id``; without one, the sorted ids, which
    is detectron2's own convention.

    Args:
        known: the category ids of the annotation file.
    """
    mapping: Mapping[int, int] | None = MetadataCatalog.get(dataset_name).get(
        "thing_dataset_id_to_contiguous_id"
    )
    if not mapping:
        return sorted(known)
    return sorted(mapping, key=mapping.__getitem__)


def warn_of_missing(seen: set, expected: set, dataset_name: str) -> None:
    """Say when a part of the data set only was predicted; that part is then what is scored.

    Raises:
        UserError: an image was predicted that the annotation file does not have.
    """
    unknown = seen - expected
    if unknown:
        raise UserError(
            f"{len(unknown)} predicted images are not in the annotation file of data set "
            f"{dataset_name!r}, one is {next(iter(unknown))!r}: evaluator and test loader must "
            "name the same data set"
        )
    missing = len(expected - seen)
    if missing:
        logger.warning(
            "%d of the %d images of %s were predicted; the figures are over these only",
            len(expected) - missing,
            len(expected),
            dataset_name,
        )
