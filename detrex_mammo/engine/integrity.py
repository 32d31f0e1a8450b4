# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Checkpoints that are whole or known not to be: written in one step, with a checksum.

The checksums of a folder are in ``checkpoints.sha256``, in the order in which the files were
written, as ``sha256sum --check`` reads them.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from detrex_mammo.checkpoint.reading import file_sha256, read_checkpoint
from detrex_mammo.errors import UserError

NAME = "checkpoints.sha256"
PARTIAL, DAMAGED = ".partial", ".damaged"


class CheckedFolder:
    """A folder of checkpoints.

    Args:
        folder: where they are; need not exist before the first one is written.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def write(self, name: str, save: Callable[[Any], None]) -> None:
        """Write a file so that a kill or a full disk at any point leaves the earlier one whole.

        Args:
            name: of the file.
            save: writes the content into an open file.

        Raises:
            OSError: the disk's; what was written so far is removed.
        """
        target = self.folder / name
        partial = self.folder / f"{name}{PARTIAL}"
        try:
            with open(partial, "wb") as file:
                found = _save(save, file)
            # Until the next line is done, either file may be there; then only the new one.
            self._note({**self.sums(), name: [*self.sums().get(name, ()), found]}, last=name)
            os.replace(partial, target)
            self._note({**self.sums(), name: [found]}, last=name)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def sums(self) -> dict[str, list[str]]:
        """Checksums by file name, oldest file first; two where one file is about to be replaced."""
        try:
            lines = (self.folder / NAME).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return {}
        found: dict[str, list[str]] = {}
        for line in lines:
            digest, _, name = line.partition("  ")
            if len(digest) == 64 and name:
                found.setdefault(name, []).append(digest)
        return found

    def forget(self, *names: str) -> None:
        """Drop the checksums of files that are gone."""
        self._note({name: sums for name, sums in self.sums().items() if name not in names})

    def read(self, name: str) -> dict[str, Any]:
        """The content of a checkpoint whose checksum is right, or was never written down.

        Raises:
            UserError: it is missing or damaged.
        """
        path = self.folder / name
        if path.is_dir():
            raise UserError(f"checkpoint {str(path)!r} is a folder")
        known = self.sums().get(name)
        try:
            is_damaged = known and path.is_file() and file_sha256(path) not in known
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"checkpoint {str(path)!r} cannot be read ({reason})") from error
        if is_damaged:
            raise UserError(
                f"checkpoint {str(path)!r} ({path.stat().st_size} bytes) is damaged: its SHA-256 "
                f"is not the one in {NAME}"
            )
        return read_checkpoint(path)

    def set_aside(self, name: str) -> None:
        """Rename what is damaged, so that nobody takes it for a checkpoint; nothing is deleted."""
        path = self.folder / name
        if path.exists():
            os.replace(path, self.folder / f"{name}{DAMAGED}")
        self.forget(name)

    def remove_partial(self) -> None:
        """Remove what a process that was killed while it wrote has left."""
        for path in self.folder.glob(f"*.pth{PARTIAL}"):
            path.unlink(missing_ok=True)

    def _note(self, sums: dict[str, list[str]], last: str = "") -> None:
        """Replace the list, ``last`` becoming the newest file."""
        order = [name for name in sums if name != last] + [last] * (last in sums)
        text = "".join(f"{digest}  {name}\n" for name in order for digest in sums[name])
        replace_text(self.folder / NAME, text)


def replace_text(path: Path, text: str) -> None:
    """Replace a small text file in one step."""
    partial = path.with_name(path.name + PARTIAL)
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


class _Digest:
    """Passes on what is written, with its checksum; keeps the disk's own error.

    torch turns an error of the file into one that tells positions in an archive.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.sha = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.sha.update(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def _save(save: Callable[[Any], None], file: BinaryIO) -> str:
    """SHA-256 of what ``save`` wrote, which has reached the disk."""
    digest = _Digest(file)
    try:
        save(digest)
    except Exception as error:
        if digest.error is not None:
            raise digest.error from error
        raise
    file.flush()
    os.fsync(file.fileno())
    return digest.sha.hexdigest()
