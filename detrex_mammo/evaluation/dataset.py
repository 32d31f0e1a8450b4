# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What both evaluators need to know of a registered data set."""

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

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
    id_of = _id_of_class(dataset_name)
    return [id_of[index] for index in sorted(id_of)] if id_of else sorted(known)


def in_model_classes(annotations: Mapping[str, Any], dataset_name: str) -> Mapping[str, Any]:
    """An annotation file's content with the classes that the data set was loaded with.

    Categories that are one class (``class_map`` of ``load_coco_json``) get the id of one of them,
    and boxes of a class that is left out are left out.

    Args:
        annotations: with ``annotations`` and ``categories``; stays as it is.
    """
    id_of = _id_of_class(dataset_name)
    class_of = MetadataCatalog.get(dataset_name).get("thing_dataset_id_to_contiguous_id") or {}
    known = {category["id"] for category in annotations["categories"]}
    if not id_of or known <= set(id_of.values()):
        return annotations
    names = MetadataCatalog.get(dataset_name).thing_classes
    return {
        **annotations,
        "annotations": [
            {**entry, "category_id": id_of[class_of[entry["category_id"]]]}
            for entry in annotations["annotations"]
            if entry["category_id"] in class_of
        ],
        "categories": [
            {"id": key, "name": names[index]} for index, key in id_of.items() if key in known
        ],
    }


def of_known_classes(
    records: Iterable[Mapping[str, Any]], known: Iterable[int], dataset_name: str
) -> list[Mapping[str, Any]]:
    """Predictions without those of classes that the annotation file does not have.

    A model of several data sets finds classes that one of them did not annotate: nobody knows
    whether it is right.

    Args:
        records: with the annotation file's ``category_id``.
        known: its category ids.
    """
    records, known = list(records), set(known)
    kept = [record for record in records if record["category_id"] in known]
    if len(kept) < len(records):
        logger.warning(
            "%d predictions are of classes that %s does not have; they are not scored",
            len(records) - len(kept),
            dataset_name,
        )
    return kept


def _id_of_class(dataset_name: str) -> dict[int, int]:
    """Contiguous class -> category id, the last one of several; empty if nothing is registered."""
    mapping = MetadataCatalog.get(dataset_name).get("thing_dataset_id_to_contiguous_id")
    return {index: key for key, index in (mapping or {}).items()}


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
