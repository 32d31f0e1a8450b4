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
from detrex_mammo.ops.embedding_bag import ms_deform_attn_embedding_bag
from detrex_mammo.ops.library import NATIVE, flatten_shapes, native_module
from detrex_mammo.ops.locations import attention_weights as softmax_of
from detrex_mammo.ops.locations import sampling_locations as locations_of
from detrex_mammo.ops.reference import ms_deform_attn_reference

BACKEND_VARIABLE = "DETREX_MAMMO_OPS_BACKEND"
SpatialShapes = Tensor | Sequence[tuple[int, int]]

# In plain, differentiable PyTorch; the native ones are in library.py.
PLAIN: dict[str, Callable[..., Tensor]] = {
    "reference": ms_deform_attn_reference,
    "embedding_bag": ms_deform_attn_embedding_bag,
}
BACKENDS = (*PLAIN, *NATIVE)
MOST_SAMPLES = 1024  # of a query and head, L * P, that the native backends take


def why_not(backend: str) -> str:
    """Why a backend cannot be used here; an empty string if it can.

    Raises:
        UserError: no backend has that name.
    """
    if backend not in BACKENDS:
        raise UserError(
            f"backend of ms_deform_attn (or {BACKEND_VARIABLE}) is {backend!r}; "
            f"it must be one of {', '.join(['auto', *BACKENDS])}"
        )
    return native_module(backend).why_not() if backend in NATIVE else ""


def choose_backend(backend: str, device: str, is_double: bool = False) -> str:
    """The name of the backend to call.

    Args:
        backend (str): "auto" or one of ``BACKENDS``. For "auto" the environment variable
            ``DETREX_MAMMO_OPS_BACKEND`` is asked first. Without it a CPU takes "c", or
            "embedding_bag" if there is no compiler; a GPU "triton", or "reference". float64 and
            ONNX export always take "reference".
        device (str): type of the device of the tensors: "cpu", "cuda", ...
        is_double (bool): a tensor is float64, which only the plain backends compute.

    Raises:
        UserError: the named backend does not exist or cannot be used here.
    """
    if backend == "auto":
        backend = os.environ.get(BACKEND_VARIABLE, "") or "auto"
    if backend != "auto":
        reason = why_not(backend) or _misfit(backend, device, is_double)
        if reason:
            raise UserError(
                f"backend of ms_deform_attn (or {BACKEND_VARIABLE}) is {backend!r}, which cannot "
                f"be used here ({reason}); use 'auto' or 'reference'"
            )
        return backend
    if is_double or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return "reference"
    if device == "cpu":
        return _first_usable("c", "embedding_bag")
    return _first_usable("triton", "reference") if device == "cuda" else "reference"


# While torch.compile traces, call it and keep the answer. The attribute is what
# torch.compiler.assume_constant_result sets; calling that would import the compiler (2 seconds).
choose_backend._dynamo_marked_constant = True


def _misfit(backend: str, device: str, is_double: bool) -> str:
    """Why a backend that is there cannot take these tensors; empty if it can."""
    if backend not in NATIVE:
        return ""
    if is_double:
        return "a tensor is float64"
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    devices = {"c": ("cpu",), "triton": ("cuda", "cpu") if is_interpreted else ("cuda",)}[backend]
    return "" if device in devices else f"the tensors lie on {device!r}"


def _first_usable(best: str, instead: str) -> str:
    reason = why_not(best)
    if reason:
        _warn_once(best, instead, reason)
    return instead if reason else best


@cache
def _warn_once(best: str, instead: str, reason: str) -> None:
    warnings.warn(
        f"ms_deform_attn runs on the slower backend {instead!r} because {best!r} cannot be used "
        f"({reason}); set {BACKEND_VARIABLE}={instead} to silence this",
        stacklevel=6,
    )


def as_shape_tuple(spatial_shapes: SpatialShapes) -> tuple[tuple[int, int], ...]:
    """Rows (h, w) as Python integers; a tensor on a GPU costs one synchronisation."""
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = spatial_shapes.tolist()
    return tuple((_as_integer(height), _as_integer(width)) for height, width in spatial_shapes)


def _as_integer(size) -> int:
    """An integer as it is while torch.export traces: it may stand for any size."""
    return size if isinstance(size, torch.SymInt) else int(size)


def _check_shapes(value, shapes, level_start_index, locations, weights) -> None:
    if (value.dim(), locations.dim(), weights.dim()) != (4, 6, 5):
        raise ValueError(
            f"value {tuple(value.shape)}, locations (or offsets) {tuple(locations.shape)} and "
            f"attention weights (or logits) {tuple(weights.shape)} must have 4, 6 and 5 axes"
        )
    if not shapes or any(size < 1 for shape in shapes for size in shape):
        raise ValueError(f"spatial_shapes is {shapes}; every level must have at least one cell")
    batch, tokens, heads, _ = value.shape
    expected = (batch, locations.shape[1], heads, len(shapes), locations.shape[4], 2)
    if tuple(locations.shape) != expected or tuple(weights.shape) != expected[:-1]:
        raise ValueError(
            f"locations (or offsets) {tuple(locations.shape)} and attention weights (or logits) "
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


def _check_reference_points(reference_points, batch, queries, levels) -> None:
    shape = tuple(reference_points.shape)
    if len(shape) != 4 or shape[0] not in (1, batch) or shape[1:3] != (queries, levels):
        raise ValueError(
            f"reference_points has shape {shape}; expected ({batch} or 1, {queries}, {levels}, "
            "2 or 4)"
        )
    if shape[3] not in (2, 4):
        raise ValueError(
            f"reference_points has shape {shape}; its last size must be 2 for (x, y) or 4 for "
            "(cx, cy, w, h)"
        )


def _check_tensors(*tensors: Tensor) -> None:
    devices = {str(tensor.device) for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"the tensors lie on {', '.join(sorted(devices))}; move them to one")
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise ValueError(f"a tensor has dtype {tensor.dtype}; it must be a floating one")


def _backend_for(backend: str, tensors: Sequence[Tensor], num_samples: int) -> str:
    """The backend for these tensors; the plain one for what only plain PyTorch can do."""
    is_double = any(tensor.dtype == torch.float64 for tensor in tensors)
    name = choose_backend(backend, tensors[0].device.type, is_double)
    # grid_sample has no forward-mode derivative either, but says so.
    is_forward_mode = torch.autograd.forward_ad._current_level >= 0
    return "reference" if is_forward_mode or num_samples > MOST_SAMPLES else name


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    level_start_index: Tensor | Sequence[int] | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Multi-scale deformable attention without its projections.

    Eq. 3 of https://arxiv.org/abs/2010.04159. A location outside of its level, at NaN or at
    infinity reads 0.

    Args:
        value (Tensor): (B, S, M, D), float32, float64, bfloat16 or float16.
        spatial_shapes (Tensor or Sequence[tuple[int, int]]): L rows (h, w); Python integers
            spare a GPU one synchronisation.
        level_start_index (Tensor or Sequence[int], optional): (L,), first token of each level;
            derived from ``spatial_shapes`` when None.
        sampling_locations (Tensor): (B, Q, M, L, P, 2) as (x, y), in [0, 1] of the padded level;
            better in float32 than in half precision.
        attention_weights (Tensor): (B, Q, M, L, P), summing to 1 over (L, P).
        backend (str): "auto" or one of ``BACKENDS``; see :func:`choose_backend`.

    Returns:
        Tensor: (B, Q, M*D) in the dtype of ``value`` (the native backends: of the autocast, if
        there is one); accumulated in at least float32.

    Raises:
        UserError: the backend does not exist or cannot be used here.
        ValueError: shapes or devices do not fit each other.
    """
    shapes = as_shape_tuple(spatial_shapes)
    _check_shapes(value, shapes, level_start_index, sampling_locations, attention_weights)
    tensors = (value, sampling_locations, attention_weights)
    _check_tensors(*tensors)
    name = _backend_for(backend, tensors, attention_weights.shape[3] * attention_weights.shape[4])
    if name in PLAIN:
        return PLAIN[name](value, shapes, sampling_locations, attention_weights)
    return torch.ops.detrex_mammo.ms_deform_attn(
        value, flatten_shapes(shapes), sampling_locations, attention_weights, name
    )


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    level_start_index: Tensor | Sequence[int] | None,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    backend: str = "auto",
) -> Tensor:
    """:func:`ms_deform_attn` from what the projections give: less memory, fewer passes over it.

    The native backends do the softmax and the arithmetic of the locations on the way, in float32,
    and keep nothing but these inputs for the backward pass.

    Args:
        value (Tensor): (B, S, M, D), float32, float64, bfloat16 or float16.
        spatial_shapes (Tensor or Sequence[tuple[int, int]]): L rows (h, w).
        level_start_index (Tensor or Sequence[int], optional): as in :func:`ms_deform_attn`.
        reference_points (Tensor): (B or 1, Q, L, 2) as (x, y) or (B or 1, Q, L, 4) as
            (cx, cy, w, h), in [0, 1] of the padded level.
        sampling_offsets (Tensor): (B, Q, M, L, P, 2) as (x, y), in cells of the level or, with 4
            numbers, P-ths of half the box.
        attention_logits (Tensor): (B, Q, M, L, P), before the softmax over (L, P).
        backend (str): "auto" or one of ``BACKENDS``; see :func:`choose_backend`.

    Returns:
        Tensor: (B, Q, M*D), as :func:`ms_deform_attn`.

    Raises:
        UserError: the backend does not exist or cannot be used here.
        ValueError: shapes or devices do not fit each other.
    """
    shapes = as_shape_tuple(spatial_shapes)
    _check_shapes(value, shapes, level_start_index, sampling_offsets, attention_logits)
    _check_reference_points(
        reference_points, value.shape[0], sampling_offsets.shape[1], len(shapes)
    )
    tensors = (value, reference_points, sampling_offsets, attention_logits)
    _check_tensors(*tensors)
    name = _backend_for(backend, tensors, attention_logits.shape[3] * attention_logits.shape[4])
    # Few references are learned, and those of few queries: their gradient is left to autograd.
    is_learned = reference_points.requires_grad and torch.is_grad_enabled()
    if name in NATIVE and not is_learned:
        return torch.ops.detrex_mammo.ms_deform_attn_fused(
            value, flatten_shapes(shapes), *tensors[1:], name
        )
    locations = locations_of(reference_points, sampling_offsets, shapes)
    weights = softmax_of(attention_logits)
    return ms_deform_attn(value, shapes, None, locations, weights, name)
