# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""``--dry-run``: the whole run in small, and what the real one will need.

Everything is built and used once, by the code of a real run: data, model, start weights, two steps,
an evaluation of two batches, a checkpoint. It happens in a folder of its own on the disk of
``train.output_dir``, which is removed.
"""

import copy
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from omegaconf import DictConfig

from detrex_mammo.checkpoint.reading import read_checkpoint
from detrex_mammo.config import instantiate
from detrex_mammo.engine import setup
from detrex_mammo.engine.evaluation import by_name
from detrex_mammo.engine.failures import told_in_a_sentence
from detrex_mammo.engine.folder import check_free, output_folder
from detrex_mammo.engine.ineffective import ineffective
from detrex_mammo.engine.lengths import period, positive, total_iterations
from detrex_mammo.engine.loaders import build_test_loader
from detrex_mammo.engine.record import NAME as RECORD
from detrex_mammo.engine.status import NAME as STATUS
from detrex_mammo.engine.status import read_status
from detrex_mammo.engine.summary import format_bytes, format_rows, format_seconds
from detrex_mammo.engine.training import train
from detrex_mammo.errors import UserError
from detrex_mammo.progress import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What the real run will need, from what the small one did.

    Attributes:
        images: of an epoch.
        batch: images of a step, over all processes.
        classes: names, in the model's order; empty if the data names none.
        steps: of the run.
        step_seconds: of the second step; the first one warms up.
        data_seconds: of these, waited for data.
        evaluations: how often the run evaluates.
        evaluation_seconds: of one of them, without its report.
        memory: ``bytes`` and ``of`` what, in the main process.
        checkpoint_bytes: of one file.
        num_checkpoints: most files that lie on the disk at a time.
        free_bytes: of the disk of the output folder.
    """

    images: int
    batch: int
    classes: list[str]
    steps: int
    step_seconds: float
    data_seconds: float
    evaluations: int
    evaluation_seconds: float
    memory: dict[str, Any]
    checkpoint_bytes: int
    num_checkpoints: int
    free_bytes: int

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.steps * self.step_seconds + self.evaluations * self.evaluation_seconds

    @property
    def disk_bytes(self) -> int:
        """Of all checkpoints that lie on the disk at a time."""
        return self.num_checkpoints * self.checkpoint_bytes

    def table(self) -> str:
        """Lines "name  value"."""
        waiting = f"{format_seconds(self.data_seconds)} of them waiting for data"
        rows = [
            ("images", f"{self.images} an epoch, {self.batch} a step"),
            ("classes", ", ".join(self.classes) or "not named by the data"),
            ("steps", f"{self.steps}, about {format_seconds(self.step_seconds)} each ({waiting})"),
            (
                "evaluations",
                f"{self.evaluations}, about {format_seconds(self.evaluation_seconds)} each",
            ),
            ("time", f"about {format_seconds(self.seconds)}"),
            (
                f"peak {self.memory['of']}",
                f"{format_bytes(self.memory['bytes'])} in two steps; more with larger images",
            ),
            (
                "disk",
                f"{self.num_checkpoints} checkpoints of {format_bytes(self.checkpoint_bytes)}, "
                f"{format_bytes(self.disk_bytes)} of {format_bytes(self.free_bytes)} free",
            ),
        ]
        return format_rows(rows)

    def check_disk(self, folder: Path) -> None:
        """Raise UserError if the checkpoints do not fit."""
        if self.disk_bytes > self.free_bytes:
            raise UserError(
                f"the disk of train.output_dir {str(folder)!r} has {format_bytes(self.free_bytes)} "
                f"free, but {self.num_checkpoints} checkpoints need "
                f"{format_bytes(self.disk_bytes)}: free some, or keep fewer "
                "(train.checkpointer.max_to_keep, 0 keeps all)"
            )


def dry_run(cfg: DictConfig, device: str, overrides: Sequence[str] = ()) -> Plan | None:
    """Try a run and print what it will need.

    Args:
        cfg: checked; it is not changed.
        device: "cuda" or "cpu".
        overrides: ``key=value`` of the command line; those without effect are warned of.

    Returns:
        Plan: in the main process.

    Raises:
        UserError: whatever would have stopped the run, or too little disk.
    """
    output = output_folder(cfg.train.output_dir)
    check_free(output)
    positive(cfg.train, "log_period")  # the small run has its own
    with _trial_folder(output) as folder:
        trial = copy.deepcopy(cfg)
        trial.train.update(output_dir=str(folder), fast_dev_run=True, log_period=1)
        trial.train.seed = setup.choose_seed(cfg.train.seed)
        setup.start_log(folder)
        for sentence in ineffective(cfg, overrides):
            logger.warning(sentence)
        setup.seed_all(trial.train.seed + comm.get_rank())
        with told_in_a_sentence(folder):
            train(trial, device, folder, resume=False)
        batches = _test_batches(cfg)
        check_images(cfg)
        plan = make_plan(cfg, folder, batches) if comm.is_main_process() else None
    if plan is not None:
        print(f"dry run, nothing of it is left; the run in {output}:\n{plan.table()}", flush=True)
        plan.check_disk(output)
    return plan


def check_images(cfg: DictConfig) -> None:
    """Raise UserError if a file of an image of the run's data sets is not there.

    All processes call it together, as they do whatever loads a data set.
    """
    tests = by_name(cfg.dataloader.get("test")).items()
    nodes = {f"dataloader.test.{name}".rstrip("."): node for name, node in tests}
    for key, node in {"dataloader.train": cfg.dataloader.train, **nodes}.items():
        dataset = instantiate(node.get("dataset")) or ()
        items = (dataset[index] for index in range(len(dataset)))
        records = (item for item in items if isinstance(item, Mapping))
        known = [str(item["file_name"]) for item in records if "file_name" in item]
        known = [name for name in known if "://" not in name]  # which only their reader finds
        missing = [name for name in counted(known, "look for images") if not os.path.exists(name)]
        if missing:
            raise UserError(
                f"{key}: {len(missing)} of {len(known)} images are not there, the "
                f"first is {missing[0]!r}: check file_name and image_root"
            )


@contextmanager
def _trial_folder(output: Path) -> Iterator[Path]:
    """A folder on the disk of the output, the same in every process, removed at the end."""
    above = output.absolute()
    while not above.exists():
        above = above.parent
    problem = folder = None
    if comm.is_main_process():
        try:
            folder = tempfile.mkdtemp(prefix=".dry_run_", dir=above)
        except OSError as error:
            problem = f"train.output_dir {str(output)!r} cannot be made: {error}"
    problem, folder = comm.all_gather((problem, folder))[0]
    if problem:
        raise UserError(problem)
    try:
        yield Path(folder)
        comm.synchronize()
    except UserError as error:
        if folder not in str(error):
            raise
        raise UserError(f"{error}; that folder was the dry run's and is removed") from error
    finally:
        if comm.is_main_process():
            shutil.rmtree(folder, ignore_errors=True)


def make_plan(cfg: DictConfig, folder: Path, test_batches: Mapping[str, int]) -> Plan:
    """What the run will need, from the files of the small one.

    Args:
        cfg: of the real run.
        folder: of the small one.
        test_batches: number of them in each test set, by its name.
    """
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    step = [line for line in read_status(folder / STATUS) if "seconds_per_step" in line][-1]
    training, settings = record["training"], cfg.train
    per_epoch = training["steps_per_epoch"]
    total = total_iterations(settings, per_epoch)
    checkpoint = folder / "model_final.pth"
    evaluations, seconds = 0, 0.0
    if "evaluation" in record:
        every = period(settings, "eval_period_epochs", per_epoch)
        evaluations = math.ceil(total / every) if every else 1
        seconds = _evaluation_seconds(test_batches, record["evaluation"])
        # The average is evaluated as well, and the losses are another pass over the images.
        seconds *= (1 + settings.ema.enabled) * (1 + settings.eval_loss)
    return Plan(
        images=training["images"],
        batch=training["batch"],
        classes=read_checkpoint(str(checkpoint))["classes"]["names"],
        steps=total,
        step_seconds=step["seconds_per_step"],
        data_seconds=step["data_seconds_per_step"] or 0.0,
        evaluations=evaluations,
        evaluation_seconds=seconds,
        memory=record["sessions"][-1]["peak_memory"],
        checkpoint_bytes=os.path.getsize(checkpoint),
        num_checkpoints=_num_checkpoints(settings, total, per_epoch),
        free_bytes=shutil.disk_usage(folder).free,
    )


def _num_checkpoints(settings: DictConfig, total: int, per_epoch: int) -> int:
    """Periodic ones, the last, the best, and one that is being written."""
    every = period(settings, "checkpointer.period_epochs", per_epoch)
    periodic = (total - 1) // every if every else 0
    if settings.checkpointer.max_to_keep > 0:
        periodic = min(periodic, max(settings.checkpointer.max_to_keep, 2))  # one to fall back to
    return periodic + 2 + bool(settings.best.metric)


def _test_batches(cfg: DictConfig) -> dict[str, int]:
    """Of each test set that is evaluated; the processes read it together."""
    nodes = by_name(cfg.dataloader.test) if by_name(cfg.dataloader.get("evaluator")) else {}
    return {name: len(build_test_loader(node)) for name, node in nodes.items()}


def _evaluation_seconds(test_batches: Mapping[str, int], speed: dict[str, Any]) -> float:
    """Of all test sets, by the speed at which two batches of each were evaluated."""
    seconds = 0.0
    for name, count in test_batches.items():
        measured = speed.get(name, {}) if name else speed
        if measured.get("images_per_second"):
            images = count * max(measured["batch_size"], 1)
            seconds += images / measured["images_per_second"]
    return seconds
