# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The native backends as ``torch.ops.detrex_mammo``: opaque to torch.compile and torch.export.

Each operator has a fake kernel (shapes only), an autograd formula and an autocast rule (``value``
takes the autocast dtype; what locations are computed from stays as it is). Shapes travel flat, as
h0, w0, h1, w1, ...
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

# Backend to module; imported when first used, because Triton may be missing.
NATIVE = {"c": "detrex_mammo.ops.c_kernel", "triton": "detrex_mammo.ops.triton_kernel"}

_library = torch.library.Library("detrex_mammo", "DEF")
_INPUTS = {
    "ms_deform_attn": "Tensor value, SymInt[] shapes, Tensor locations, Tensor weights",
    "ms_deform_attn_fused": "Tensor value, SymInt[] shapes, Tensor reference_points, "
    "Tensor offsets, Tensor logits",
}


def native_module(backend: str) -> ModuleType:
    """The module of a native backend: why_not, forward, backward, fused_forward, fused_backward."""
    return import_module(NATIVE[backend])


def _pairs(flat: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(flat[::2], flat[1::2]))


def flatten_shapes(shapes: Sequence[tuple[int, int]]) -> list[int]:
    """((h, w), ...) to [h, w, ...], as the operators take them."""
    return [size for pair in shapes for size in pair]


def _define(name: str, forward: str, backward: str) -> None:
    """Register one operator, its backward operator, and how they belong together.

    Args:
        name: of the operator.
        forward: function of the backend modules.
        backward: the same; returns gradients of value and of the last two tensors.
    """
    _library.define(f"{name}({_INPUTS[name]}, str backend) -> Tensor")
    _library.define(
        f"{name}_backward(Tensor grad_output, {_INPUTS[name]}, str backend) "
        "-> (Tensor, Tensor, Tensor)"
    )

    def run(value, shapes, *rest):
        return getattr(native_module(rest[-1]), forward)(value, _pairs(shapes), *rest[:-1])

    def run_backward(grad_output, value, shapes, *rest):
        function = getattr(native_module(rest[-1]), backward)
        return function(grad_output, value, _pairs(shapes), *rest[:-1])

    def fake(value, shapes, *rest):
        queries = rest[-2].shape[1]
        return value.new_empty(value.shape[0], queries, value.shape[2] * value.shape[3])

    def fake_backward(grad_output, value, shapes, *rest):
        return tuple(t.new_empty(t.shape) for t in (value, rest[-3], rest[-2]))

    for operator, kernel, shapes_only in (
        (name, run, fake),
        (f"{name}_backward", run_backward, fake_backward),
    ):
        _library.impl(operator, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"detrex_mammo::{operator}", shapes_only, lib=_library)
    _register_autograd(name)
    torch.library.register_autograd(
        f"detrex_mammo::{name}_backward", _refuse_second_derivative, lib=_library
    )
    _register_autocast(name)


def _refuse_second_derivative(ctx, *gradients):
    raise NotImplementedError(
        "the native backends of ms_deform_attn have no second derivative; use the backend "
        "'reference' for it"
    )


def _register_autograd(name: str) -> None:
    def setup_context(ctx, inputs, output):
        value, ctx.shapes, *tensors, ctx.backend = inputs
        ctx.save_for_backward(value, *tensors)

    def run_backward(ctx, grad_output):
        value, *tensors = ctx.saved_tensors
        operator = getattr(torch.ops.detrex_mammo, f"{name}_backward")
        grad_value, *small = operator(grad_output, value, ctx.shapes, *tensors, ctx.backend)
        without = [None] * (len(tensors) - 2)  # reference points
        return grad_value, None, *without, *small, None

    torch.library.register_autograd(
        f"detrex_mammo::{name}", run_backward, setup_context=setup_context, lib=_library
    )


def _register_autocast(name: str) -> None:
    def rule(device: str) -> Callable[..., Tensor]:
        def run(value, *rest):
            if value.dtype != torch.float64:
                value = value.to(torch.get_autocast_dtype(device))
            with torch.autocast(device, enabled=False):
                return getattr(torch.ops.detrex_mammo, name)(value, *rest)

        return run

    _library.impl(name, rule("cpu"), "AutocastCPU")
    _library.impl(name, rule("cuda"), "AutocastCUDA")


_define("ms_deform_attn", "forward", "backward")
_define("ms_deform_attn_fused", "fused_forward", "fused_backward")
