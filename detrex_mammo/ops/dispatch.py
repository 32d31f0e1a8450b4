# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Choice of the backend that computes multi-scale deformable attention.

B batch, S = sum of h*w over levels, M heads, D channels per head, Q queries, L levels, P points.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from detrex_mammo.errors import UserError
from detrex_mammo.ops import cpu
from detrex_mammo.ops.reference import ms_deform_attn_reference

BACKEND_VARIABLE = "DETREX_MAMMO_OPS_BACKEND"
SpatialShapes = Tensor | Sequence[tuple[int, int]]


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": ms_deform_attn_reference,
    "cpu": cpu.ms_deform_attn_cpu,
}


def why_not(backend: str) -> str:
    """Why a backend cannot be used here; an empty string if it can.

    Raises:
        UserError: no backend has that name.
    """
    if backend not in BACKENDS:
        names = ", ".join(["auto", *BACKENDS])
        raise UserError(
            f"backend of ms_deform_attn (or {BACKEND_VARIABLE}) is {backend!r}; "
            f"it must be one of {names}"
        )
    return cpu.why_not() if backend == "cpu" else ""


def choose_backend(backend: str, *tensors: Tensor) -> str:
    """The name of the backend to call.

    Args:
        backend (str): "auto" or a name of ``BACKENDS``. For "auto" the environment variable
            ``DETREX_MAMMO_OPS_BACKEND`` is asked first; without it float32 tensors on the CPU
            go to the kernel when there is one, and everything else to ``reference``.
        *tensors (Tensor): inputs of the operator; their devices and dtypes decide.

    Raises:
        UserError: the named backend does not exist or cannot be used here.
    """
    if backend == "auto":
        backend = os.environ.get(BACKEND_VARIABLE, "") or "auto"
    if backend != "auto":
        reason = why_not(backend)
        if reason:
            raise UserError(
                f"backend of ms_deform_attn (or {BACKEND_VARIABLE}) is {backend!r}, which cannot "
                f"be used here ({reason}); use 'auto' or 'reference'"
            )
        return backend
    is_traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
    fits = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    if not fits or is_traced:
        return "reference"
    reason = cpu.why_not()
    if reason:
        _warn_once(reason)
    return "reference" if reason else "cpu"


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"ms_deform_attn runs on the slow backend 'reference' because the C kernel cannot be used "
        f"({reason}); set {BACKEND_VARIABLE}=reference to silence this",
        stacklevel=4,
    )


def as_shape_tuple(spatial_shapes: SpatialShapes) -> tuple[tuple[int, int], ...]:
    """Rows (h, w) as Python integers; a tensor on a GPU costs one synchronisation."""
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = spatial_shapes.tolist()
    return tuple((int(height), int(width)) for height, width in spatial_shapes)


def _check_shapes(value, shapes, level_start_index, locations, weights) -> None:
    batch, tokens, heads, _ = value.shape
    expected = (batch, locations.shape[1], heads, len(shapes), locations.shape[4], 2)
    if tuple(locations.shape) != expected or tuple(weights.shape) != expected[:-1]:
        raise ValueError(
            f"sampling_locations {tuple(locations.shape)} and attention_weights "
            f"{tuple(weights.shape)} do not fit value {tuple(value.shape)} and spatial_shapes "
            f"{shapes}; expected {expected} and {expected[:-1]}"
        )
    starts = [0]
    for height, width in shapes:
        starts.append(starts[-1] + height * width)
    if starts[-1] != tokens:
        raise ValueError(
            f"value has {tokens} tokens, but the levels of spatial_shapes {shapes} "
            f"have {starts[-1]} together"
        )
    if isinstance(level_start_index, Tensor):
        # A tensor elsewhere is trusted: reading it would synchronise with the device.
        level_start_index = level_start_index.tolist() if level_start_index.is_cpu else None
    if level_start_index is not None and list(level_start_index) != starts[:-1]:
        raise ValueError(
            f"level_start_index is {list(level_start_index)}; the levels of spatial_shapes "
            f"{shapes} start at {starts[:-1]} (gaps between levels are not supported)"
        )


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    level_start_index: Tensor | Sequence[int] | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Multi-scale deformable attention without its projections.

    Eq. 3 of https://arxiv.org/abs/2010.04159.

    Args:
        value (Tensor): (B, S, M, D), float32, float64, bfloat16 or float16.
        spatial_shapes (Tensor or Sequence[tuple[int, int]]): L rows (h, w); Python integers
            spare a GPU one synchronisation.
        level_start_index (Tensor or Sequence[int], optional): (L,), first token of each level;
            derived from ``spatial_shapes`` when None.
        sampling_locations (Tensor): (B, Q, M, L, P, 2) as (x, y), in [0, 1] of the padded level.
        attention_weights (Tensor): (B, Q, M, L, P), summing to 1 over (L, P).
        backend (str): "auto", "reference" or "cpu"; see :func:`choose_backend`.

    Returns:
        Tensor: (B, Q, M*D) in the dtype of ``value``; accumulated in at least float32.
    """
    shapes = as_shape_tuple(spatial_shapes)
    _check_shapes(value, shapes, level_start_index, sampling_locations, attention_weights)
    name = choose_backend(backend, value, sampling_locations, attention_weights)
    return BACKENDS[name](value, shapes, sampling_locations, attention_weights)
