# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Checkpoints of a run: everything needed to go on, evaluate or predict, in one file."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from detrex_mammo.checkpoint.loading import load_weights
from detrex_mammo.checkpoint.reading import read_checkpoint, weights_of
from detrex_mammo.engine.integrity import CheckedFolder, replace_text
from detrex_mammo.engine.sharding import gathered, like
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
BEST = "model_best"
PERIODIC = re.compile(r"model_\d{7}\.pth")
RESUMABLE = re.compile(r"model_(\d{7}|final)\.pth")


class RunCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer with our contents, whole files only, and strict loading.

    Args:
        model (nn.Module): wrapped in DistributedDataParallel or not.
        save_dir (str): the run's output folder.
        describe: returns what else goes into the file: ``config``, ``classes``,
            ``preprocessing``, ``provenance``; called at each save.
        checkpointables: objects with ``state_dict`` and ``load_state_dict``, such as ``trainer``.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str,
        describe: Callable[[], dict[str, Any]] = dict,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, save_to_disk=comm.is_main_process(), **checkpointables)
        self.describe = describe
        self.files = CheckedFolder(save_dir)
        self.source = ""  # the file that newest() has read
        self.last_saved: int | None = None  # iteration of the newest checkpoint of this start

    def save(self, name: str, **extra: Any) -> None:
        """Write ``name.pth``, to resume from; every process takes part, the main one writes."""
        self.last_saved = extra.get("iteration")
        content = {key: item.state_dict() for key, item in self.checkpointables.items()}
        with self._known_to_all():
            if self._write(name, {**content, **extra}):
                self.tag_last_checkpoint(f"{name}.pth")

    def save_best(self, **best: Any) -> None:
        """Write ``model_best.pth``: no state to resume from, but how good it is, as ``best``."""
        with self._known_to_all():
            self._write(BEST, {"best": best})

    def best(self) -> dict[str, Any] | None:
        """What :meth:`save_best` was told last, in this start of the run or an earlier one."""
        name = f"{BEST}.pth"
        if not (Path(self.save_dir) / name).is_file():
            return None
        try:
            return self.files.read(name).get("best")
        except UserError as error:
            logger.warning("%s: the next evaluation is the best so far", error)
            return None

    def _write(self, name: str, more: dict[str, Any]) -> bool:
        """Write weights and ``more``; the earlier file stays whole whatever happens."""
        weights = self.weights()
        if not self.save_dir or not self.save_to_disk:
            return False
        content = {"model": weights, **self.describe(), **more}
        with self._disk_errors(name):
            self.files.write(f"{name}.pth", lambda file: torch.save(content, file))
        logger.info("saved %s", Path(self.save_dir) / f"{name}.pth")
        return True

    def weights(self) -> dict[str, Any]:
        """All weights, in the main process; every process takes part."""
        return gathered(self.model.state_dict())

    @contextmanager
    def _known_to_all(self) -> Iterator[None]:
        """What the disk refuses the main process is an error of all, who end alike."""
        problem = None
        try:
            yield
        except UserError as error:
            problem = error
        told = comm.all_gather(problem and str(problem))[0]
        if problem is not None:
            raise problem
        if told is not None:
            raise UserError(told)

    @contextmanager
    def _disk_errors(self, name: str) -> Iterator[None]:
        """Tell in one sentence what the disk would not take, and what is left."""
        try:
            yield
        except OSError as error:
            left = next(iter(self._candidates()), None)
            rest = f"{left!r} is whole, go on from it with --resume" if left else "start again"
            raise UserError(
                f"checkpoint {name!r} cannot be written to {str(self.save_dir)!r} "
                f"({error.strerror or error}): make room there; {rest}"
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Point ``last_checkpoint`` at a file, in one step."""
        with self._disk_errors(last_filename_basename):
            replace_text(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    def keep_newest(self, count: int) -> None:
        """Delete all but the newest ``count`` periodic checkpoints, earlier starts included.

        The one before the newest stays in any case: there must be one to fall back on. Every
        process takes part.
        """
        if count <= 0:
            return
        with self._known_to_all():
            if self.save_to_disk:
                self._delete_old(max(count, 2))

    def _delete_old(self, count: int) -> None:
        periodic = [name for name in self._written() if PERIODIC.fullmatch(name)]
        old = periodic[count:]
        for name in old:
            with self._disk_errors(name):
                (Path(self.save_dir) / name).unlink(missing_ok=True)
        if old:
            with self._disk_errors("checksums"):
                self.files.forget(*old)

    def newest(self) -> dict[str, Any] | None:
        """The content of the folder's newest checkpoint that is whole; None if there is none.

        The main process looks for it, all read the same one. A damaged one is set aside.

        Raises:
            UserError: there are some, but all of them are damaged.
        """
        problem = chosen = content = None
        if comm.is_main_process():
            try:
                chosen, content = self._choose()
            except UserError as error:
                problem = str(error)
        problem, chosen = comm.all_gather((problem, chosen))[0]
        if problem is not None:
            raise UserError(problem)
        if chosen is None:
            return None
        self.source = str(Path(self.save_dir) / chosen)
        return read_checkpoint(self.source) if content is None else content

    def _choose(self) -> tuple[str | None, dict[str, Any] | None]:
        """Name and content of the newest whole checkpoint."""
        self.files.remove_partial()
        problems: dict[str, str] = {}
        for name in self._candidates():
            try:
                content = self.files.read(name)
            except UserError as error:
                problems[name] = str(error)
                continue
            for damaged, problem in problems.items():
                logger.warning("%s; going on from the one before, %r", problem, name)
                with self._disk_errors(damaged):
                    self.files.set_aside(damaged)
            if problems:
                self.tag_last_checkpoint(name)
            return name, content
        if problems:
            raise UserError(
                f"{str(self.save_dir)!r} holds no whole checkpoint to resume from "
                f"({'; '.join(problems.values())}): train in another train.output_dir"
            )
        return None, None

    def _candidates(self) -> list[str]:
        """Names of files to resume from: the one that ``last_checkpoint`` names, then newest first.

        The first need not exist.
        """
        try:
            tagged = (Path(self.save_dir) / "last_checkpoint").read_text().strip()
        except (OSError, UnicodeDecodeError):
            tagged = ""
        is_name = tagged.endswith(".pth") and Path(tagged).name == tagged
        row = [tagged] * is_name + self._written()
        return list(dict.fromkeys(row))

    def _written(self) -> list[str]:
        """Checkpoints to resume from that are there, the one written last first."""
        there = {path.name for path in Path(self.save_dir).glob("model_*.pth")}
        there = {name for name in there if RESUMABLE.fullmatch(name)}
        noted = [name for name in self.files.sums() if name in there]
        # Of an earlier version; "model_final" sorts behind all numbers.
        return [*sorted(there.difference(noted)), *noted][::-1]

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Load all that :meth:`newest` read: weights and the state of every checkpointable."""
        path = self.source
        own, stored = self.model.state_dict(), weights_of(checkpoint, path)
        shares = {name: like(value, own.get(name)) for name, value in stored.items()}
        load_weights(self.model, shares, path)
        for key, item in self.checkpointables.items():
            try:
                item.load_state_dict(checkpoint[key])
            except (ValueError, KeyError) as error:
                raise UserError(
                    f"{key} state of checkpoint {path!r} does not fit this config ({error}): "
                    "resume with the config it was written by"
                ) from error
        logger.info("resumed from %s", path)
