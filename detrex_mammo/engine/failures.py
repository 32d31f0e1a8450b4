# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Failures of the machine during training, told in one sentence."""

import errno
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detrex_mammo.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Its folder is gone or not to be written any more, or the disk itself is.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM)
_BROKEN = (errno.EROFS, errno.EIO, errno.ESTALE)
_DEAD_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(.*?killed by signal: ([\w ]+))?", re.DOTALL
)


@contextmanager
def told_in_a_sentence(folder: Path) -> Iterator[None]:
    """Turn a full or lost disk, and the death of a process that loads images, into a sentence.

    Args:
        folder: of the run. A file that is missing elsewhere is a bug, which keeps its traceback.

    Raises:
        UserError: one of these.
    """
    try:
        yield
    except (OSError, EOFError) as error:
        if _is_of_a_handover(error):
            raise _dead_worker("has died") from error
        code, name = getattr(error, "errno", None), getattr(error, "filename", None)
        name = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else ""
        if code in _BROKEN or (code in _GONE and name and _is_lost(code, name, folder)):
            raise UserError(
                f"{repr(name) if name else 'a file'} cannot be read or written any more "
                f"({error.strerror}): bring its folder or disk back and go on with --resume"
            ) from error
        if code not in _FULL:
            raise
        place = f" for {name!r}" if name else ""
        raise UserError(
            f"the disk has no room{place} ({error.strerror}): make room and go on with --resume "
            "from the last checkpoint, which is whole"
        ) from error
    except RuntimeError as error:
        found = _DEAD_WORKER.search(f"{error} {error.__cause__}")  # which may know the signal
        if found is None:
            raise
        how = f"was killed ({found[3].strip()})" if found[3] else "has died"
        raise _dead_worker(f"(pid {found[1]}) {how}") from error


def _is_lost(code: int, name: str, folder: Path) -> bool:
    """Whether a file of the run cannot be there, or not be written, any more."""
    path, run = (Path(os.path.abspath(place)) for place in (name, folder))
    is_missing = code in (errno.ENOENT, errno.ENOTDIR)
    return path.is_relative_to(run) and not (is_missing and run.is_dir())


def _is_of_a_handover(error: BaseException) -> bool:
    """Whether a process died while it handed over a batch, which torch does not always notice."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).name == "resource_sharer.py" for frame in frames)


def _dead_worker(what: str) -> UserError:
    return UserError(
        f"a process that loads images {what}, most often because memory or /dev/shm is full: lower "
        "dataloader.train.num_workers or prefetch_factor and go on with --resume"
    )
