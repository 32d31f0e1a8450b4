# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Whole detectors side by side: inference on an image, a training step, and their memory."""

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch

from detrex_mammo.benchmark.child import ChildError, in_child
from detrex_mammo.benchmark.memory import peak_of
from detrex_mammo.benchmark.peers import OFFICIAL, TRANSFORMERS, Missing, Operator, find_operator
from detrex_mammo.benchmark.results import Row
from detrex_mammo.benchmark.session import Session
from detrex_mammo.benchmark.subjects import (
    Images,
    Subject,
    draw_images,
    our_compiled_subject,
    our_subject,
    transformers_subject,
)
from detrex_mammo.benchmark.timing import Candidate, one_line
from detrex_mammo.benchmark.units import quantity_text
from detrex_mammo.ops.huggingface import patch_transformers

OURS, PATCHED = "detrex_mammo", "transformers, patched"
OURS_OFFICIAL = f"detrex_mammo, {OFFICIAL}"
OURS_COMPILED = "detrex_mammo, train.compile"
NAMES = (TRANSFORMERS, PATCHED, OURS_OFFICIAL, OURS, OURS_COMPILED)
INFERENCE, STEP, MEMORY = "inference", "training step", "peak memory"
# The small ones have more than the 300 tokens that the first stage chooses from.
SIZE, QUICK_SIZE, TINY_SIZE = (800, 1333), (160, 224), (160, 160)
DTYPES = {"fp32": None, "bf16": torch.bfloat16}
MAX_NORM = 0.1  # of the gradient, as in this project's configs
GPU_BATCH = 16


@dataclass(frozen=True)
class Contender:
    """A detector and how it is used.

    Attributes:
        name: as in the tables.
        build: makes the detector on a device; the same function, the same detector.
        around: entered around every use.
    """

    name: str
    build: Callable[[str], Subject]
    around: Callable[[], AbstractContextManager] = nullcontext


class Detect:
    """Inference on a batch."""

    def __init__(self, subject: Subject, images: Images, dtype: torch.dtype | None):
        self.subject, self.note = subject, ""
        self.inputs = subject.prepare(images)
        self.autocast = partial(_autocast, images, dtype)

    def __call__(self) -> None:
        if self.subject.model.training:
            self.subject.model.eval()
        with torch.no_grad(), self.autocast():
            self.subject.detect(self.inputs)


class TrainingStep:
    """Forward, loss, backward, clipping, optimizer; in as few parts as the GPU's memory allows."""

    def __init__(self, subject: Subject, images: Images, dtype: torch.dtype | None):
        self.subject, self.images = subject, images
        self.autocast = partial(_autocast, images, dtype)
        self.parameters = [p for g in subject.optimizer.param_groups for p in g["params"]]
        self._divide(len(images.pixels))

    def _divide(self, size: int) -> None:
        count = len(self.images.pixels)
        parts = [self.images.part(i, i + size) for i in range(0, count, size)]
        self.size, self.inputs = size, [self.subject.prepare(part) for part in parts]

    @property
    def note(self) -> str:
        """How the batch was divided."""
        count = len(self.images.pixels)
        return f"batch {count}" + (f" in parts of {self.size}" if self.size < count else "")

    def __call__(self) -> None:
        self.subject.model.train()
        try:
            self._step()
        except torch.OutOfMemoryError:
            if self.size == 1:
                raise
        else:
            return
        self.subject.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        self._divide(self.size // 2)
        self()

    def _step(self) -> None:
        self.subject.optimizer.zero_grad(set_to_none=True)
        for inputs in self.inputs:
            with self.autocast():
                loss = self.subject.loss(inputs)
            (loss / len(self.inputs)).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
        self.subject.optimizer.step()


WORK: dict[str, Callable[..., Any]] = {INFERENCE: Detect, STEP: TrainingStep}


def _autocast(images: Images, dtype: torch.dtype | None) -> AbstractContextManager:
    return torch.autocast(images.pixels.device.type, dtype) if dtype else nullcontext()


def case_name(dtype: str) -> str:
    """As in the tables."""
    return f"R50 two-stage, {dtype}"


def find_contender(name: str, device: str) -> Contender:
    """transformers as it is and patched, ours, and on a GPU ours compiled and with their kernel.

    Args:
        name: one of ``NAMES``.
        device: "cpu" or "cuda".

    Raises:
        Missing: it cannot be measured here.
    """
    if name == OURS:
        return Contender(name, our_subject)
    if name == OURS_COMPILED:
        if device != "cuda":
            raise Missing("train.compile is for GPUs")
        return Contender(name, our_compiled_subject)
    if name == OURS_OFFICIAL:
        around = partial(_with_operator, find_operator(OFFICIAL, device))
        return Contender(name, our_subject, around)
    find_operator(TRANSFORMERS, device)  # is it installed?
    around = patch_transformers if name == PATCHED else nullcontext
    return Contender(name, transformers_subject, around)


def find_contenders(device: str) -> tuple[list[Contender], dict[str, str]]:
    """All that can be measured on a device, and why the others cannot."""
    found, missing = [], {}
    for name in NAMES:
        try:
            found.append(find_contender(name, device))
        except Missing as reason:
            missing[name] = str(reason)
    return found, missing


def _with_operator(operator: Operator) -> AbstractContextManager:
    """Our attention module with somebody else's operator."""

    def fused(value, shapes, starts, references, offsets, logits):
        return operator.fused(value, shapes, references, offsets, logits)

    place = "detrex_mammo.layers.multi_scale_deformable_attention.ms_deform_attn_fused"
    return mock.patch(place, fused)


def run_inference(session: Session) -> None:
    """One whole image."""
    _run(session, INFERENCE, batch=1, rounds=20 if session.device == "cuda" else 5)


def run_train(session: Session) -> None:
    """One optimizer step: of one image on a CPU, of 16 on a GPU."""
    gpu = session.device == "cuda"
    _run(session, STEP, batch=GPU_BATCH if gpu else 1, rounds=10 if gpu else 3)


def _run(session: Session, quantity: str, batch: int, rounds: int) -> None:
    contenders, missing = find_contenders(session.device)
    session.results.add_missing(missing)
    sizes = (*QUICK_SIZE, min(batch, 2)) if session.quick else (*SIZE, batch)
    dtypes = ("fp32", "bf16") if session.device == "cuda" else ("fp32",)
    _compare_times(session, contenders, quantity, dtypes, sizes, session.rounds(rounds))
    gc.collect()
    if session.device == "cuda":
        torch.cuda.empty_cache()  # the other processes need the room
    for dtype in dtypes:
        _compare_memory(session, contenders, quantity, dtype, sizes)


def _compare_times(
    session: Session,
    contenders: Sequence[Contender],
    quantity: str,
    dtypes: Sequence[str],
    sizes: tuple[int, int, int],
    rounds: int,
) -> None:
    images = draw_images(*sizes, session.device)
    built: dict[Callable, Subject] = {}  # the patched model is the unpatched one
    for dtype in dtypes:
        case, candidates = case_name(dtype), []
        for contender in contenders:
            try:
                if contender.build not in built:
                    session.say(f"building {contender.name}")
                    built[contender.build] = contender.build(session.device)
                call = WORK[quantity](built[contender.build], images, DTYPES[dtype])
                # Twice before it counts: the first call may compile.
                warmup = 2 if session.device == "cuda" else 1
                candidates.append(Candidate(contender.name, call, contender.around, warmup))
            except Exception as error:  # whatever a peer raises: the others are still measured
                session.results.add(Row(case, quantity, contender.name, error=one_line(error)))
        session.compare(case, quantity, candidates, rounds)
        for candidate in candidates:
            session.results.add(Row(case, quantity, candidate.name, note=candidate.run.note))


def _compare_memory(
    session: Session,
    contenders: Sequence[Contender],
    quantity: str,
    dtype: str,
    sizes: tuple[int, int, int],
) -> None:
    """Each contender in a process of its own."""
    case = case_name(dtype)
    session.say(f"{case}, {MEMORY}")
    for contender in contenders:
        row = Row(case, MEMORY, contender.name, unit="B")
        try:
            peak, row.note = in_child(
                child_memory,
                name=contender.name,
                quantity=quantity,
                device=session.device,
                dtype=dtype,
                sizes=sizes,
                threads=session.threads,
            )
            row.values.append(peak)
            session.say(f"  {contender.name}: {quantity_text(peak, 'B')}")
        except ChildError as error:
            row.error = str(error)
        session.results.add(row)


def child_memory(
    name: str, quantity: str, device: str, dtype: str, sizes: list[int], threads: int
) -> tuple[int, str]:
    """Peak memory of a contender at work, for a process of its own: all that the process holds.

    A tiny image comes first: libraries are loaded and the optimizer has its state before it counts.
    """
    torch.set_num_threads(threads)
    contender = find_contender(name, device)
    subject, work = contender.build(device), WORK[quantity]
    with contender.around():
        work(subject, draw_images(*TINY_SIZE, 1, device), DTYPES[dtype])()
        call = work(subject, draw_images(*sizes, device), DTYPES[dtype])
        if device == "cuda":
            call()  # finds out what fits
        return peak_of(call, device).highest, call.note
