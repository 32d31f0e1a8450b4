# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What was chosen on validation, in the checkpoint it belongs to or in a JSON file of its own.

That is operating points and the calibration of scores; a file may hold both.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation import calibration, operating_point
from detrex_mammo.evaluation.calibration import Isotonic, Temperature
from detrex_mammo.evaluation.operating_point import OperatingPoint

_KEYS = (operating_point.CHECKPOINT_KEY, calibration.CHECKPOINT_KEY)


def read_points(path: str | Path) -> list[OperatingPoint]:
    """The operating points of a checkpoint or JSON file.

    Raises:
        UserError: the file is missing or damaged, or has none.
    """
    points = operating_point.read_operating_points(_content(Path(path)))
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
    content = _content(Path(path), may_be_new=True)
    _write(Path(path), operating_point.with_operating_points(content, points))


def read_calibration(path: str | Path) -> Temperature | Isotonic:
    """The calibration of a checkpoint or JSON file.

    Raises:
        UserError: the file is missing or damaged, or has none.
    """
    entry = _content(Path(path)).get(calibration.CHECKPOINT_KEY)
    if not isinstance(entry, Mapping):
        raise UserError(
            f"{str(path)!r} has no calibration: fit one on validation first "
            "(tools/evaluate.py --calibrate temperature --save-calibration FILE)"
        )
    return calibration.from_dict(entry)


def save_calibration(path: str | Path, fitted: Temperature | Isotonic) -> None:
    """Put a calibration into a checkpoint or JSON file, in place of an earlier one.

    Raises:
        UserError: the file is damaged or cannot be written.
    """
    content = _content(Path(path), may_be_new=True)
    _write(Path(path), {**content, calibration.CHECKPOINT_KEY: calibration.to_dict(fitted)})


def _write(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_suffix(path.suffix + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        else:
            import torch  # takes seconds, and is not needed for JSON

            torch.save(dict(content), partial)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written: {error.strerror}") from error


def _content(path: Path, may_be_new: bool = False) -> dict[str, Any]:
    if path.suffix != ".json":
        from detrex_mammo.checkpoint.reading import read_checkpoint

        return read_checkpoint(path)
    if may_be_new and not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{str(path)!r} does not exist: check the path") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{str(path)!r} is not a JSON file of operating points: {error}") from error
    if not isinstance(content, dict) or not set(_KEYS) & set(content):
        raise UserError(
            f"{str(path)!r} has neither {' nor '.join(map(repr, _KEYS))}: it is not a file of them"
        )
    return content
