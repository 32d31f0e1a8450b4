# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The files of a split: written entry by entry, those of an earlier one removed."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from detrex_mammo.data.coco_table import CocoTable
from detrex_mammo.data.json_stream import EntryWriter, read_entries

FOLD = "fold"
_OWN_FILE = re.compile(rf"({FOLD}\d+/)?[\w-]+\.json")


def remove_earlier(out: Path, kept: set[Path]) -> None:
    """Remove what an earlier split wrote and this one does not: its folds would mix with ours."""
    try:
        files = json.loads((out / "splits.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, LookupError, TypeError):
        return
    for name in files:
        if _OWN_FILE.fullmatch(name) and (out / name).resolve() not in kept:
            (out / name).unlink(missing_ok=True)
            if name.startswith(FOLD):
                with suppress(OSError):  # another file is in it
                    (out / name).parent.rmdir()


def write_files(
    tables: Sequence[CocoTable],
    sides_of: Sequence[Sequence[str]],
    targets: Mapping[Path, tuple[str, ...]],
    progress: bool,
) -> None:
    """Write each image and its boxes into the files of its side; ``split`` is the file's name.

    Args:
        tables: the sources.
        sides_of: of each source, of each image: its side.
        targets: files and the sides that they hold.
        progress: show bars.
    """
    files_of: dict[str, list[tuple[Path, str]]] = {}
    for path, sides in targets.items():
        for side in sides:
            files_of.setdefault(side, []).append((path, path.stem))
    with ExitStack() as stack:
        writers = {}
        for path in targets:
            path.parent.mkdir(parents=True, exist_ok=True)
            writers[path] = stack.enter_context(EntryWriter(path))
        for source, key, index, entry in _entries(tables, progress):
            if key not in ("images", "annotations") or index is None:
                for writer in writers.values():
                    writer.add(key, json.dumps(entry), index is not None)
                continue
            table, sides = tables[source], sides_of[source]
            row = index if key == "images" else int(table.image_of[index])
            text = json.dumps(entry) if key == "annotations" else ""
            for path, name in files_of.get(sides[row], ()) if row >= 0 else ():
                writers[path].add(key, text or json.dumps({**entry, "split": name}))


def _entries(tables: Sequence[CocoTable], progress: bool) -> Iterator[tuple[int, str, Any, Any]]:
    """Entries of all sources: as they come from one, list by list from several."""
    if len(tables) == 1:
        for key, index, entry in read_entries(tables[0].path, progress):
            yield 0, key, index, entry
        return
    for wanted in ("images", "annotations", None):
        for source, table in enumerate(tables if wanted else tables[:1]):
            for key, index, entry in read_entries(table.path, progress):
                if key == wanted or (not wanted and key not in ("images", "annotations")):
                    yield source, key, index, entry


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()
