# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO JSON entry by entry: ten million boxes need no more memory than one of them.

A file of this size as Python objects takes more than ten gigabytes.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from detrex_mammo.errors import UserError
from detrex_mammo.progress import Progress

_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
# A literal, a number or an escape that the buffer's end cut in two is at most this long.
_LONGEST_CUT = 32
_DECODER = json.JSONDecoder()


def read_entries(
    path: str | os.PathLike, progress: bool = False
) -> Iterator[tuple[str, int | None, Any]]:
    """Read the object that a JSON file holds.

    Args:
        path: of the file, UTF-8, with or without a byte order mark.
        progress: show a bar on stderr.

    Yields:
        tuple: key, index and value: one for each entry of a list; of any other value one, whose
        index is None.

    Raises:
        UserError: the file is missing, no whole JSON, or no object.
    """
    name = str(path)
    try:
        with ExitStack() as stack:
            file = stack.enter_context(open(path, encoding="utf-8-sig"))
            size = os.path.getsize(path)
            bar = stack.enter_context(
                Progress(f"reading {Path(name).name}", size, "B", is_shown=progress)
            )
            yield from _Reader(file, bar).entries()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"annotation file {name!r} does not exist: give a COCO JSON file") from None
    except IsADirectoryError:
        raise UserError(f"annotation file {name!r} is a folder: give a COCO JSON file") from None
    except OSError as error:
        raise UserError(f"annotation file {name!r} cannot be read: {error.strerror}") from error
    except RecursionError:
        raise UserError(f"annotation file {name!r} is nested too deeply for COCO") from None
    except UserError:
        raise
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        reason = " ".join(str(error).split())
        raise UserError(f"annotation file {name!r} is not whole JSON ({reason})") from error


class EntryWriter:
    """The counterpart: COCO JSON written entry by entry, whole or not at all.

    Use it in a ``with`` block; an error inside leaves no file.

    Args:
        path: of the file; its folder is there.
    """

    def __init__(self, path: Path):
        self.path, self._partial = path, path.with_name(path.name + ".partial")
        self._keys: list[str] = []
        self._is_list_open = False

    def __enter__(self) -> "EntryWriter":
        try:
            self._file = open(self._partial, "w", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{str(self.path)!r} cannot be written: {error.strerror}") from error
        self._file.write("{")
        return self

    def add(self, key: str, text: str, is_entry: bool = True) -> None:
        """Add an entry to the list ``key``, or the value of a key; the entries of one list follow
        one another.

        Args:
            key: of the object.
            text: JSON.
            is_entry: of a list; False for any other value.
        """
        if self._is_list_open and is_entry and self._keys[-1] == key:
            self._file.write(",\n" + text)
            return
        assert key not in self._keys, f"{key} is written already"
        self._start(key)
        self._file.write("[\n" + text if is_entry else text)
        self._is_list_open = is_entry

    def _start(self, key: str) -> None:
        self._file.write(("\n]" if self._is_list_open else "") + (",\n" if self._keys else "\n"))
        self._file.write(json.dumps(key) + ": ")
        self._keys.append(key)

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            for key in ("images", "annotations", "categories"):
                if key not in self._keys:
                    self.add(key, "[]", is_entry=False)
            self._file.write(("\n]" if self._is_list_open else "") + "\n}\n")
        self._file.close()
        if kind is None:
            os.replace(self._partial, self.path)
        else:
            self._partial.unlink(missing_ok=True)


class _Reader:
    """A buffer that runs through a file."""

    def __init__(self, file: Any, bar: Any):
        self.file, self.bar = file, bar
        self.buffer, self.position, self.is_at_end = "", 0, False
        self.passed = 0  # characters that have left the buffer

    def entries(self) -> Iterator[tuple[str, int | None, Any]]:
        if self._next() != "{":
            raise ValueError("it holds a list or a single value, not COCO's object")
        self.position += 1
        if self._next() == "}":
            self.position += 1
        else:
            yield from self._members()
        if self._next():
            raise ValueError(f"more text after the end, at character {self._where()}")

    def _members(self) -> Iterator[tuple[str, int | None, Any]]:
        while True:
            if self._next() != '"':
                raise ValueError(f"a key is missing at character {self._where()}")
            key = self._value()
            self._expect(":")
            if self._next() == "[":
                self.position += 1
                for index, value in enumerate(self._items()):
                    yield key, index, value
            else:
                yield key, None, self._value()
            if self._expect(",}") == "}":
                return

    def _items(self) -> Iterator[Any]:
        if self._next() == "]":
            self.position += 1
            return
        while True:
            yield self._value()
            if self._expect(",]") == "]":
                return

    def _next(self) -> str:
        """The next character that is no space, still unread; "" at the end."""
        while True:
            self.position = _SPACE.match(self.buffer, self.position).end()
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if not self._read(_CHUNK):
                return ""

    def _expect(self, allowed: str) -> str:
        found = self._next()
        if not found or found not in allowed:
            wanted = " or ".join(repr(character) for character in allowed)
            told = repr(found) if found else "the file's end"
            raise ValueError(f"{wanted} expected at character {self._where()}, not {told}")
        self.position += 1
        return found

    def _value(self) -> Any:
        """The value at the next character; more is read until it is whole."""
        self._next()
        amount = _CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.position)
                # A number at the buffer's end may go on: "1" may be "1.5", "1e" be "1e-5".
                if end + _LONGEST_CUT < len(self.buffer) or not self._read(amount):
                    self.position = end
                    return value
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string")
                is_cut = is_cut or error.pos > len(self.buffer) - _LONGEST_CUT
                if not is_cut or not self._read(amount):
                    at = self.passed + error.pos
                    raise ValueError(f"{error.msg} at character {at}") from None
            amount *= 2

    def _read(self, amount: int) -> bool:
        """Read on, dropping what is behind; False at the end."""
        more = "" if self.is_at_end else self.file.read(amount)
        if not more:
            self.is_at_end = True
            return False
        self.bar.update(len(more))
        self.passed += self.position
        self.buffer = self.buffer[self.position :] + more
        self.position = 0
        return True

    def _where(self) -> int:
        return self.passed + self.position
