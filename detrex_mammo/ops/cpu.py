# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Multi-scale deformable attention on the CPU in C, forward and backward, float32.

B batch, S tokens, Q queries, M heads, D channels per head, L levels, P points.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from detrex_mammo.ops.c_compiler import CompilerError, load_library

SOURCE = Path(__file__).parent / "kernels" / "ms_deform_attn.c"
# Below this many gathered rows a second thread costs more than it brings.
MIN_ROWS_FOR_THREADS = 2_000_000
# Elements of one image's value that 32-bit offsets reach.
MAX_INT32_ELEMENTS = 2**31 - 1
_PROBE = (32, 16, "int32_t")


@cache
def why_not() -> str:
    """Why the kernel cannot be used here; an empty string if it can."""
    try:
        _kernel(*_PROBE)
    except CompilerError as error:
        return str(error)
    return ""


def is_available() -> bool:
    """Whether the kernel compiles here."""
    return not why_not()


@cache
def _kernel(head_dim: int, num_samples: int, offset: str) -> ctypes.CDLL:
    defines = {"HEAD_DIM": head_dim, "NUM_SAMPLES": num_samples, "OFFSET": offset}
    library = load_library(SOURCE, defines)
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    sizes = [integer] * 5 + [ctypes.c_int]
    library.ms_deform_attn_forward.argtypes = [pointer] * 5 + sizes
    library.ms_deform_attn_backward.argtypes = [pointer] * 8 + sizes
    library.ms_deform_attn_forward.restype = library.ms_deform_attn_backward.restype = None
    return library


def ms_deform_attn_cpu(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Eq. 3 of https://arxiv.org/abs/2010.04159, without its projections; differentiable.

    Gradients have the same bits for any number of threads. A sample at NaN or infinity
    contributes nothing.

    Args:
        value (Tensor): (B, S, M, D) float32 on the CPU.
        spatial_shapes (Sequence[tuple[int, int]]): L rows (h, w).
        sampling_locations (Tensor): (B, Q, M, L, P, 2) as (x, y), in [0, 1] of the padded level.
        attention_weights (Tensor): (B, Q, M, L, P).

    Returns:
        Tensor: (B, Q, M*D).

    Raises:
        TypeError: a tensor is not float32 on the CPU.
    """
    for tensor in (value, sampling_locations, attention_weights):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise TypeError(
                f"the CPU kernel takes float32 on the CPU, not {tensor.dtype} on {tensor.device}"
            )
    shapes = torch.tensor(spatial_shapes, dtype=torch.int64).reshape(-1, 2)
    return _Function.apply(value, shapes, sampling_locations, attention_weights)


def _sizes(value: Tensor, locations: Tensor) -> tuple[ctypes.CDLL, tuple[int, ...]]:
    """The kernel for these shapes, and its last six arguments."""
    batch, tokens, heads, head_dim = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    offset = "int32_t" if tokens * heads * head_dim <= MAX_INT32_ELEMENTS else "int64_t"
    rows = 4 * batch * queries * heads * levels * points
    threads = torch.get_num_threads() if rows >= MIN_ROWS_FOR_THREADS else 1
    kernel = _kernel(head_dim, levels * points, offset)
    return kernel, (batch, tokens, queries, heads, levels, threads)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, shapes, locations, weights):
        value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
        ctx.save_for_backward(value, shapes, locations, weights)
        batch, queries, heads = locations.shape[:3]
        output = value.new_empty(batch, queries, heads * value.shape[3])
        if output.numel() == 0 or locations.numel() == 0:
            return output.zero_()
        kernel, sizes = _sizes(value, locations)
        tensors = (value, shapes, locations, weights, output)
        kernel.ms_deform_attn_forward(*(t.data_ptr() for t in tensors), *sizes)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        value, shapes, locations, weights = ctx.saved_tensors
        grad_value = torch.zeros_like(value)
        grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
        if grad_output.numel() and locations.numel():
            grad_output = grad_output.contiguous()
            kernel, sizes = _sizes(value, locations)
            tensors = (value, shapes, locations, weights, grad_output)
            gradients = (grad_value, grad_locations, grad_weights)
            pointers = (t.data_ptr() for t in (*tensors, *gradients))
            kernel.ms_deform_attn_backward(*pointers, *sizes)
        return grad_value, None, grad_locations, grad_weights
