# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What every run does first: device, seed, log, config.yaml."""

import logging
import random
import secrets
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from detectron2.utils import comm

from detrex_mammo.engine.provenance import git_commit, package_versions
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
_LOGGERS = ("detrex_mammo", "detectron2", "fvcore")


class _ConsoleFormatter(logging.Formatter):
    """Time and message; the level only where it matters."""

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        return f"{self.formatTime(record, '%H:%M:%S')} {level}{record.getMessage()}"


def resolve_device(name: str) -> str:
    """``train.device`` as "cuda" or "cpu"."""
    if name not in ("auto", "cuda", "cpu"):
        raise UserError(f"train.device is {name!r}, but must be 'auto', 'cuda' or 'cpu'")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device is 'cuda', but torch sees no GPU: use 'auto' or 'cpu'")
    return name


def choose_seed(seed: int) -> int:
    """``train.seed``, or one drawn from the system for -1; the same in every process."""
    if type(seed) is not int or not -1 <= seed < 2**63:
        raise UserError(
            f"train.seed is {seed!r}, but must be a whole number below 2**63, -1 to draw one"
        )
    if seed >= 0:
        return seed
    drawn = secrets.randbelow(2**31)
    return comm.all_gather(drawn)[0]


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class _LogFile(logging.FileHandler):
    """A log that a full disk cuts short, and nothing more: the console has the same lines."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Go on."""

    def close(self) -> None:
        """Close it, without what the disk has no room for."""
        with suppress(OSError):
            super().close()


def start_log(folder: Path) -> None:
    """Log to console (main process) and to ``log.txt`` (``log.txt.rankN`` elsewhere).

    A second run in the same process gets a log of its own; detectron2's set-up would write to both.

    Raises:
        UserError: nothing can be written there.
    """
    rank = comm.get_rank()
    name = "log.txt" if rank == 0 else f"log.txt.rank{rank}"
    try:
        handlers: list[logging.Handler] = [_LogFile(folder / name, encoding="utf-8")]
    except OSError as error:
        raise UserError(
            f"train.output_dir {str(folder)!r} cannot be written to ({error.strerror or error}): "
            "give a folder that can"
        ) from error
    handlers[0].setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")
    )
    if rank == 0:
        handlers.append(logging.StreamHandler(sys.stdout))
        handlers[1].setFormatter(_ConsoleFormatter())
    for logger_name in _LOGGERS:
        target = logging.getLogger(logger_name)
        for old in list(target.handlers):
            target.removeHandler(old)
            old.close()
        target.setLevel(logging.INFO)
        target.propagate = False
        for handler in handlers:
            target.addHandler(handler)
    logger.info("versions: %s", ", ".join(f"{k} {v}" for k, v in package_versions().items()))
    logger.info("commit: %s", git_commit() or "not a git clone")


def log_hardware(device: str) -> None:
    """Say what the run runs on."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    logger.info(
        "device: %s, %d process(es), %d thread(s) each",
        name,
        comm.get_world_size(),
        torch.get_num_threads(),
    )


def write_config(text: str, folder: Path) -> None:
    """Write ``config.yaml``; an earlier one that differs is kept as ``config_before_N.yaml``.

    Called when everything is built: a run that could not start leaves none behind, and its folder
    is free for the next attempt.
    """
    if not comm.is_main_process():
        return
    path = folder / "config.yaml"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        kept = folder / f"config_before_{len(list(folder.glob('config_before_*.yaml'))) + 1}.yaml"
        path.rename(kept)
        logger.warning("the config differs from the earlier one, which is now %s", kept)
    path.write_text(text, encoding="utf-8")
