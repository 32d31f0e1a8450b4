# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Which class each output of the heads stands for, and COCO's 91 outputs made 80.

Published heads have an output for each number up to 90, COCO's largest category id; 11 of them
stand for nothing. Each layer's head keeps the 80 that do. The proposal head of a two-stage model
is another matter: its output 0 is objectness, by which proposals are chosen, so it keeps its first
80, not COCO's. (Taking COCO's rows there too runs without complaint and is wrong.)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from detrex_mammo.checkpoint.architecture import Architecture
from detrex_mammo.checkpoint.heads import HEAD

COCO_OUTPUTS = 91
POLICIES = ("auto", "keep")


def coco_table() -> dict[str, list]:
    """COCO's 80 classes: ``names`` and ``ids``, as detectron2 has them."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    things = [category for category in COCO_CATEGORIES if category["isthing"]]
    return {
        "names": [category["name"] for category in things],
        "ids": [int(category["id"]) for category in things],
    }


def stored_table(content: Mapping[str, Any]) -> dict[str, list]:
    """The class table that our own writers leave in a file; empty where it is none."""
    table = content.get("classes")
    names, ids = (
        (table.get("names"), table.get("ids")) if isinstance(table, Mapping) else (None, None)
    )
    is_table = (
        isinstance(names, (list, tuple))
        and isinstance(ids, (list, tuple))
        and len(names) == len(ids)
        and all(isinstance(name, str) for name in names)
        and all(type(number) is int for number in ids)
    )
    return {"names": list(names), "ids": list(ids)} if is_table else {"names": [], "ids": []}


def is_coco91(num_classes: int, told: Mapping[str, Any]) -> bool:
    """Whether heads are COCO's 91: by their names if the file tells any, else by their number."""
    if num_classes != COCO_OUTPUTS:
        return False
    if "classes" in told:
        return False
    names = _names(told)
    if not names:
        return True
    coco = coco_table()
    return all(names.get(i) == name for i, name in zip(coco["ids"], coco["names"]))


def class_table(num_classes: int, told: Mapping[str, Any]) -> dict[str, list]:
    """Names and ids of a model's outputs; empty where the file tells none.

    80 outputs without names are taken for COCO's: detrex and mmdetection train such models.
    """
    if "classes" in told:
        is_whole = len(told["classes"]["names"]) == num_classes
        return told["classes"] if is_whole else {"names": [], "ids": []}
    names = _names(told)
    if not names and num_classes == 80 and "id2label" not in told:
        return coco_table()
    if not names and is_coco91(num_classes, told):
        return _coco91_table()
    if set(names) != set(range(num_classes)):
        return {"names": [], "ids": []}
    ordered = [names[index] for index in range(num_classes)]
    coco = coco_table()
    return coco if ordered == coco["names"] else {"names": ordered, "ids": list(range(num_classes))}


def _coco91_table() -> dict[str, list]:
    """An output for each number up to 90, as published: those without a class are "N/A"."""
    coco = coco_table()
    names = dict(zip(coco["ids"], coco["names"]))
    numbers = list(range(COCO_OUTPUTS))
    return {"names": [names.get(number, "N/A") for number in numbers], "ids": numbers}


def _names(told: Mapping[str, Any]) -> dict[int, str]:
    """Output -> class name; empty if the file tells none but Hugging Face's LABEL_0, LABEL_1, .."""
    names = told.get("id2label") or dict(enumerate(told.get("class_names") or []))
    is_numbered = all(name == f"LABEL_{index}" for index, name in names.items())
    return {} if is_numbered else dict(names)


def reduce_coco91(
    state: Mapping[str, torch.Tensor], architecture: Architecture
) -> dict[str, torch.Tensor]:
    """Class heads of 91 outputs to 80, the proposal head's objectness kept.

    Args:
        state: our names, a head for each layer.
        architecture: of the model with 91 outputs.
    """
    rows = coco_table()["ids"]
    proposals = architecture.num_decoder_layers if architecture.two_stage else -1
    result = dict(state)
    for name, tensor in state.items():
        found = HEAD.fullmatch(name)
        if found and found[1] == "class_embed":
            kept = range(len(rows)) if int(found[2]) == proposals else rows
            result[name] = tensor[list(kept)].clone()
    return result


def nearest_rows(wanted: Sequence[str], known: Sequence[str]) -> dict[str, int]:
    """Class name -> its row among ``known``, for those that are there; case does not matter."""
    rows = {name.casefold(): row for row, name in enumerate(known)}
    return {name: rows[name.casefold()] for name in wanted if name.casefold() in rows}
