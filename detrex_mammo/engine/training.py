# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Put a trainer together from a config and run it."""

import inspect
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import hooks
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter
from omegaconf import DictConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detrex_mammo.checkpoint.reading import local_path
from detrex_mammo.config import config_to_text, instantiate
from detrex_mammo.engine import setup
from detrex_mammo.engine.batch_size import settle_batch_size
from detrex_mammo.engine.best import BestCheckpoint
from detrex_mammo.engine.checkpointer import RunCheckpointer
from detrex_mammo.engine.compilation import compile_parts
from detrex_mammo.engine.console import ConsoleWriter
from detrex_mammo.engine.early_stopping import EarlyStopping
from detrex_mammo.engine.ema import Averaging, Ema
from detrex_mammo.engine.evaluation import Evaluation, by_name, evaluated_datasets
from detrex_mammo.engine.freezing import freeze
from detrex_mammo.engine.history import EvaluationHistory, repair_metrics
from detrex_mammo.engine.hooks import Checkpoints, Evaluations, LearningRate
from detrex_mammo.engine.initial import adopt_eps, build_model, load_initial, stored_eps
from detrex_mammo.engine.interruption import SaveAndLeave
from detrex_mammo.engine.lengths import period, positive, total_iterations
from detrex_mammo.engine.loaders import (
    TrainData,
    annotation_files,
    build_train_data,
    check_classes,
    class_table,
    dataset_names,
)
from detrex_mammo.engine.lr_scaling import scale_rates
from detrex_mammo.engine.nan_dump import NanDump
from detrex_mammo.engine.optimizer import build_optimizer
from detrex_mammo.engine.plateau import PlateauSchedule
from detrex_mammo.engine.precision import amp_dtype
from detrex_mammo.engine.provenance import describe_run
from detrex_mammo.engine.record import RunRecord
from detrex_mammo.engine.seeing import seeing_hooks
from detrex_mammo.engine.sharding import check_sharding, shard
from detrex_mammo.engine.trainer import Trainer
from detrex_mammo.engine.watching import check_watched
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
FAST_DEV_RUN_STEPS = 2
METRICS = "metrics.json"


def train(cfg: DictConfig, device: str, folder: Path, resume: bool) -> dict[str, Any]:
    """Train a config, and evaluate it as it asks.

    Args:
        cfg: checked, with its final seed and output folder.
        device: "cuda" or "cpu".
        folder: where everything goes.
        resume: go on from the folder's newest checkpoint, if it has one.

    Returns:
        dict: results of the last evaluation; empty in all but the main process.
    """
    is_sharded = check_sharding(cfg.train)
    record = RunRecord(folder, device, "training", resume)
    schedule = instantiate(cfg.lr_multiplier)
    check_watched(cfg, schedule)
    checkpointer = RunCheckpointer(nn.Module(), str(folder))  # its file tells how to build it
    newest = checkpointer.newest() if resume else None
    is_filled = newest is not None or bool(cfg.train.init_checkpoint)
    checkpointer.model = model = build_model(cfg, is_filled).to(device)
    start_iter = next_step(newest, folder) if resume else 0
    accumulate = positive(cfg.train, "accumulate")
    settle_batch_size(cfg, device, newest)
    data = build_train_data(cfg.dataloader.train, cfg.train.seed, start_iter * accumulate)
    _prepare_weights(model, cfg, newest)
    freeze(model, cfg.train.freeze)
    config_text = config_to_text(cfg)
    if cfg.train.get("compile"):
        compile_parts(model, device)
    # Before weights are copied: here all processes get those of the main one.
    wrapped = distribute(model, device, cfg.train.ddp, cfg.train.fsdp if is_sharded else None)
    run = _Run(cfg, data, schedule, folder, record, checkpointer)
    ema = _ema(cfg, model)
    evaluations = _evaluations(run, model, ema, start_iter) if _is_evaluated(cfg) else None
    trainer = _trainer(cfg, wrapped, data, device)
    trainer.nan.dump = NanDump(folder, checkpointer, config_text, trainer.amp_dtype)
    if resume and comm.is_main_process():
        # Before its writer opens it; without a checkpoint all steps are done again.
        last = {} if newest is None else newest["trainer"].get("metrics")
        repair_metrics(folder / METRICS, start_iter, last)
    trainer.register_hooks(_hooks(run, trainer, evaluations, ema))
    checkpointer.describe = _describer(cfg, data, config_text)
    checkpointer.add_checkpointable("trainer", trainer)
    if ema is not None:
        checkpointer.add_checkpointable("ema", ema)
    if newest is not None:
        _settle_average(newest, ema)
        checkpointer.restore(newest)
        newest.clear()  # its memory is not needed any more
    if start_iter >= run.max_iter or (evaluations is not None and evaluations.judge()):
        return _end_again(run, evaluations, start_iter)
    setup.write_config(config_text, folder)
    _record_data(run)
    trainer.train(start_iter, run.max_iter)
    return evaluations.evaluation.results if evaluations is not None else {}


@dataclass(frozen=True)
class _Run:
    """What the parts of a run share."""

    cfg: DictConfig
    data: TrainData
    schedule: Callable[[int, int, int], float]
    folder: Path
    record: RunRecord
    checkpointer: RunCheckpointer

    @property
    def is_trial(self) -> bool:
        return self.cfg.train.fast_dev_run

    @property
    def iters_per_epoch(self) -> int:
        """Optimizer steps in which every image is seen once."""
        return math.ceil(self.data.iters_per_epoch / self.cfg.train.accumulate)

    @property
    def max_iter(self) -> int:
        if self.is_trial:
            return FAST_DEV_RUN_STEPS
        return total_iterations(self.cfg.train, self.iters_per_epoch)


def _end_again(run: _Run, evaluations: Evaluations | None, done: int) -> dict[str, Any]:
    """Evaluate a run whose steps are done; writes the last file if a kill came before it."""
    logger.info("nothing to do: %d of %d steps are done", done, run.max_iter)
    if Path(run.checkpointer.source).name != "model_final.pth":
        run.checkpointer.save("model_final", iteration=done - 1)
    return evaluations.again(done - 1, run.folder / METRICS) if evaluations else {}


def _prepare_weights(model: nn.Module, cfg: DictConfig, newest: Mapping[str, Any] | None) -> None:
    """Refuse a model of other classes; start it from a file, unless it is resumed."""
    names = dataset_names(cfg.dataloader.train)
    check_classes(model, names)
    if newest is not None:
        adopt_eps(stored_eps(newest), model, cfg)
    elif cfg.train.init_checkpoint:
        load_initial(model, cfg, class_table(names)["names"])


def _is_evaluated(cfg: DictConfig) -> bool:
    """Whether there is an evaluator, or a setting that needs one."""
    settings = cfg.train
    needs_one = settings.eval_loss or settings.best.metric or settings.early_stopping.metric
    return bool(by_name(cfg.dataloader.get("evaluator")) or needs_one)


def _ema(cfg: DictConfig, model: nn.Module) -> Ema | None:
    settings = cfg.train.ema
    return Ema(model, settings.decay, settings.warmup) if settings.enabled else None


def _settle_average(checkpoint: dict[str, Any], ema: Ema | None) -> None:
    """Let a run that is resumed begin an average, or go on without the one it had."""
    if ema is not None and "ema" not in checkpoint:
        logger.warning("the checkpoint holds no average of the weights: it begins with its weights")
        checkpoint["ema"] = {"model": checkpoint.get("model"), "updates": 0}
    if ema is None and "ema" in checkpoint:
        logger.warning("the checkpoint's average ends here, because train.ema.enabled is False")


def _evaluations(run: "_Run", model: nn.Module, ema: Ema | None, start_iter: int) -> Evaluations:
    """The evaluation of a run and what hangs on it: the best checkpoint and early stopping."""
    cfg, best, stopping = run.cfg, run.cfg.train.best, run.cfg.train.early_stopping
    first = FAST_DEV_RUN_STEPS if run.is_trial else None
    checkpointer = run.checkpointer
    return Evaluations(
        Evaluation(cfg, model, first, run.record),
        period(cfg.train, "eval_period_epochs", run.iters_per_epoch),
        EvaluationHistory(run.folder, start_iter),
        checkpointer,
        BestCheckpoint(checkpointer, best.metric, best.mode) if best.metric else None,
        ema,
        EarlyStopping(**stopping) if stopping.metric else None,
        run.schedule if isinstance(run.schedule, PlateauSchedule) else None,
    )


def _trainer(cfg: DictConfig, model: nn.Module, data: TrainData, device: str) -> Trainer:
    """Optimizer, precision and clipping, for a model that is distributed over processes."""
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    clip = cfg.train.clip_grad
    optimizer = build_optimizer(cfg.optimizer, bare)
    batch = (data.batch_size, comm.get_world_size(), cfg.train.accumulate)
    scale_rates(optimizer, **cfg.train.scale_lr, batch=batch)
    trainer = Trainer(
        model,
        data.loader,
        optimizer,
        amp_dtype=amp_dtype(cfg.train.amp),
        max_norm=clip.params.max_norm if clip.enabled else None,
        norm_type=clip.params.norm_type,
        log_period=positive(cfg.train, "log_period"),
        accumulate=cfg.train.accumulate,
        nan_policy=cfg.train.nan.policy,
        nan_limit=cfg.train.nan.limit,
    )
    logger.info(
        "%d images, batch %d x %d; %.2f M parameters to train",
        data.num_images,
        data.batch_size,
        trainer.accumulate,
        sum(parameter.numel() for parameter in trainer.parameters) / 1e6,
    )
    return trainer


def next_step(checkpoint: Mapping[str, Any] | None, folder: Path) -> int:
    """The step to go on with after a checkpoint; 0 without one."""
    if checkpoint is None:
        logger.warning("--resume: %s holds no checkpoint, starting from the beginning", folder)
        return 0
    try:
        return int(checkpoint["trainer"]["iteration"]) + 1
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the newest checkpoint in {str(folder)!r} holds no trainer state to resume from: "
            "start from it with train.init_checkpoint and another train.output_dir"
        ) from error


def distribute(
    model: nn.Module, device: str, ddp: Mapping[str, Any], fsdp: Mapping[str, Any] | None = None
) -> nn.Module:
    """Prepare a model for several processes: sharded with ``fsdp``, else each has all of it."""
    if comm.get_world_size() == 1:
        return model
    if fsdp is not None:
        return shard(model, device, fsdp["reshard_after_forward"])
    device_ids = [torch.cuda.current_device()] if device == "cuda" else None
    options = dict(ddp)
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:
        # The same setting under torch's newer name.
        options["forward_sync_buffers"] = options.pop("broadcast_buffers")
    return DistributedDataParallel(model, device_ids=device_ids, **options)


def _describer(cfg: DictConfig, data: TrainData, config_text: str) -> Callable[[], dict[str, Any]]:
    """What goes into every checkpoint beside weights and trainer; computed once."""
    names = dataset_names(cfg.dataloader.train) + evaluated_datasets(cfg.dataloader)
    spec = getattr(data.mapper, "preprocessing", None)
    fixed: dict[str, Any] = {
        "config": config_text,
        "classes": class_table(names),
        "preprocessing": spec.to_dict() if hasattr(spec, "to_dict") else spec,
    }
    if comm.is_main_process():
        init = cfg.train.init_checkpoint
        source = local_path(init) if init else None
        fixed["provenance"] = describe_run(config_text, source, annotation_files(names))
    return lambda: fixed


def _record_data(run: _Run) -> None:
    """Put the data and the length of the run into its record."""
    loaders, data = run.cfg.dataloader, run.data
    run.record.add_data(
        train=annotation_files(dataset_names(loaders.train)),
        test=annotation_files(evaluated_datasets(loaders)),
    )
    batch = data.batch_size * run.cfg.train.accumulate
    run.record.add(
        training={
            "images": data.num_images,
            "batch": batch,
            "steps": run.max_iter,
            "steps_per_epoch": run.iters_per_epoch,
        },
    )


def _hooks(
    run: _Run, trainer: Trainer, evaluations: Evaluations | None, ema: Ema | None
) -> list[Any]:
    settings, per_epoch = run.cfg.train, run.iters_per_epoch
    saved = period(settings, "checkpointer.period_epochs", per_epoch)
    found: list[Any] = [
        hooks.IterationTimer(2 if run.is_trial else 3),
        LearningRate(trainer.optimizer, run.schedule, per_epoch),
        *([] if ema is None else [Averaging(ema)]),
        Checkpoints(run.checkpointer, saved, settings.checkpointer.max_to_keep),
        SaveAndLeave(run.checkpointer),
        *([] if evaluations is None else [evaluations]),
    ]
    if comm.is_main_process():
        window = settings.log_period
        evaluation = None if evaluations is None else evaluations.evaluation
        found += seeing_hooks(run.cfg, run.folder, per_epoch, evaluation)
        writers = [
            ConsoleWriter(run.max_iter, per_epoch, window_size=window),
            JSONWriter(str(run.folder / METRICS), window_size=window),
            TensorboardXWriter(str(run.folder)),
            run.record,
        ]
        found.append(hooks.PeriodicWriter(writers, period=window))
    return found
