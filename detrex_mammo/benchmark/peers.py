# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Implementations of multi-scale deformable attention that are installed: ours and others'.

B batch, S tokens, Q queries, M heads, D channels per head, L levels, P points.
"""

import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from detrex_mammo import ops
from detrex_mammo.benchmark.timing import one_line
from detrex_mammo.errors import UserError
from detrex_mammo.ops import embedding_bag
from detrex_mammo.ops.locations import attention_weights, sampling_locations

REFERENCE, TRANSFORMERS, DEFORMOPS = "reference", "transformers", "deformops"
OFFICIAL, COMPILED = "official CUDA kernel", "embedding_bag, compiled"
IM2COL_STEP = 64  # images that the official kernel takes at once
HUB_KERNEL = "kernels-community/deformable-detr"
NAMES = (
    *(REFERENCE, TRANSFORMERS, DEFORMOPS, OFFICIAL, "embedding_bag", COMPILED),
    *(name for name in ops.BACKENDS if name not in (REFERENCE, "embedding_bag")),
)
Shapes = tuple[tuple[int, int], ...]


class Missing(Exception):
    """A peer cannot be measured here; the message is the reason."""


@dataclass(frozen=True)
class Operator:
    """One implementation in both forms.

    Attributes:
        name: as in the tables.
        unfused: (value (B, S, M, D), shapes, locations (B, Q, M, L, P, 2), weights
            (B, Q, M, L, P)) to (B, Q, M*D).
        fused: (value, shapes, reference points (B or 1, Q, L, 2 or 4), offsets, logits) to the
            same; softmax and locations in PyTorch where the implementation has no such form.
        dtypes: of value that it takes.
        trains: whether its backward pass is worth a row.
        around: entered around every call.
    """

    name: str
    unfused: Callable[..., Tensor]
    fused: Callable[..., Tensor]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    trains: bool = True
    around: Callable[[], AbstractContextManager] = nullcontext


def find_operator(name: str, device: str) -> Operator:
    """One implementation.

    Args:
        name: one of ``NAMES``.
        device: "cpu" or "cuda".

    Raises:
        Missing: it cannot be measured here.
    """
    others = {
        TRANSFORMERS: _transformers,
        COMPILED: _compiled_embedding_bag,
        DEFORMOPS: _deformops,
        OFFICIAL: _official,
    }
    return others[name](device) if name in others else _ours(name, device)


def find_operators(device: str) -> tuple[list[Operator], dict[str, str]]:
    """All implementations that work on a device, and why the others do not."""
    found, missing = [], {}
    for name in NAMES:
        try:
            found.append(find_operator(name, device))
        except Missing as reason:
            missing[name] = str(reason)
    return found, missing


def _ours(backend: str, device: str) -> Operator:
    if backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        raise Missing("TRITON_INTERPRET=1 runs it in Python, which tells nothing about its speed")
    reason = ops.why_not(backend)
    try:
        ops.choose_backend(backend, device)
    except UserError as error:
        raise Missing(reason or _inner_reason(str(error))) from error

    def unfused(value, shapes, locations, weights):
        return ops.ms_deform_attn(value, shapes, None, locations, weights, backend)

    def fused(value, shapes, references, offsets, logits):
        return ops.ms_deform_attn_fused(value, shapes, None, references, offsets, logits, backend)

    around = _embedding_bag_eager if backend == "embedding_bag" else nullcontext
    return Operator(backend, unfused, fused, around=around)


def _inner_reason(sentence: str) -> str:
    """The reason in brackets of the dispatcher's sentence."""
    return sentence.partition("cannot be used here (")[2].rpartition(")")[0] or sentence


def _compiled_embedding_bag(device: str) -> Operator:
    if device != "cpu":
        raise Missing("a way to do without a C compiler, for CPUs")
    eager = _ours("embedding_bag", device)
    return replace(eager, name=COMPILED, trains=False, around=_embedding_bag_compiled)


@contextmanager
def _embedding_bag_eager() -> Iterator[None]:
    """By itself it turns to torch.compile after a few calls."""
    with mock.patch.object(embedding_bag, "COMPILE_AFTER", math.inf):
        yield


@contextmanager
def _embedding_bag_compiled() -> Iterator[None]:
    """From the first call on; where torch.compile does not work, the warning is an error."""
    with warnings.catch_warnings(), mock.patch.object(embedding_bag, "COMPILE_AFTER", -1):
        warnings.filterwarnings("error", message=".*goes on without torch.compile")
        yield


def _transformers(device: str) -> Operator:
    path = "transformers.models.deformable_detr.modeling_deformable_detr"
    module = _import("transformers", path)
    try:
        attention = module.MultiScaleDeformableAttention()
    except AttributeError as error:
        raise Missing("the installed version has no MultiScaleDeformableAttention") from error

    def unfused(value, shapes, locations, weights):
        sizes, starts = shape_tensors(shapes, str(value.device))
        is_half = value.dtype != torch.float32
        # Half precision only works under autocast: grid_sample refuses mixed dtypes.
        around = torch.autocast(value.device.type, value.dtype) if is_half else nullcontext()
        with around:
            out = attention(value, sizes, list(shapes), starts, locations, weights, IM2COL_STEP)
        return out.to(value.dtype)

    return Operator(TRANSFORMERS, unfused, with_arithmetic(unfused))


def _deformops(device: str) -> Operator:
    if device != "cuda":
        raise Missing("its kernels need a GPU")
    if sys.version_info < (3, 12):
        raise Missing("it needs Python 3.12 or newer")
    registry = _import("deformops", "deformops.registry")

    def call(value, shapes, locations, weights, softmax):
        sizes, starts = shape_tensors(shapes, str(value.device))
        weights = weights.to(value.dtype)
        return registry.msda(value, sizes, starts, locations, weights, softmax=softmax)

    def fused(value, shapes, references, offsets, logits):
        locations = sampling_locations(references, offsets, shapes)
        return call(value, shapes, locations, logits, softmax=True)

    return Operator(DEFORMOPS, partial(call, softmax=False), fused)


def _official(device: str) -> Operator:
    """The published CUDA kernel, which only takes float32, from whatever package brings it."""
    if device != "cuda":
        raise Missing("it needs a GPU")
    reasons = []
    for find in (_official_extension, _mmcv_extension, _hub_kernel):
        try:
            forward, backward = find()
        except Missing as reason:
            reasons.append(str(reason))
            continue
        unfused = _official_function(forward, backward)
        return Operator(OFFICIAL, unfused, with_arithmetic(unfused), dtypes=(torch.float32,))
    raise Missing("; ".join(reasons))


def _official_extension() -> tuple[Callable, Callable]:
    module = _import("MultiScaleDeformableAttention", "MultiScaleDeformableAttention")
    return module.ms_deform_attn_forward, module.ms_deform_attn_backward


def _mmcv_extension() -> tuple[Callable, Callable]:
    module = _import("mmcv", "mmcv.ops.multi_scale_deform_attn").ext_module

    def forward(value, sizes, starts, locations, weights, step):
        return module.ms_deform_attn_forward(
            value, sizes, starts, locations, weights, im2col_step=step
        )

    def backward(value, sizes, starts, locations, weights, grad_output, step):
        tensors = (value, sizes, starts, locations, weights, grad_output)
        gradients = tuple(torch.zeros_like(t) for t in (value, locations, weights))
        module.ms_deform_attn_backward(*tensors, *gradients, im2col_step=step)
        return gradients

    return forward, backward


def _hub_kernel() -> tuple[Callable, Callable]:
    """What transformers takes from the hub, if it lies in the local cache already."""
    kernels = _import("kernels", "kernels")
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        module = kernels.get_kernel(HUB_KERNEL)
        return module.ms_deform_attn_forward, module.ms_deform_attn_backward
    except Exception as error:  # whatever the hub's client raises
        raise Missing(f"{HUB_KERNEL} is not there ({one_line(error)})") from error
    finally:
        os.environ.pop("HF_HUB_OFFLINE")
        if before is not None:
            os.environ["HF_HUB_OFFLINE"] = before


def _official_function(forward: Callable, backward: Callable) -> Callable[..., Tensor]:
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value, sizes, starts, locations, weights):
            ctx.save_for_backward(value, sizes, starts, locations, weights)
            return forward(value, sizes, starts, locations, weights, IM2COL_STEP)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad_output):
            tensors = (*ctx.saved_tensors, grad_output.contiguous())
            value, locations, weights = backward(*tensors, IM2COL_STEP)
            return value, None, None, locations, weights

    def unfused(value, shapes, locations, weights):
        sizes, starts = shape_tensors(shapes, str(value.device))
        tensors = [t.float().contiguous() for t in (value, locations, weights)]
        return Function.apply(tensors[0], sizes, starts, *tensors[1:]).to(value.dtype)

    return unfused


def with_arithmetic(unfused: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The fused form of an implementation that has none: softmax and locations in PyTorch."""

    def fused(value, shapes, references, offsets, logits):
        locations = sampling_locations(references, offsets, shapes)
        return unfused(value, shapes, locations, attention_weights(logits))

    return fused


@cache
def shape_tensors(shapes: Shapes, device: str) -> tuple[Tensor, Tensor]:
    """(L, 2) rows (h, w) and (L,) first tokens, int64; made once, outside of the time."""
    starts, total = [], 0
    for height, width in shapes:
        starts.append(total)
        total += height * width
    return torch.tensor(shapes, device=device), torch.tensor(starts, device=device)


def _import(package: str, module: str) -> Any:
    if find_spec(package) is None:
        raise Missing(f"the package {package} is not installed")
    try:
        return import_module(module)
    except Exception as error:  # a broken installation raises anything
        raise Missing(f"{package} does not import here ({one_line(error)})") from error
