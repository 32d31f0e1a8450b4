# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Backend "triton": multi-scale deformable attention on NVIDIA GPUs, without autograd.

Nothing here imports Triton before it is used: a machine without it imports this module.

B batch, S tokens of all levels, Q queries, M heads, D channels per head, L levels, P points.
"""

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from detrex_mammo.ops import autotune

Shapes = tuple[tuple[int, int], ...]

LOAD_BYTES = 16
WARP_SIZE = 32
MOST_WARPS = 16
MANY_QUERIES = 4096  # an encoder; a decoder has fewer, and wants other programs
# Offsets inside one image are 32 bits wide up to here; half of what fits, as blocks are padded.
MOST_ELEMENTS = 2**30
LEAST_CAPABILITY = (8, 0)
LEAST_TRITON = (3, 3)  # tuples as arguments


def why_not() -> str:
    """Why this backend cannot be used here; an empty string if it can."""
    return _why_not(os.environ.get("TRITON_INTERPRET") == "1")


@cache
def _why_not(is_interpreted: bool) -> str:
    try:
        import triton
    except (ImportError, OSError) as error:
        return f"Triton cannot be imported: {error}"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < LEAST_TRITON:
        return f"Triton {triton.__version__} is older than {'.'.join(map(str, LEAST_TRITON))}"
    if is_interpreted:
        return ""
    if not torch.cuda.is_available() or torch.version.hip:
        return "there is no NVIDIA GPU"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        return f"the GPU's compute capability is {capability[0]}.{capability[1]}, less than 8.0"
    return _why_no_launcher()


def _why_no_launcher() -> str:
    """Triton compiles a small C file at its first launch; whether that works here."""
    from triton.runtime import driver

    try:
        driver.active.get_current_target()
    except Exception as error:  # whatever the compiler, the loader or the driver raises
        return f"Triton cannot prepare a launch: {error}".splitlines()[0]
    return ""


def forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Eq. 3 of https://arxiv.org/abs/2010.04159 without its projections.

    Args:
        value (Tensor): (B, S, M, D), float32, bfloat16 or float16.
        shapes (tuple): L pairs (h, w).
        locations (Tensor): (B, Q, M, L, P, 2) as (x, y), in [0, 1] of the padded level.
        weights (Tensor): (B, Q, M, L, P).

    Returns:
        Tensor: (B, Q, M*D) in the dtype of ``value``.
    """
    return _forward(value, shapes, None, locations, weights)


def fused_forward(
    value: Tensor, shapes: Shapes, reference_points: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """The same from reference points, offsets and logits; see ``ops.ms_deform_attn_fused``.

    Args:
        value (Tensor): (B, S, M, D), float32, bfloat16 or float16.
        shapes (tuple): L pairs (h, w).
        reference_points (Tensor): (B or 1, Q, L, 2) as (x, y) or (B or 1, Q, L, 4) as
            (cx, cy, w, h), in [0, 1] of the padded level.
        offsets (Tensor): (B, Q, M, L, P, 2) as (x, y), in cells of the level, or in halves of the
            box divided by P.
        logits (Tensor): (B, Q, M, L, P), before the softmax over (L, P).

    Returns:
        Tensor: (B, Q, M*D) in the dtype of ``value``.
    """
    return _forward(value, shapes, reference_points, offsets, logits)


def backward(
    grad_output: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``value``, ``locations`` and ``weights``; see :func:`forward`."""
    return _backward(grad_output, value, shapes, None, locations, weights)


def fused_backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Shapes,
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``value``, ``offsets`` and ``logits``; see :func:`fused_forward`."""
    return _backward(grad_output, value, shapes, reference_points, offsets, logits)


def _forward(value, shapes, references, places, attention) -> Tensor:
    batch, _, heads, channels = value.shape
    size = (batch, places.shape[1], heads * channels)
    if value.numel() == 0 or attention.numel() == 0:
        return value.new_zeros(size)
    output = value.new_empty(size)
    value = value.contiguous()
    if value.dtype == torch.bfloat16 and channels % 2 == value.storage_offset() % 2 == 0:
        value = value.view(torch.int32)  # pairs, see forward_kernel
    arguments = _arguments(value, shapes, references, places, attention)
    _launch("forward_kernel", {**arguments, "output": output})
    return output


def _backward(grad_output, value, shapes, references, places, attention):
    if value.numel() == 0 or attention.numel() == 0:
        return tuple(tensor.new_zeros(tensor.shape) for tensor in (value, places, attention))
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    dtype = torch.int64 if is_deterministic else torch.float32
    grad_value = torch.zeros(value.shape, dtype=dtype, device=value.device)
    units = _units(grad_output, attention, references) if is_deterministic else None
    arguments = {
        **_arguments(value, shapes, references, places, attention),
        "grad_output": grad_output.contiguous(),
        "grad_value": grad_value,
        "grad_places": (grad_places := places.new_empty(places.shape)),
        "grad_attention": (grad_attention := attention.new_empty(attention.shape)),
        "units": grad_value if units is None else units,
        "DETERMINISTIC": is_deterministic,
    }
    _launch("backward_kernel", arguments, grad_value.zero_)
    if is_deterministic:
        grad_value = grad_value.to(torch.float32) / units
    return grad_value.to(value.dtype), grad_places, grad_attention


def _units(grad_output: Tensor, attention: Tensor, references: Tensor | None) -> Tensor:
    """How many units make 1 when gradients of ``value`` are added up as integers.

    A power of two, so large that the sum of all contributions that one element could get is just
    below 2**62. Nothing is read back from the device. If a gradient is not finite, neither is the
    result, and ``grad_value`` becomes NaN everywhere.
    """
    largest = grad_output.abs().amax().double()
    if references is None:
        largest = largest * attention.abs().amax()
    # of one query at most one sample's corner for each of the L * P samples
    most = attention.shape[1] * attention.shape[3] * attention.shape[4]
    exponent = (62 - most.bit_length() - torch.frexp(largest).exponent).clamp(-126, 126)
    units = torch.exp2(exponent.double()).float()
    return torch.where(largest.isfinite(), units, float("nan"))


def _dense(tensor: Tensor, depth: int) -> Tensor:
    """The tensor, or a copy where the axes from ``depth`` on do not lie in C order."""
    is_dense = tensor[(0,) * depth].is_contiguous()
    return tensor if is_dense else tensor.contiguous()


def _arguments(value, shapes, references, places, attention) -> dict[str, Any]:
    """Arguments that both kernels take."""
    batch, tokens, heads, channels = value.shape
    queries, _, levels, points = attention.shape[1:]
    value = value.contiguous()
    # Slices of one projection's output, for example: only their query stride is larger.
    places, attention = _dense(places, 2), _dense(attention, 2)
    if references is not None:
        references = _dense(references, 1)
    extents = (value[0].numel(), *(queries * t.stride(1) for t in (places, attention)))
    is_shared = references is None or references.shape[0] == 1
    return {
        "value": value,
        "references": value if references is None else references,
        "places": places,
        "attention": attention,
        "shapes": tuple((float(height), float(width)) for height, width in shapes),
        "num_tokens": tokens,
        "num_queries": queries,
        "references_batch": 0 if is_shared else references.stride(0),
        "places_batch": places.stride(0),
        "places_query": places.stride(1),
        "attention_batch": attention.stride(0),
        "attention_query": attention.stride(1),
        "M": heads,
        "D": channels,
        "P": points,
        "L": levels,
        "REF": 0 if references is None else references.shape[-1],
        "DP": _next_power_of_two(channels),
        "PP": _next_power_of_two(points),
        "WIDE": max(extents) > MOST_ELEMENTS,
    }


def _next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _launch(
    name: str, arguments: dict[str, Any], reset: Callable[[], object] = lambda: None
) -> None:
    """Launch a kernel, in the way that is fastest for such arguments."""
    import triton

    from detrex_mammo.ops.kernels import ms_deform_attn

    kernel = getattr(ms_deform_attn, name)
    value = arguments["value"]
    queries = arguments["num_queries"]

    def launch(config: autotune.Config) -> None:
        block, warps = cut(config, value.element_size(), arguments["PP"], arguments["DP"])
        programs = -(-queries // block) * arguments["M"] * value.shape[0]
        kernel[(programs,)](**arguments, BQ=block, num_warps=warps, num_stages=1)

    with torch.cuda.device_of(value):
        key = ""
        if value.is_cuda:
            size = "many" if queries >= MANY_QUERIES else "few"
            capability = "{}.{}".format(*torch.cuda.get_device_capability())
            sizes = [f"{letter}{arguments[letter]}" for letter in ("D", "L", "P", "REF")]
            versions = [triton.__version__, kernel.cache_key[:16]]
            key = " ".join([name, size, *sizes, str(value.dtype), capability, *versions])
        autotune.run(name, key, launch, reset, value.device.type)


def cut(config: autotune.Config, element_size: int, points: int, channels: int) -> tuple[int, int]:
    """Queries and warps of a program, powers of two.

    Args:
        config: see there; gets more warps when one query alone is too much for so few.
        element_size: bytes of an element of ``value``.
        points, channels: PP and DP of the kernels.
    """
    per_warp = config.loads * LOAD_BYTES // element_size * WARP_SIZE
    tile = points * channels
    num_warps = max(config.num_warps, min(tile // per_warp, MOST_WARPS))
    return max(1, per_warp * num_warps // tile), num_warps
