# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Multi-scale deformable attention on the CPU in C: calls ``kernels/ms_deform_attn.c``.

B batch, S tokens, Q queries, M heads, D channels per head, L levels, P points, K = L * P. Computes
in float32; bfloat16 and float16 are converted on the way in and out. Autograd is in ``library.py``.
"""

import ctypes
import os
import threading
from functools import cache, lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from detrex_mammo.ops.c_compiler import CompilerError, load_library

SOURCE = Path(__file__).parent / "kernels" / "ms_deform_attn.c"
# Below this many gathered rows a second thread costs more than it brings.
MIN_ROWS_FOR_THREADS = 100_000
# Copying a head's values together pays when each row is read this often.
MIN_READS_TO_GATHER = 16
# Elements that 32-bit offsets reach.
MAX_INT32_ELEMENTS = 2**31 - 1
Shapes = tuple[tuple[int, int], ...]

_is_forked = False  # OpenMP's threads do not survive a fork, and waiting for them never ends

_FUNCTIONS = ("ms_deform_attn_forward", "ms_deform_attn_backward")
_PROBE = (32, 4, 4, "int32_t")  # the published model's kernel
_POINTERS = (
    *("value", "shapes", "references", "places", "attention", "grad_output"),
    *("output", "grad_value", "grad_places", "grad_attention"),
)
_NUMBERS = (
    *("batch", "tokens", "queries", "heads", "reference_size", "reference_batch_stride"),
    *("places_query_stride", "attention_query_stride", "query_chunks", "gather", "num_threads"),
)


class _Problem(ctypes.Structure):
    """The struct of the same name in the C file."""

    _fields_ = [(name, ctypes.c_void_p) for name in _POINTERS]
    _fields_ += [(name, ctypes.c_int64) for name in _NUMBERS]


def _mark_as_forked() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_as_forked)


@cache
def why_not() -> str:
    """Why the kernel cannot be used here; an empty string if it can."""
    try:
        _kernel(*_PROBE)
    except CompilerError as error:
        return str(error)
    return ""


def has_openmp() -> bool:
    """Whether OpenMP shares out the work; otherwise Python's threads do."""
    return bool(_kernel(*_PROBE).ms_deform_attn_has_openmp())


@cache
def _kernel(head_dim: int, num_levels: int, num_points: int, offset: str) -> ctypes.CDLL:
    defines = {"HEAD_DIM": head_dim, "NUM_LEVELS": num_levels, "NUM_POINTS": num_points}
    library = load_library(
        SOURCE, {**defines, "OFFSET": offset}, (*_FUNCTIONS, "ms_deform_attn_has_openmp")
    )
    for name in _FUNCTIONS:
        library[name].argtypes = [ctypes.POINTER(_Problem), ctypes.c_int64, ctypes.c_int64]
        library[name].restype = None
    return library


def forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Eq. 3 of https://arxiv.org/abs/2010.04159, without its projections.

    Args:
        value (Tensor): (B, S, M, D).
        shapes (Shapes): L pairs (h, w).
        locations (Tensor): (B, Q, M, L, P, 2) as (x, y), in [0, 1] of the padded level.
        weights (Tensor): (B, Q, M, L, P).

    Returns:
        Tensor: (B, Q, M*D) in the dtype of ``value``.
    """
    return _Call(value, shapes, None, locations, weights).forward()


def backward(
    grad_output: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights; the same bits for any number of threads."""
    return _Call(value, shapes, None, locations, weights).backward(grad_output)


def fused_forward(
    value: Tensor, shapes: Shapes, reference_points: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """As :func:`forward`, with the softmax and the arithmetic of the locations inside.

    Args:
        value (Tensor): (B, S, M, D).
        shapes (Shapes): L pairs (h, w).
        reference_points (Tensor): (B or 1, Q, L, 2) as (x, y) or (B or 1, Q, L, 4) as
            (cx, cy, w, h), in [0, 1] of the padded level.
        offsets (Tensor): (B, Q, M, L, P, 2) as (x, y), in cells or P-ths of half the box.
        logits (Tensor): (B, Q, M, L, P).
    """
    return _Call(value, shapes, reference_points, offsets, logits).forward()


def fused_backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Shapes,
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, offsets and logits; reference points get none."""
    return _Call(value, shapes, reference_points, offsets, logits).backward(grad_output)


@lru_cache(maxsize=1024)
def _as_tensor(shapes: Shapes) -> Tensor:
    """(L, 2) int64; each image size occurs many times."""
    return torch.tensor(shapes, dtype=torch.int64).reshape(-1, 2)


class _Call:
    """One problem as the C file wants it; keeps the converted tensors alive."""

    def __init__(self, value, shapes, reference_points, places, attention):
        self.inputs = value, places, attention
        self.batch, self.tokens, self.heads, self.head_dim = value.shape
        self.queries, self.levels, self.points = (places.shape[i] for i in (1, 3, 4))
        self.value = value.float().contiguous()
        self.shapes = _as_tensor(shapes)
        self.places, self.attention = self._rows(places), self._rows(attention)
        self.references = None
        if reference_points is not None:
            self.references = reference_points.float().contiguous()
        self.is_empty = value.numel() == 0 or places.numel() == 0
        reads = 4 * self.queries * self.levels * self.points  # of a head's rows
        self.gathers = reads >= MIN_READS_TO_GATHER * self.tokens

    def forward(self) -> Tensor:
        shape = self.batch, self.queries, self.heads * self.head_dim
        if self.is_empty:
            return self.value.new_zeros(shape, dtype=self.inputs[0].dtype)
        output = self.value.new_empty(shape)
        threads = self._threads()
        chunks = -(-threads // (self.batch * self.heads))
        problem = self._problem(output=output, query_chunks=chunks)
        num_tasks = self.batch * self.heads * chunks
        _run(self._kernel(), "ms_deform_attn_forward", problem, num_tasks, threads)
        return output.to(self.inputs[0].dtype)

    def backward(self, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.is_empty:
            return tuple(torch.zeros_like(tensor) for tensor in self.inputs)
        _, places, attention = self.inputs
        gradients = (
            torch.empty_like(self.value) if self.gathers else torch.zeros_like(self.value),
            self.value.new_empty(places.shape),
            self.value.new_empty(attention.shape),
        )
        names = ("grad_value", "grad_places", "grad_attention")
        grad_output = grad_output.float().contiguous()
        problem = self._problem(grad_output=grad_output, **dict(zip(names, gradients)))
        num_tasks = self.batch * self.heads
        _run(self._kernel(), "ms_deform_attn_backward", problem, num_tasks, self._threads())
        return tuple(g.to(tensor.dtype) for g, tensor in zip(gradients, self.inputs))

    def _rows(self, tensor: Tensor) -> Tensor:
        """(B * Q, everything of one query); a slice of a larger row stays a view."""
        inner = tensor[:1, :1].numel() if tensor.numel() else 0
        rows = tensor.float().reshape(self.batch * self.queries, inner)
        return rows if rows.stride(1) == 1 else rows.contiguous()

    def _kernel(self) -> ctypes.CDLL:
        fits = self.tokens * self.heads * self.head_dim <= MAX_INT32_ELEMENTS
        offset = "int32_t" if fits else "int64_t"
        return _kernel(self.head_dim, self.levels, self.points, offset)

    def _threads(self) -> int:
        rows = 4 * self.batch * self.queries * self.heads * self.levels * self.points
        return 1 if rows < MIN_ROWS_FOR_THREADS or _is_forked else torch.get_num_threads()

    def _problem(self, **fields) -> _Problem:
        self.fields = fields  # kept alive while the kernel runs
        problem = _Problem(
            batch=self.batch,
            tokens=self.tokens,
            queries=self.queries,
            heads=self.heads,
            places_query_stride=self.places.stride(0),
            attention_query_stride=self.attention.stride(0),
            gather=self.gathers,
        )
        tensors = {"value": self.value, "shapes": self.shapes}
        tensors |= {"places": self.places, "attention": self.attention}
        if self.references is not None:
            tensors["references"] = self.references
            problem.reference_size = self.references.shape[-1]
            if self.references.shape[0] > 1:
                problem.reference_batch_stride = self.references.stride(0)
        for name, item in (tensors | fields).items():
            setattr(problem, name, item.data_ptr() if isinstance(item, Tensor) else item)
        return problem


def _run(library: ctypes.CDLL, name: str, problem: _Problem, num_tasks: int, threads: int) -> None:
    """All tasks: by OpenMP if the library has it, else by threads (ctypes releases the GIL)."""
    has_openmp = library.ms_deform_attn_has_openmp()
    problem.num_threads = threads if has_openmp else 1
    call = partial(library[name], ctypes.byref(problem))
    num_workers = 1 if has_openmp else min(threads, num_tasks)
    if num_workers == 1:
        call(0, num_tasks)
        return
    bounds = [num_tasks * i // num_workers for i in range(num_workers + 1)]
    workers = [threading.Thread(target=call, args=pair) for pair in zip(bounds, bounds[1:])]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
