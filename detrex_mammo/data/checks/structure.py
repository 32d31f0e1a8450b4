# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Checks of one file alone: entries, ids, boxes, classes. N annotations."""

import os
from collections import Counter, defaultdict

import numpy as np

from detrex_mammo.data.checks.findings import Findings, Repairs
from detrex_mammo.data.coco_table import IS_TEXT, NO_OBJECT, CocoTable, ImageRow

# A box may leave its image by rounding.
ROUNDING = 1.0
# A lesion of fewer pixels on a side is a point.
SMALLEST_SIDE = 2.0
# A class this many times rarer than another is hardly learned without a balanced sampler.
IMBALANCE = 10


def check_structure(table: CocoTable, findings: Findings, repairs: Repairs) -> None:
    """All checks that need one file and no picture."""
    _check_images(table, findings, repairs)
    _check_categories(table, findings)
    _check_annotations(table, findings, repairs)
    _check_balance(table, findings)


def leads_out(file_name: str) -> bool:
    """Whether a file name leaves the dataset's folder."""
    inside = os.path.normpath(file_name.replace("\\", "/"))
    return os.path.isabs(inside) or inside.split("/")[0] == ".." or "\0" in file_name


def is_frame(frame: str | None) -> bool:
    """Whether a frame is a whole number from 0, or not given."""
    return frame is None or (frame.isascii() and frame.isdecimal())


def _check_images(table: CocoTable, findings: Findings, repairs: Repairs) -> None:
    rows_of_id, row_of_file = defaultdict(list), {}
    for row, image in enumerate(table.images):
        why = _fault(image)
        if why:
            findings.add("error", why, f"{table.path.name} image {image.index}")
            repairs.images[row] = why
            continue
        rows_of_id[image.id].append(row)
        picture = (os.path.normpath(image.file_name), int(image.frame or 0))
        first = row_of_file.setdefault(picture, row)
        if first != row and table.images[first].id != image.id:
            why = "files that two images of a JSON name"
            findings.add("error", why, image.file_name)
            repairs.images[row] = why
        if type(image.id) is not int:
            what = "image ids that are no whole numbers"
            findings.add("error", what, f"{table.path.name}: {image.id!r}")
            repairs.renumber_images = True
    for image_id, rows in rows_of_id.items():
        if len(rows) > 1:
            what = "image ids that are there twice"
            findings.add("error", what, f"{table.path.name}: {image_id!r}")
            names = {table.images[row].file_name for row in rows}
            # Whose the boxes are can only be told if the pictures are one.
            left_out = rows[1:] if len(names) == 1 else rows
            repairs.images.update(dict.fromkeys(left_out, what))


def _fault(image: ImageRow) -> str | None:
    """Why an image cannot be used at all."""
    if image.id is None or image.file_name is None:
        return "images without id or file_name"
    if image.height is None or image.width is None:
        return "images whose height and width are no positive whole numbers"
    if not is_frame(image.frame):
        return "frames that are no whole number from 0"
    if leads_out(image.file_name):
        return "file names that lead out of the dataset's folder"
    return None


def _check_categories(table: CocoTable, findings: Findings) -> None:
    ids, names = zip(*table.categories)
    name = table.path.name
    for label, values in (("ids", ids), ("names", names)):
        twice = [repr(value) for value, count in Counter(map(repr, values)).items() if count > 1]
        findings.add("error", f"category {label} that are there twice", twice, len(twice))
    strange = [repr(i) for i in ids if type(i) is not int] + [
        repr(n) for n in names if not isinstance(n, str) or not n
    ]
    what = "categories whose id is no whole number or whose name is no text"
    findings.add("error", what, strange, len(strange))
    numbers = sorted(i for i in ids if type(i) is int)
    if not strange and numbers and numbers != list(range(numbers[0], numbers[-1] + 1)):
        findings.add("warning", "gaps in the category ids", f"{name}: {numbers[:20]}")


def _check_annotations(table: CocoTable, findings: Findings, repairs: Repairs) -> None:
    boxes, image_of = table.boxes, table.image_of
    sizes = np.array([(i.width or np.nan, i.height or np.nan) for i in table.images], dtype=float)
    size = np.where((image_of >= 0)[:, None], sizes[image_of], np.nan)
    ends = boxes[:, :2] + boxes[:, 2:]
    with np.errstate(invalid="ignore"):
        is_box = np.isfinite(boxes).all(axis=1) & np.isfinite(ends).all(axis=1)
        is_flat = (boxes[:, 2:] <= 0).any(axis=1)
        is_away = (boxes[:, :2] >= size).any(axis=1) | (ends <= 0).any(axis=1)
        excess = np.maximum(-boxes[:, :2], ends - size).max(axis=1)
        is_tiny = (boxes[:, 2:] < SMALLEST_SIDE).any(axis=1)
    left = np.ones(len(boxes), dtype=bool)
    drops = (
        ("annotations that are no objects", (table.flags & NO_OBJECT) > 0),
        ("boxes of an image that the file does not list", image_of < 0),
        ("boxes of a category that the file does not list", table.category_of < 0),
        ("boxes that are not four finite numbers", ~is_box),
        ("boxes without area (width or height is 0 or less)", is_flat),
        ("boxes outside of their image", is_away),
    )
    for what, mask in drops:
        left = _drop(table, findings, repairs, what, mask, left)
    is_twice = np.zeros(len(boxes), dtype=bool)
    is_twice[_repeated_rows(table)] = True
    left = _drop(table, findings, repairs, "boxes that are there twice", is_twice, left)

    _cut(table, findings, repairs, left & (excess > 1e-3), excess, size)
    as_text = np.flatnonzero(left & ((table.flags & IS_TEXT) > 0))
    findings.add("error", "boxes whose numbers are text", _where(table, as_text), len(as_text))
    for row in as_text:
        repairs.boxes.setdefault(int(row), boxes[row].tolist())
    tiny = np.flatnonzero(left & is_tiny)
    what = f"boxes with a side under {SMALLEST_SIDE:g} pixels"
    findings.add("warning", what, _where(table, tiny), len(tiny))
    twice = table.repeated_ids
    what = "annotation ids that are there twice, or missing"
    findings.add("error", what, _where(table, twice), len(twice))
    repairs.renumber_annotations |= bool(len(twice))


def _drop(table, findings, repairs, what, mask, left) -> np.ndarray:
    """Report those of ``mask`` that no earlier fault has; returns what is left."""
    rows = np.flatnonzero(mask & left)
    findings.add("error", what, _where(table, rows), len(rows))
    repairs.annotations.update(dict.fromkeys(rows.tolist(), what))
    return left & ~mask


def _cut(table, findings, repairs, mask, excess, size) -> None:
    for level, what, chosen in (
        ("error", f"boxes that leave their image by more than {ROUNDING:g} pixel", True),
        ("warning", f"boxes that leave their image by up to {ROUNDING:g} pixel", False),
    ):
        rows = np.flatnonzero(mask & ((excess > ROUNDING) == chosen))
        findings.add(level, what, _where(table, rows), len(rows))
        corner = np.maximum(table.boxes[rows, :2], 0)
        end = np.minimum(table.boxes[rows, :2] + table.boxes[rows, 2:], size[rows])
        cut = np.concatenate([corner, end - corner], axis=1)
        repairs.boxes.update(zip(rows.tolist(), cut.tolist()))


def _repeated_rows(table: CocoTable) -> np.ndarray:
    """Annotations equal to an earlier one in image, category and box."""
    mixed = np.zeros(len(table.boxes), dtype=np.uint64)
    columns = [table.image_of, table.category_of, *np.ascontiguousarray(table.boxes.T)]
    for column in columns:  # equal rows have equal numbers; so have next to no others
        mixed ^= column.view(np.uint64)
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    order = np.argsort(mixed, kind="stable")
    near = np.flatnonzero(mixed[order[1:]] == mixed[order[:-1]])
    first, second = order[near], order[near + 1]
    is_equal = np.ones(len(near), dtype=bool)
    for column in columns:
        is_equal &= column[first] == column[second]
    return second[is_equal]


def _check_balance(table: CocoTable, findings: Findings) -> None:
    known = table.category_of[(table.category_of >= 0) & (table.image_of >= 0)]
    counts = np.bincount(known, minlength=len(table.categories))
    named = [(str(name), int(n)) for (_, name), n in zip(table.categories, counts)]
    empty = [f"{table.path.name}: {name}" for name, count in named if not count]
    findings.add("warning", "categories without any box", empty, len(empty))
    least, most = min(named, key=lambda item: item[1]), max(named, key=lambda item: item[1])
    if least[1] and most[1] > IMBALANCE * least[1]:
        text = f"{table.path.name}: {most[1]} of {most[0]}, {least[1]} of {least[0]}"
        what = f"classes more than {IMBALANCE} times rarer than another"
        rare = sum(0 < n * IMBALANCE < most[1] for _, n in named)
        findings.add("warning", what, text, rare)


def _where(table: CocoTable, rows: np.ndarray) -> list[str]:
    """Names of the first few annotations."""
    told = []
    for row in rows[:5].tolist():
        image = table.images[table.image_of[row]] if table.image_of[row] >= 0 else None
        numbers = [f"{value:g}" for value in table.boxes[row]]
        name = f" ({image.file_name})" if image is not None and image.file_name else ""
        told.append(f"{table.path.name} annotation {row} [{', '.join(numbers)}]{name}")
    return told
