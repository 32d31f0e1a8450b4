# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What training costs beside the model: memory of accumulation, checkpointing, the engine's time.

On a CPU. Every part but the times of checkpointing is measured in a process of its own.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from detrex_mammo.benchmark.child import ChildError, in_child
from detrex_mammo.benchmark.memory import peak_of
from detrex_mammo.benchmark.models import QUICK_SIZE, SIZE, TINY_SIZE, TrainingStep
from detrex_mammo.benchmark.results import Row
from detrex_mammo.benchmark.session import Session
from detrex_mammo.benchmark.subjects import (
    CONFIG,
    Subject,
    detectron2_inputs,
    draw_images,
    our_subject,
)
from detrex_mammo.benchmark.units import quantity_text
from detrex_mammo.config import load_config
from detrex_mammo.engine import main, training
from detrex_mammo.engine.memory import StorageCounter
from detrex_mammo.engine.trainer import Trainer

ACCUMULATION, ACCUMULATED_SIZE = 32, (480, 800)
PEAK, ACTIVATIONS = "peak memory of the process", "activations at their peak"
STEP, CPU_STEP = "training step", "training step, CPU time"
OUTSIDE = "outside of forward, backward and optimizer step"
CPU_OUTSIDE, WHOLE, ITERATION = f"{OUTSIDE}, CPU time", "all of it", "an iteration"
NONE, ENCODER, BOTH, ALL = "none", "encoder", "encoder, decoder", "encoder, decoder, backbone"
JUDGED = BOTH  # the one that the bars are about
_SWITCHES = {
    "encoder": "model.transformer.encoder_checkpointing=True",
    "decoder": "model.transformer.decoder_checkpointing=True",
    "backbone": "model.backbone.checkpointing=True",
}
TINY, TINY_IMAGE = "a tiny detector", (64, 64)
BLOCK = 20  # iterations of which the mean is taken: a log period


def run(session: Session) -> None:
    """All three, one after another."""
    _accumulation(session)
    _checkpointing(session)
    _overhead(session)


def accumulation_case(size: Sequence[int]) -> str:
    """As in the tables."""
    return f"accumulation, R50 two-stage, {size[0]} x {size[1]}"


def checkpointing_case(size: Sequence[int]) -> str:
    """As in the tables."""
    return f"activation checkpointing, R50 two-stage, {size[0]} x {size[1]}"


def overhead_case(is_tiny: bool, size: Sequence[int]) -> str:
    """As in the tables."""
    return f"engine, {TINY if is_tiny else 'R50 two-stage'}, {size[0]} x {size[1]}"


def batches_name(count: int) -> str:
    """As in the tables."""
    return f"{count} x batch 1"


def _measure(session: Session, function: Callable, rows: Callable, **arguments: Any) -> None:
    """Add what a process of its own measures, or why it could not."""
    try:
        for row in rows(in_child(function, threads=session.threads, **arguments)):
            session.results.add(row)
            session.say(f"  {row.candidate}, {row.quantity}: "
                        f"{quantity_text(row.spread.median, row.unit)}")  # fmt: skip
    except ChildError as error:
        session.say(f"  failed: {error}")
        for row in rows(None):
            row.error = str(error)
            session.results.add(row)


def _accumulation(session: Session) -> None:
    size = QUICK_SIZE if session.quick else ACCUMULATED_SIZE
    count = 3 if session.quick else ACCUMULATION
    case = accumulation_case(size)
    for number in range(session.rounds(1)):
        session.say(f"{case}, {number + 1}")
        for batches in (1, count):

            def rows(peak: int | None, name: str = batches_name(batches)) -> list[Row]:
                return [Row(case, PEAK, name, "B", [] if peak is None else [peak])]

            _measure(session, child_accumulated, rows, size=size, batches=batches)


def child_accumulated(size: list[int], batches: int, threads: int) -> int:
    """Most bytes that the process holds in optimizer steps of so many batches of one image.

    A step on a small image comes first, so that libraries are loaded and the optimizer has its
    state. Of a single batch there are a few steps, as in a run: each begins with the gradients of
    the one before.
    """
    torch.set_num_threads(threads)
    subject = our_subject("cpu")
    _trainer(subject, TINY_SIZE, 1).train(0, 1)
    trainer = _trainer(subject, size, batches)
    return peak_of(lambda: trainer.train(0, 4 if batches == 1 else 1)).highest


def _trainer(subject: Subject, size: Sequence[int], batches: int) -> Trainer:
    def load() -> Iterator[Any]:
        while True:  # new tensors, as a loader makes them
            yield subject.prepare(draw_images(*size, 1, "cpu"))

    return Trainer(subject.model.train(), load(), subject.optimizer, accumulate=batches)


def _switched(name: str) -> list[str]:
    return [switch for part, switch in _SWITCHES.items() if part in name]


def _checkpointing(session: Session) -> None:
    size = QUICK_SIZE if session.quick else SIZE
    case = checkpointing_case(size)
    names = (NONE, ENCODER, BOTH, ALL)
    for name in names:
        session.say(f"{case}, memory: {name}")

        def rows(found: dict[str, int] | None, name: str = name) -> list[Row]:
            values = (
                {ACTIVATIONS: [], PEAK: []} if found is None else {k: [v] for k, v in found.items()}
            )
            return [Row(case, quantity, name, "B", value) for quantity, value in values.items()]

        _measure(session, child_checkpointed, rows, size=size, name=name)
    images = draw_images(*size, 1, "cpu")
    steps = {
        name: TrainingStep(our_subject("cpu", _switched(name)), images, None) for name in names
    }
    for call in steps.values():
        call()
    for number, (name, call) in itertools.product(range(session.rounds(5)), steps.items()):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        for quantity, seconds in ((STEP, wall), (CPU_STEP, cpu)):
            session.results.add(Row(case, quantity, name, values=[seconds]))
        session.say(f"  {number + 1}: {name} {quantity_text(wall, 's')}")


def child_checkpointed(size: list[int], name: str, threads: int) -> dict[str, int]:
    """Peaks of a training step: of the process, and of its tensors beside weights and optimizer."""
    torch.set_num_threads(threads)
    subject = our_subject("cpu", _switched(name))
    TrainingStep(subject, draw_images(*TINY_SIZE, 1, "cpu"), None)()
    call = TrainingStep(subject, draw_images(*size, 1, "cpu"), None)
    peak = peak_of(call).highest
    subject.optimizer.zero_grad(set_to_none=True)
    state = [v for values in subject.optimizer.state.values() for v in values.values()]
    with StorageCounter() as counter:
        for tensor in (*subject.model.parameters(), *subject.model.buffers(), *state):
            counter.count(tensor)
        before = counter.held
        call()
    return {ACTIVATIONS: counter.highest - before, PEAK: peak}


def _overhead(session: Session) -> None:
    quick = [(True, TINY_IMAGE, 2)]
    whole = [(True, TINY_IMAGE, 15), (False, SIZE, 4)]
    for is_tiny, size, blocks in quick if session.quick else whole:
        case = overhead_case(is_tiny, size)
        session.say(case)

        def rows(found: dict[str, list[float]] | None, case: str = case) -> list[Row]:
            found = found or dict.fromkeys((OUTSIDE, CPU_OUTSIDE, WHOLE), [])
            return [Row(case, ITERATION, name, values=values) for name, values in found.items()]

        _measure(session, child_overhead, rows, is_tiny=is_tiny, size=size, blocks=blocks)


def child_overhead(is_tiny: bool, size: list[int], blocks: int, threads: int) -> dict[str, Any]:
    """Seconds of an iteration of a run of tools/train_net.py, whose batch is at hand at once.

    Returns:
        dict: means over a log period each, or single iterations of a large model.
    """
    torch.set_num_threads(threads)
    period = BLOCK if is_tiny else 1
    with tempfile.TemporaryDirectory(prefix="detrex_mammo_benchmark_") as folder:
        cfg = _run_config(is_tiny, size, str(Path(folder, "run")))
        cfg.train.update(log_period=period, max_iter=(blocks + 1) * period + 1)
        with mock.patch.object(training, "Trainer", TimedTrainer):
            main.run(cfg, "cpu")
    marks = TimedTrainer.marks[period::period]  # the first log period warms up, the last step saves
    found: dict[str, list[float]] = {OUTSIDE: [], CPU_OUTSIDE: [], WHOLE: []}
    for first, last in itertools.pairwise(marks):
        wall, cpu, in_wall, in_cpu = ((b - a) / period for a, b in zip(first, last, strict=True))
        found[OUTSIDE].append(wall - in_wall)
        found[CPU_OUTSIDE].append(cpu - in_cpu)
        found[WHOLE].append(wall)
    return found


class TimedTrainer(Trainer):
    """Notes at the start of each iteration what has passed, and how much of it in the model.

    Attributes:
        marks: (wall clock, CPU time, and both inside forward, backward and optimizer step) each.
    """

    marks: list[tuple[float, float, float, float]] = []

    def __init__(self, model: torch.nn.Module, data: Any, optimizer: Any, **settings: Any):
        super().__init__(model, data, optimizer, **settings)
        self.inside = [0.0, 0.0]
        model.register_forward_pre_hook(lambda *_: self._enter())
        model.register_forward_hook(lambda *_: self._leave())
        optimizer.register_step_pre_hook(lambda *_: self._enter())
        optimizer.register_step_post_hook(lambda *_: self._leave())

    def _enter(self) -> None:
        self.entered = _clocks()

    def _leave(self) -> None:
        now = _clocks()
        self.inside = [a + b - c for a, b, c in zip(self.inside, now, self.entered, strict=True)]

    def before_step(self) -> None:
        """Note the time, then as any trainer."""
        self.marks.append((*_clocks(), *self.inside))
        super().before_step()

    def run_step(self) -> None:
        """As any trainer, with backward passes timed."""
        real = torch.Tensor.backward

        def backward(tensor: torch.Tensor, *arguments: Any, **options: Any) -> None:
            self._enter()
            real(tensor, *arguments, **options)
            self._leave()

        torch.Tensor.backward = backward
        try:
            super().run_step()
        finally:
            torch.Tensor.backward = real


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _run_config(is_tiny: bool, size: Sequence[int], folder: str) -> DictConfig:
    """The shipped recipe on an image that needs no reading; a tiny model has few channels."""
    cfg = load_config(CONFIG)
    cfg.train.update(output_dir=folder, eval_period_epochs=0, init_checkpoint="")
    cfg.train.checkpointer.period_epochs = 0
    cfg.dataloader.evaluator = None
    cfg.dataloader.train = L(ready_loader)(
        dataset=L(one_record)(), mapper=None, total_batch_size=1, size=list(size)
    )
    if is_tiny:
        cfg.model.backbone.update(depth=18, stem_out_channels=8, res2_out_channels=8)
        cfg.model.transformer.update(num_encoder_layers=1, num_decoder_layers=1, num_heads=4)
        cfg.model.transformer.feedforward_dim = 32
        cfg.model.update(embed_dim=64, num_queries=12)
    return cfg


def one_record() -> list[dict[str, Any]]:
    """A data set."""
    return [{"image_id": 0}]


def ready_loader(
    dataset: Sequence[Any], mapper: Any, total_batch_size: int, size: Sequence[int]
) -> Iterator[Any]:
    """The same batch for ever, which no step waits for."""
    images = draw_images(*size, total_batch_size, "cpu")
    return itertools.repeat(detectron2_inputs(images))
