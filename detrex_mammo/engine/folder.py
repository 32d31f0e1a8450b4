# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The output folder of a run: never overwritten silently."""

from itertools import count
from pathlib import Path

from detrex_mammo.errors import UserError

_TRACES = ("config.yaml", "metrics.json", "last_checkpoint", "model_final.pth")


def output_folder(name: str) -> Path:
    """``train.output_dir`` as a path; an empty one would be the folder one happens to be in."""
    if not name.strip():
        raise UserError("train.output_dir is empty: give a folder, '.' for the one you are in")
    return Path(name).expanduser()


def holds_a_run(folder: Path) -> bool:
    """Whether an earlier run has written here."""
    return any((folder / name).exists() for name in _TRACES)


def check_free(folder: Path) -> None:
    """Refuse a folder that holds another run, or that is a file."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"train.output_dir {str(folder)!r} is a file: give a folder")
    if holds_a_run(folder):
        raise UserError(
            f"train.output_dir {str(folder)!r} holds an earlier run: "
            "go on with it by --resume, or give another train.output_dir"
        )


def numbered(parent: Path, name: str) -> Path:
    """``parent/name``, or ``name_2``, ``name_3``, ...: the first with nothing but a log in it."""
    for number in count(1):
        folder = parent / (name if number == 1 else f"{name}_{number}")
        if not folder.exists() or all(_is_log(path) for path in folder.iterdir()):
            return folder
    raise AssertionError("count() ended")


def _is_log(path: Path) -> bool:
    return path.name.startswith(("log.txt", "status.json"))
