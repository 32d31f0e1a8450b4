# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The C kernel against an oracle of its own: four neighbours summed in float64, in plain loops."""

import math
import multiprocessing
import subprocess
import sys

import pytest
import torch

from detrex_mammo.ops import cpu
from detrex_mammo.ops.cpu import ms_deform_attn_cpu

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason=cpu.why_not())

# (B, Q, M, D, levels, P): widths that are no multiple of 8, levels one cell high or wide.
CASES = [
    (2, 5, 3, 16, ((7, 9), (4, 5)), 4),
    (1, 4, 2, 7, ((1, 3), (5, 1), (2, 2)), 3),
    (2, 3, 1, 1, ((1, 1),), 1),
    (1, 6, 4, 32, ((10, 13), (5, 7), (3, 4), (2, 2)), 4),
    (1, 3, 2, 33, ((4, 6),), 5),
]


def draw(batch, queries, heads, dim, shapes, points, seed=0):
    """Inputs; a third of the locations lie outside the image."""
    generator = torch.Generator().manual_seed(seed)
    tokens, levels = sum(h * w for h, w in shapes), len(shapes)
    value = torch.randn(batch, tokens, heads, dim, generator=generator)
    locations = (
        torch.rand(batch, queries, heads, levels, points, 2, generator=generator) * 1.5 - 0.25
    )
    weights = torch.rand(batch, queries, heads, levels, points, generator=generator)
    return value, locations, weights


def oracle(value, shapes, locations, weights):
    """Bilinear sampling written out, float64, differentiable; zero outside a level."""
    value, locations, weights = value.double(), locations.double(), weights.double()
    batch, queries, heads, _, points, _ = locations.shape
    rows = []
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                total, start = value.new_zeros(value.shape[3]), 0
                for level, (h, w) in enumerate(shapes):
                    for p in range(points):
                        x = locations[b, q, m, level, p, 0] * w - 0.5
                        y = locations[b, q, m, level, p, 1] * h - 0.5
                        x0, y0 = math.floor(x.item()), math.floor(y.item())
                        for i in (y0, y0 + 1):
                            for j in (x0, x0 + 1):
                                if 0 <= i < h and 0 <= j < w:
                                    share = (1 - (x - j).abs()) * (1 - (y - i).abs())
                                    cell = value[b, start + i * w + j, m]
                                    total = total + weights[b, q, m, level, p] * share * cell
                    start += h * w
                rows.append(total)
    return torch.stack(rows).view(batch, queries, -1)


def with_gradients(function, value, shapes, locations, weights, grad):
    inputs = [t.clone().requires_grad_() for t in (value, locations, weights)]
    output = function(inputs[0], shapes, *inputs[1:])
    output.backward(grad.to(output.dtype))
    return [output.detach(), *(t.grad for t in inputs)]


@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(case) -> None:
    value, locations, weights = draw(*case)
    grad = torch.randn(case[0], case[1], case[2] * case[3])
    ours = with_gradients(ms_deform_attn_cpu, value, case[4], locations, weights, grad)
    theirs = with_gradients(oracle, value, case[4], locations, weights, grad)
    for a, b in zip(ours, theirs):
        # float32 rounding of a location times its width reaches the location's gradient
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("offset", ["int32_t", "int64_t"])
def test_both_offset_widths(offset, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "MAX_INT32_ELEMENTS", 2**31 - 1 if offset == "int32_t" else 0)
    used = []
    kernel = cpu._kernel
    monkeypatch.setattr(cpu, "_kernel", lambda *key: used.append(key) or kernel(*key))
    value, locations, weights = draw(*CASES[0])
    output = ms_deform_attn_cpu(value, CASES[0][4], locations, weights)
    expected = oracle(value, CASES[0][4], locations, weights)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-5)
    assert used == [(16, 8, offset)]


def test_same_bits_for_any_number_of_threads(monkeypatch) -> None:
    monkeypatch.setattr(cpu, "MIN_ROWS_FOR_THREADS", 0)
    shapes = ((12, 9), (6, 5))
    value, locations, weights = draw(2, 90, 4, 16, shapes, 4)
    grad = torch.randn(2, 90, 64)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                with_gradients(ms_deform_attn_cpu, value, shapes, locations, weights, grad)
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_a_location_that_is_no_place_contributes_nothing(bad) -> None:
    shapes = CASES[0][4]
    value, locations, weights = draw(*CASES[0])
    grad = torch.randn(2, 5, 48)
    locations[0, 1, 2, 1, 3, 0] = bad
    weightless = weights.clone()
    weightless[0, 1, 2, 1, 3] = 0
    elsewhere = locations.clone()
    elsewhere[0, 1, 2, 1, 3, 0] = 0.5
    ours = with_gradients(ms_deform_attn_cpu, value, shapes, locations, weights, grad)
    without = with_gradients(ms_deform_attn_cpu, value, shapes, elsewhere, weightless, grad)
    torch.testing.assert_close(ours[0], without[0], rtol=0, atol=0)
    torch.testing.assert_close(ours[1], without[1], rtol=0, atol=0)
    assert ours[2][0, 1, 2, 1, 3].abs().max() == 0 and ours[3][0, 1, 2, 1, 3] == 0


def test_empty_and_non_contiguous_inputs() -> None:
    value, locations, weights = draw(*CASES[0])
    shapes = CASES[0][4]
    assert ms_deform_attn_cpu(value, shapes, locations[:, :0], weights[:, :0]).shape == (2, 0, 48)
    assert ms_deform_attn_cpu(value[:0], shapes, locations[:0], weights[:0]).shape == (0, 5, 48)
    strided = value.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    torch.testing.assert_close(
        ms_deform_attn_cpu(strided, shapes, locations, weights),
        ms_deform_attn_cpu(value, shapes, locations, weights),
        rtol=0,
        atol=0,
    )


def test_other_dtypes_are_refused() -> None:
    value, locations, weights = draw(*CASES[0])
    with pytest.raises(TypeError, match="float32 on the CPU, not torch.float64"):
        ms_deform_attn_cpu(value.double(), CASES[0][4], locations, weights)


def test_loading_the_kernel_leaves_denormal_numbers_alone() -> None:
    """-ffast-math would link code that turns on flush-to-zero for the whole process."""
    code = (
        "import torch; from detrex_mammo.ops import cpu; assert cpu.is_available();"
        "print((torch.tensor(1e-40) * 1).item() > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def _sum_in_a_child(queue) -> None:
    torch.set_num_threads(1)  # as a data loading worker does
    value, locations, weights = draw(*CASES[0])
    queue.put(ms_deform_attn_cpu(value, CASES[0][4], locations, weights).sum().item())


def test_a_forked_child_can_use_it() -> None:
    value, locations, weights = draw(*CASES[0])
    expected = ms_deform_attn_cpu(value, CASES[0][4], locations, weights).sum().item()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_sum_in_a_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join()
