# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Result files that are whole or not there, whenever their writer is ended."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file elsewhere, and put it in its place when it is whole.

    Yields:
        Path: to write to, with the same ending.

    Raises:
        OSError: it cannot be put there.
    """
    path = Path(path)
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
