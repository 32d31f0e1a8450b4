# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A sound copy of a JSON, and a log of everything that is not as it was."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from detrex_mammo.data.checks.findings import Repairs
from detrex_mammo.data.coco_table import CocoTable
from detrex_mammo.data.json_stream import EntryWriter, read_entries
from detrex_mammo.errors import UserError

CUT = "its box is cut at the image's border, or its numbers are made numbers"


def write_repaired(
    table: CocoTable, repairs: Repairs, target: Path, progress: bool = False
) -> Counter[str]:
    """Copy a JSON without its faults, and write ``TARGET.log`` beside it, one line per change.

    Args:
        table: the file.
        repairs: what to change.
        target: the copy; another file than the original.
        progress: show a bar.

    Returns:
        Counter: how often each thing was done.

    Raises:
        UserError: the target is the original, or it cannot be written.
    """
    if target.resolve() == table.path.resolve():
        raise UserError(f"--fix would overwrite {str(table.path)!r}: name another folder")
    done: Counter[str] = Counter()
    target.parent.mkdir(parents=True, exist_ok=True)
    log_file = target.with_name(target.name + ".log")
    with open(log_file, "w", encoding="utf-8") as log, EntryWriter(target) as out:
        repair = _Repair(table, repairs, log, done)
        for key, index, entry in read_entries(table.path, progress):
            if key == "images" and index is not None:
                entry = repair.image(index, entry)
            elif key == "annotations" and index is not None:
                entry = repair.annotation(index, entry)
            if entry is not None or index is None:
                out.add(key, json.dumps(entry), index is not None)
        for kind in ("images", "annotations"):
            if getattr(repairs, f"renumber_{kind}"):
                repair.tell(kind, "of this file", "have new ids", "from 1 on")
    return done


class _Repair:
    def __init__(self, table: CocoTable, repairs: Repairs, log: Any, done: Counter[str]):
        self.table, self.repairs, self.log, self.done = table, repairs, log, done

    def image(self, row: int, entry: Any) -> Any:
        """The image's entry, None to leave it out."""
        why = self.repairs.images.get(row)
        if why:
            name = self.table.images[row].file_name
            self.tell("image", f"{row} ({name})", "left out", why)
            return None
        if self.repairs.renumber_images:
            entry = {**entry, "id": row + 1}
        return entry

    def annotation(self, row: int, entry: Any) -> Any:
        """The annotation's entry, None to leave it out."""
        why = self.repairs.annotations.get(row)
        image = int(self.table.image_of[row])
        if why is None and image in self.repairs.images:
            why = f"its image is left out: {self.repairs.images[image]}"
        if why:
            self.tell("annotation", str(row), "left out", why)
            return None
        box = self.repairs.boxes.get(row)
        if box is not None:
            entry = {**entry, "bbox": box, "area": box[2] * box[3]}
            self.tell("annotation", str(row), "changed", CUT)
        if self.repairs.renumber_images:
            entry = {**entry, "image_id": image + 1}
        if self.repairs.renumber_annotations:
            entry = {**entry, "id": row + 1}
        return entry

    def tell(self, kind: str, which: str, what: str, why: str) -> None:
        """One line of the log."""
        self.done[f"{kind} {what}: {why}"] += 1
        line = f"{kind} {which} {what}: {why}"
        self.log.write("".join(c if c.isprintable() else "?" for c in line) + "\n")
