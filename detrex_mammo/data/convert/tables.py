# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Text that somebody else wrote: tables, numbers and paths, read without trusting them."""

import ast
import csv
import math
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detrex_mammo.data.convert.dataset import Report
from detrex_mammo.errors import UserError
from detrex_mammo.progress import Progress

_LONGEST_CELL = 1 << 20


def find(root: Path, patterns: Sequence[str], what: str) -> list[Path]:
    """Files below ``root`` of any of the patterns, sorted.

    Args:
        root: the folder that the user named.
        patterns: as :meth:`Path.glob` takes them.
        what: these files, for the message.

    Raises:
        UserError: ``root`` is no folder or holds none of them.
    """
    if not root.is_dir():
        raise UserError(f"--root {str(root)!r} is no folder: name the folder of the data set")
    files = sorted({path for pattern in patterns for path in root.glob(pattern)})
    if not files:
        raise UserError(
            f"--root {str(root)!r} holds no {what} ({', '.join(patterns)}): name the folder as it "
            "was downloaded and unpacked"
        )
    return files


def delimiter_of(path: Path) -> str:
    """The one of comma, semicolon and tab that the first line of a table has most.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            return max(",;\t", key=file.readline().count)
    except OSError as error:
        raise UserError(f"table {str(path)!r} cannot be read: {error.strerror}") from error


def read_cells(
    path: Path, report: Report, delimiter: str = "", is_strict: bool = False, title: str = ""
) -> Iterator[tuple[str, list[str]]]:
    """Rows of a CSV file that are not empty, one at a time: the file may be larger than the memory.

    Args:
        path: UTF-8 with or without a byte order mark.
        report: gets a line for each line of the file that is no CSV.
        delimiter: between two cells; as :func:`delimiter_of` finds it, if "".
        is_strict: other text than UTF-8, and quotes that do not close, are errors.
        title: of a bar that shows how far it is; none if "".

    Yields:
        tuple: where the row stands ("FILE line N") and its cells, stripped, also of line ends
        inside quotes.

    Raises:
        UserError: the file cannot be read.
    """
    csv.field_size_limit(_LONGEST_CELL)
    delimiter = delimiter or delimiter_of(path)
    errors = "strict" if is_strict else "replace"
    try:
        with (
            open(path, encoding="utf-8-sig", errors=errors, newline="") as file,
            Progress(title, path.stat().st_size, "B", is_shown=bool(title)) as bar,
        ):
            lines = (line.replace("\0", "") for line in _counted(file, bar))
            reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=is_strict)
            yield from _whole_rows(reader, path.name, report)
    except OSError as error:
        raise UserError(f"table {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"table {str(path)!r} cannot be read as UTF-8 text ({error})") from error


def _counted(lines: Iterable[str], bar: Progress) -> Iterator[str]:
    for line in lines:
        bar.update(len(line))
        yield line


def _whole_rows(reader: Any, name: str, report: Report) -> Iterator[tuple[str, list[str]]]:
    while True:
        before = reader.line_num
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            for number in range(before + 1, reader.line_num + 1):
                report.add("dropped", f"rows that are no CSV ({error})", f"{name} line {number}")
            continue
        if any(cells):
            yield f"{name} line {reader.line_num}", cells


def read_rows(
    path: Path, columns: Sequence[str], report: Report, delimiter: str = "", title: str = ""
) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a table with a header.

    Args:
        path: CSV file.
        columns: that the table must have. Names are compared without case.
        report: gets a line for each row that is too short or too long.
        delimiter: see :func:`read_cells`.
        title: see :func:`read_cells`.

    Yields:
        tuple: where the row stands ("FILE line N") and its cells by lower-case column.

    Raises:
        UserError: the file cannot be read or lacks a column.
    """
    rows = read_cells(path, report, delimiter, title=title)
    header = [name.lower() for name in next(rows, ("", []))[1]]
    missing = [name for name in columns if name.lower() not in header]
    if missing:
        raise UserError(
            f"table {str(path)!r} lacks the column {missing[0]!r}; it has {', '.join(header)}"
        )
    for where, cells in rows:
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()
        if len(cells) != len(header):
            report.add("dropped", "rows of another number of cells than the header", where)
            continue
        yield where, dict(zip(header, cells))


def number(text: str | None) -> float | None:
    """A finite number, None from anything else."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def numbers(cells: Mapping[str, str], *names: str) -> list[float] | None:
    """The named cells as finite numbers, None if one of them is none."""
    values = [number(cells.get(name)) for name in names]
    return None if None in values else values


def birads(text: str | None) -> str | None:
    """BI-RADS category "0" to "6", also "4a", out of a text such as "BI-RADS 4"."""
    match = re.search(r"(?<![\d.])([0-6])(?:\.0+)?([abcABC]?)\s*$", text or "")
    return match.group(1) + match.group(2).lower() if match else None


def literal_list(text: str) -> list[Any] | None:
    """A Python list or tuple written as text, never run; None if it is no short list."""
    try:
        value = ast.literal_eval(text) if len(text) < 10_000 else None
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
    return list(value) if isinstance(value, list | tuple) else None


def side(text: str | None) -> str | None:
    """ "L" or "R" from "Left", "l", "RIGHT", ...; None from anything else."""
    letter = (text or "").strip().upper()[:1]
    return letter if letter in ("L", "R") else None


def density(text: str | None) -> str | None:
    """BI-RADS density "A" to "D" from 1 to 4 or from the letter, also after a word."""
    last = (text or "").strip().upper()[-1:] if number(text) is None else f"{number(text):g}"
    letters = {"1": "A", "2": "B", "3": "C", "4": "D"}
    return letters.get(last, last if last in letters.values() else None)


def inside(relative: str) -> str | None:
    """A path from a file as one with "/", None if it is empty or leads out of its folder.

    Args:
        relative: as written, with "/" or "\\", or a name that is joined to a folder.
    """
    path = relative.strip().replace("\\", "/")
    if not path or "\0" in path or path.startswith("/") or path[1:2] == ":":
        return None
    path = posixpath.normpath(path)
    return None if path in (".", "..") or path.startswith("../") else path


def longest_tail(root: Path, written: str) -> str | None:
    """The longest end of a path, written on another machine, that is a file below ``root``.

    Returns:
        str or None: relative to ``root``; None if there is none or the path has a "..".
    """
    parts = [
        part for part in written.strip().replace("\\", "/").split("/") if part not in ("", ".")
    ]
    if ".." in parts or "\0" in written:
        return None
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((tail for tail in tails if (root / tail).is_file()), None)
