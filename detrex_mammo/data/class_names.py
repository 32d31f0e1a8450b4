# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Classes of several datasets as those of one model, matched by their names."""

import logging
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Protocol

from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)


class NamedClasses(Protocol):
    """A file with ``categories``: dicts of ``id`` and ``name``, sorted by id."""

    json_file: str
    categories: list[dict[str, Any]]


def match_classes(
    files: Sequence[NamedClasses],
    classes: Sequence[str] | None,
    class_map: Mapping[str, str | None] | None,
) -> tuple[list[str], list[dict[Any, int | None]]]:
    """Number the classes of files by their names, capitals and all.

    Args:
        files: any number.
        classes: names in their order; when None all there are, in the order of the files.
        class_map: see :func:`load_coco_json`.

    Returns:
        tuple: names, and for each file category id to class, None for one that is left out.

    Raises:
        UserError: a class is in neither, or the two do not fit.
    """
    if isinstance(classes, str):
        raise UserError(f"classes is {classes!r}; it is a list of names, such as [{classes}]")
    if not isinstance(class_map or {}, Mapping):
        raise UserError(
            f"class_map is {class_map!r}; it is a map, such as {{name in the file: name here}}"
        )
    renamed = dict(class_map or {})
    tables = [{c["id"]: renamed.get(c["name"], c["name"]) for c in f.categories} for f in files]
    found = list(dict.fromkeys(name for table in tables for name in table.values()))
    wanted = [name for name in found if name is not None] if classes is None else list(classes)
    if not wanted or len(set(wanted)) < len(wanted):
        raise UserError(f"classes is {wanted}: give each class once, and one at least")
    for old, new in renamed.items():
        if classes is not None and new is not None and new not in wanted:
            raise UserError(
                f"class_map names {new!r} for {old!r}, which is not in classes ({_listed(wanted)}):"
                " add it there, or map to null"
            )
    for file, table in zip(files, tables):
        for name in table.values():
            if name is not None and name not in wanted:
                raise UserError(
                    f"{file.json_file}: class {name!r} is neither in classes ({_listed(wanted)}) "
                    "nor in class_map: add it to one of them, there with null to leave its boxes "
                    "out"
                )
    for old in sorted(renamed.keys() - {c["name"] for file in files for c in file.categories}):
        logger.warning("class_map names %r, which is no class of the dataset", old)
    place = {name: index for index, name in enumerate(wanted)}
    return wanted, [{key: place.get(name) for key, name in table.items()} for table in tables]


def file_ids_of_classes(
    file: NamedClasses, names: Sequence[str], contiguous: Mapping[Any, int | None]
) -> dict[Any, int]:
    """Category ids of a file with their classes, so that every class has an id.

    Of several categories that are one class here, that of its name comes last: who turns the table
    round finds that one. A class that the file does not have gets an id that the file does not
    use: its predictions cannot be scored there, and are told apart. Ids that are left out are not
    in it.

    Args:
        names: of the classes.
        contiguous: category id to class from 0, or None.
    """
    own_names = {category["id"]: category["name"] for category in file.categories}
    ids = {key: index for key, index in contiguous.items() if index is not None}
    ids = dict(sorted(ids.items(), key=lambda item: own_names[item[0]] == names[item[1]]))
    free = (number for number in count(1) if number not in contiguous)
    for index in sorted(set(range(len(names))) - set(ids.values())):
        ids[next(free)] = index
    return ids


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
