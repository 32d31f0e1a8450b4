# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Operating points in the checkpoint they belong to, or in a JSON file of their own."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.operating_point import (
    CHECKPOINT_KEY,
    OperatingPoint,
    read_operating_points,
    with_operating_points,
)


def read_points(path: str | Path) -> list[OperatingPoint]:
    """The operating points of a checkpoint or JSON file.

    Raises:
        UserError: the file is missing or damaged, or has none.
    """
    points = read_operating_points(_content(Path(path)))
    if not points:
        raise UserError(
            f"{str(path)!r} has no operating point: choose one on validation first "
            "(tools/evaluate.py --choose box:fppi:0.3 --save-points FILE)"
        )
    return points


def save_points(path: str | Path, points: Sequence[OperatingPoint]) -> None:
    """Add operating points to a checkpoint, or to a JSON file, which is made if need be.

    A point of the same name is replaced; the file is written whole or not at all.

    Raises:
        UserError: the file is damaged or cannot be written.
    """
    path = Path(path)
    is_new = path.suffix == ".json" and not path.exists()
    content = with_operating_points({} if is_new else _content(path), points)
    partial = path.with_suffix(path.suffix + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        else:
            import torch  # takes seconds, and is not needed for JSON

            torch.save(content, partial)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written: {error.strerror}") from error


def _content(path: Path) -> dict[str, Any]:
    if path.suffix != ".json":
        from detrex_mammo.checkpoint.reading import read_checkpoint

        return read_checkpoint(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{str(path)!r} does not exist: check the path") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{str(path)!r} is not a JSON file of operating points: {error}") from error
    if not isinstance(content, dict) or CHECKPOINT_KEY not in content:
        raise UserError(f"{str(path)!r} has no {CHECKPOINT_KEY!r}: it is not a file of them")
    return content
