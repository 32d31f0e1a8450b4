# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Every backend against ``reference`` in float64, at small shapes that are awkward on purpose.

B batch, S tokens, Q queries, M heads, D channels per head, L levels, P points.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detrex_mammo.ops.dispatch import ms_deform_attn, ms_deform_attn_fused

TOLERANCE = 1e-4  # of the largest number of the result, or of 1
# Levels (h, w), then B, Q, M, D, P: odd sizes and a level of one cell; the published sizes.
CASES = (
    (((3, 5), (1, 4), (6, 1), (1, 1)), 2, 9, 3, 5, 2),
    (((5, 7), (3, 4)), 1, 33, 2, 32, 4),
)
STRANGE = (math.nan, math.inf, -math.inf, 1e30, -1e30)
# The two ways of calling, the second with reference points of 2 and of 4 numbers.
FORMS = {"plain": 0, "fused, points": 2, "fused, boxes": 4}
NAMES = ("output", "grad of value", "grad of locations", "grad of weights")


@dataclass(frozen=True)
class Finding:
    """What came out for one backend and form.

    Attributes:
        form (str): one of ``FORMS``.
        errors (tuple[float, ...]): for each of ``NAMES`` (fused: offsets, logits), the largest
            error over all cases, relative to the largest number of the result or to 1.
        failure (str): what it raised; then ``errors`` is empty.
    """

    form: str
    errors: tuple[float, ...]
    failure: str = ""

    @property
    def is_good(self) -> bool:
        """Whether it ran and every error is small; NaN is not."""
        return not self.failure and all(error <= TOLERANCE for error in self.errors)


def self_test(backend: str, device: str = "cpu") -> list[Finding]:
    """Run a backend in every form.

    Args:
        backend (str): one of ``BACKENDS``.
        device (str): where.
    """
    findings = []
    for form, size in FORMS.items():
        try:
            errors = [_errors(backend, device, size, *case) for case in CASES]
            findings.append(Finding(form, tuple(map(max, zip(*errors)))))
        except Exception as error:  # whatever a broken driver or compiler leads to is a finding
            text = (str(error).strip().splitlines() or [""])[0]
            findings.append(Finding(form, (), f"{type(error).__name__}: {text}"))
    return findings


def _errors(backend: str, device: str, reference_size: int, shapes, *sizes: int) -> list[float]:
    inputs = _inputs(shapes, reference_size, *sizes)
    expected = _outcome("reference", shapes, [tensor.double() for tensor in inputs])
    found = _outcome(backend, shapes, [tensor.to(device) for tensor in inputs])
    return [
        ((one.cpu().double() - other).abs().max() / other.abs().max().clamp(min=1)).item()
        for one, other in zip(found, expected)
    ]


def _outcome(backend: str, shapes, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Output, and gradients of value and of the last two inputs."""
    value, *references, places, attention = inputs
    function: Callable[..., Tensor] = ms_deform_attn_fused if references else ms_deform_attn
    leaves = [tensor.requires_grad_() for tensor in (value, places, attention)]
    output = function(value, shapes, None, *references, places, attention, backend=backend)
    ramp = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device)
    return (output.detach(), *torch.autograd.grad(output, leaves, ramp.view(output.shape)))


def _inputs(shapes, reference_size, batch, queries, heads, channels, points) -> list[Tensor]:
    """Inputs of either form that look at the same places, some of them strange.

    Samples keep away from the lines through cells' centres, where the gradient jumps and rounding
    decides which side it is taken from.
    """
    generator = torch.Generator().manual_seed(0)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator)

    wh = torch.tensor([(w, h) for h, w in shapes])[:, None]  # (L, 1, 2)
    grid = (batch, queries, heads, len(shapes), points)
    cells = (uniform(*grid, 2) * (wh + 2)).floor() - 1  # one beyond the edge, too
    locations = (cells + 0.1 + 0.8 * uniform(*grid, 2) - 0.5) / wh
    value = uniform(batch, sum(h * w for h, w in shapes), heads, channels) - 0.5
    logits = 4 * uniform(*grid)
    if not reference_size:
        places, inputs = locations, [value]
    else:
        references = uniform(batch, queries, len(shapes), reference_size) + 0.1
        scale = 1 / wh
        if reference_size == 4:
            scale = references[:, :, None, :, None, 2:] * (0.5 / points)
        places = (locations - references[:, :, None, :, None, :2]) / scale
        inputs = [value, references]
    for index, number in enumerate(STRANGE):
        places[0, index, 0, :, 0, index % 2] = number
    attention = logits if reference_size else logits.flatten(3).softmax(-1).view(grid)
    return [*inputs, places, attention]
