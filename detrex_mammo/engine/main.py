# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Train or evaluate one config: what tools/train_net.py calls."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from omegaconf import DictConfig

from detrex_mammo.checkpoint.reading import local_path, require_source
from detrex_mammo.config import config_to_text, load_config, resolved
from detrex_mammo.engine import setup
from detrex_mammo.engine.arguments import parse_arguments
from detrex_mammo.engine.dry_run import dry_run
from detrex_mammo.engine.evaluation import (
    Evaluation,
    evaluated_datasets,
    flatten,
    require_evaluator,
    write_metrics,
)
from detrex_mammo.engine.failures import told_in_a_sentence
from detrex_mammo.engine.folder import check_free, numbered, output_folder
from detrex_mammo.engine.ineffective import ineffective
from detrex_mammo.engine.initial import build_model, load_initial
from detrex_mammo.engine.interruption import Signals
from detrex_mammo.engine.launch import World, launch
from detrex_mammo.engine.loaders import annotation_files, class_table, errors_of_workers
from detrex_mammo.engine.record import RunRecord, describe_checkpoint
from detrex_mammo.engine.status import reported
from detrex_mammo.engine.summary import summarise
from detrex_mammo.engine.training import train
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
FAST_DEV_RUN_BATCHES = 2


def main(argv: Sequence[str] | None = None) -> None:
    """Parse a command line, load the config, and run it in one process or many."""
    args = parse_arguments(argv)
    job = Job(args.config_file, tuple(args.overrides), args.eval_only, args.resume, args.dry_run)
    if args.print_config:
        print(config_to_text(resolved(job.cfg)), end="")
        return
    device = setup.resolve_device(job.cfg.train.device)
    world = World(
        num_processes=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        device=device,
    )
    launch(job, world)


@dataclass(frozen=True)
class Job:
    """One run as a command line describes it; each process runs it by calling it.

    A process that is started anew reads the config file again, so that whatever the file does
    beside describing the run (registering a dataset, say) happens there too.
    """

    config_file: str
    overrides: tuple[str, ...] = ()
    eval_only: bool = False
    resume: bool = False
    dry_run: bool = False

    @cached_property
    def cfg(self) -> DictConfig:
        """The checked config; read once per process."""
        return load_config(self.config_file, self.overrides)

    def __reduce__(self) -> tuple[Any, ...]:
        settings = (self.config_file, self.overrides, self.eval_only, self.resume, self.dry_run)
        return Job, settings

    def __call__(self) -> None:
        with Signals(at_once=True):  # there is nothing to save before training begins
            device = setup.resolve_device(self.cfg.train.device)
            if self.dry_run:
                with errors_of_workers():
                    dry_run(self.cfg, device, self.overrides)
            else:
                run(self.cfg, device, self.eval_only, self.resume, self.overrides)


def run(
    cfg: DictConfig,
    device: str,
    eval_only: bool = False,
    resume: bool = False,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Run a checked config in this process, which is one of those that :func:`launch` started.

    Args:
        cfg: from :func:`detrex_mammo.config.load_config`; changed in place (seed, output folder).
        device: "cuda" or "cpu".
        eval_only: evaluate ``train.init_checkpoint`` instead of training.
        resume: go on with the run in ``train.output_dir``.
        overrides: ``key=value`` of the command line; those without effect are warned of.

    Returns:
        dict: results of the last evaluation; empty in all but the main process.
    """
    if eval_only:
        require_evaluator(cfg)
    if cfg.train.init_checkpoint and "://" not in cfg.train.init_checkpoint:
        require_source(local_path(cfg.train.init_checkpoint))
    cfg.train.seed = setup.choose_seed(cfg.train.seed)
    folder = prepare_folder(cfg, eval_only, resume)
    with reported(folder, "evaluation" if eval_only else "training") as last:
        setup.start_log(folder)
        setup.log_hardware(device)
        for sentence in ineffective(cfg, overrides):
            logger.warning(sentence)
        setup.seed_all(cfg.train.seed + comm.get_rank())
        with errors_of_workers(), told_in_a_sentence(folder):
            if eval_only:
                results = evaluate_only(cfg, device, folder)
            else:
                results = train(cfg, device, folder, resume)
        last["kpi"] = flatten(results)
        if comm.is_main_process():
            logger.info("summary:\n%s", summarise(folder, last["kpi"]))
    return results


def prepare_folder(cfg: DictConfig, eval_only: bool, resume: bool) -> Path:
    """Choose and make the output folder, the same in every process, and put it into the config."""
    folder = output_folder(cfg.train.output_dir)
    if cfg.train.fast_dev_run:
        folder = numbered(folder, "fast_dev_run")
    elif eval_only:
        folder = numbered(folder, "eval")
    elif not resume:
        check_free(folder)
    comm.synchronize()  # every process has looked before the first one writes
    if comm.is_main_process():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"train.output_dir {str(folder)!r} cannot be made: {error}") from error
    comm.synchronize()
    cfg.train.output_dir = str(folder)
    return folder


def evaluate_only(cfg: DictConfig, device: str, folder: Path) -> dict[str, Any]:
    """Evaluate ``train.init_checkpoint``; metrics.json and predictions go into ``folder``."""
    record = RunRecord(folder, device, "evaluation")
    path = cfg.train.init_checkpoint
    model = build_model(cfg, is_filled=bool(path)).to(device)
    first = FAST_DEV_RUN_BATCHES if cfg.train.fast_dev_run else None
    evaluation = Evaluation(cfg, model, first, record)
    names = evaluated_datasets(cfg.dataloader)
    if path:
        load_initial(model, cfg, class_table(names)["names"], evaluate=True)
    else:
        logger.warning("train.init_checkpoint is not set: evaluating random weights")
    setup.write_config(config_to_text(cfg), folder)
    record.add_data(test=annotation_files(names))
    record.add(checkpoint=describe_checkpoint(path) if path else None)
    results = evaluation()
    if comm.is_main_process():
        write_metrics(results, folder / "metrics.json", checkpoint=path)
        logger.info("wrote %s", folder / "metrics.json")
    return results
