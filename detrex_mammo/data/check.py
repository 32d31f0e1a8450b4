# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Check datasets together: what would spoil a result, in one table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detrex_mammo.data.checks.findings import Findings, Repairs
from detrex_mammo.data.checks.patients import (
    check_categories_agree,
    check_patients,
    patient_key,
    side_of,
)
from detrex_mammo.data.checks.repair import write_repaired
from detrex_mammo.data.checks.structure import check_structure
from detrex_mammo.data.coco_table import CocoTable, read_table
from detrex_mammo.errors import UserError


@dataclass
class Checked:
    """What :func:`check_datasets` found.

    Attributes:
        findings: of all files.
        repairs: of each file.
        tables: the files' contents.
    """

    findings: Findings
    repairs: list[Repairs] = field(default_factory=list)
    tables: list[CocoTable] = field(default_factory=list)

    def describe(self) -> str:
        """A line for each file, then one table."""
        lines = [_summary(table) for table in self.tables]
        return "\n".join([*lines, "", self.findings.describe()])


def check_datasets(
    paths: Sequence[Path],
    image_roots: Sequence[Path] = (),
    pixels: bool = True,
    workers: int = 1,
    progress: bool = False,
) -> Checked:
    """Check COCO JSON files, each alone and all against one another.

    Args:
        paths: the files. Each is a side of a split if its name says so (``train.json``); else its
            images' ``split`` tells.
        image_roots: folders that ``file_name`` is relative to: one for all files, or one each, or
            none for the files' own folders.
        pixels: also open the pictures.
        workers: processes that open them.
        progress: show bars.

    Raises:
        UserError: a file is missing or not COCO JSON, or the arguments do not fit.
    """
    paths = [Path(path) for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("one JSON file is named twice: everything in it would be found twice")
    if len(image_roots) not in (0, 1, len(paths)):
        raise UserError(
            f"{len(image_roots)} image roots for {len(paths)} JSON files: give one, or one each"
        )
    if workers < 1:
        raise UserError(f"--workers is {workers}; use 1 or more")
    roots = [Path(root) for root in image_roots] or [path.parent for path in paths]
    roots = roots * len(paths) if len(roots) == 1 else roots
    checked = Checked(Findings())
    for path in paths:
        checked.tables.append(read_table(path, progress))
        checked.repairs.append(Repairs())
        check_structure(checked.tables[-1], checked.findings, checked.repairs[-1])
    check_categories_agree(checked.tables, checked.findings)
    check_patients(checked.tables, checked.findings, checked.repairs)
    if pixels:
        from detrex_mammo.data.checks.pixels import check_pixels  # pydicom takes a second

        check_pixels(checked.tables, roots, checked.findings, checked.repairs, workers, progress)
    return checked


def fix_datasets(checked: Checked, folder: Path, progress: bool = False) -> list[Path]:
    """Write a repaired copy of each file, with a log beside it.

    Args:
        checked: of :func:`check_datasets`.
        folder: of the copies; they keep their files' names.
        progress: show bars.

    Returns:
        list[Path]: the copies. ``file_name`` in them is as it was.

    Raises:
        UserError: two files have the same name, or the folder is that of an original.
    """
    names = [table.path.name for table in checked.tables]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"two files are named {twice[0]!r}: repair them one after the other")
    copies = []
    for table, repairs in zip(checked.tables, checked.repairs):
        copies.append(folder / table.path.name)
        write_repaired(table, repairs, copies[-1], progress)
    return copies


def write_report(checked: Checked, path: Path) -> None:
    """The table as JSON, for machines."""
    text = json.dumps(checked.findings.to_list(), indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def _summary(table: CocoTable) -> str:
    with_boxes = np.unique(table.image_of[table.image_of >= 0]).size
    counts = np.bincount(table.category_of[table.category_of >= 0], minlength=len(table.categories))
    patients = {patient_key(image) for image in table.images} - {None}
    sides = sorted({side_of(table.path, image) for image in table.images})
    classes = ", ".join(f"{count} {name}" for (_, name), count in zip(table.categories, counts))
    return (
        f"{table.path} ({', '.join(sides[:4])}): {len(table.images)} images of {len(patients)} "
        f"patients, {with_boxes} with boxes; {len(table.boxes)} boxes: {classes}"
    )
