# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The C kernel against an oracle of its own: four neighbours summed in float64, in plain loops."""

import math
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
import torch

from detrex_mammo.ops import c_kernel, ms_deform_attn, ms_deform_attn_fused
from tests.ops.attention_cases import (
    CASES,
    DENSE,
    draw,
    draw_fused,
    oracle,
    oracle_fused,
    with_gradients,
)

pytestmark = pytest.mark.skipif(bool(c_kernel.why_not()), reason=c_kernel.why_not())


def run(case, value, locations, weights):
    return ms_deform_attn(value, case.shapes, None, locations, weights, "c")


def run_fused(case, references, value, offsets, logits):
    return ms_deform_attn_fused(value, case.shapes, None, references, offsets, logits, "c")


@pytest.mark.parametrize("case", [*CASES, DENSE])
def test_forward_and_gradients(case) -> None:
    inputs = draw(case)
    grad = torch.randn(case.batch, case.queries, case.heads * case.dim)
    ours = with_gradients(lambda *args: run(case, *args), inputs, grad)
    theirs = with_gradients(lambda v, x, w: oracle(v, case.shapes, x, w), inputs, grad)
    for a, b in zip(ours, theirs):
        # float32 rounding of a location times its width reaches the location's gradient
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("numbers", [2, 4])
@pytest.mark.parametrize("case", [*CASES, DENSE])
def test_fused_forward_and_gradients(case, numbers) -> None:
    value, references, offsets, logits = draw_fused(case, numbers)
    inputs = value, offsets, logits
    grad = torch.randn(case.batch, case.queries, case.heads * case.dim)
    ours = with_gradients(lambda *args: run_fused(case, references, *args), inputs, grad)
    theirs = with_gradients(
        lambda v, o, a: oracle_fused(v, case.shapes, references, o, a), inputs, grad
    )
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=2e-5)


def test_fused_shares_reference_points_and_reads_slices_of_one_projection() -> None:
    case = CASES[0]
    value, references, offsets, logits = draw_fused(case, 2)
    packed = torch.cat((offsets.flatten(2), logits.flatten(2)), dim=-1)
    width = offsets[0, 0].numel()
    slices = packed[..., :width].view(offsets.shape), packed[..., width:].view(logits.shape)
    assert not slices[0].is_contiguous() and slices[0].data_ptr() == packed.data_ptr()
    found = run_fused(case, references[:1], value, *slices)
    repeated = references[:1].expand(case.batch, -1, -1, -1)
    expected = oracle_fused(value, case.shapes, repeated, offsets, logits)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_only_at_the_ends(dtype) -> None:
    case = CASES[3]
    inputs = [tensor.to(dtype) for tensor in draw(case)]
    grad = torch.randn(case.batch, case.queries, case.heads * case.dim).to(dtype)
    ours = with_gradients(lambda *args: run(case, *args), inputs, grad)
    theirs = with_gradients(lambda v, x, w: oracle(v, case.shapes, x, w), inputs, grad)
    for a, b in zip(ours, theirs):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b.to(dtype).double(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("offset", ["int32_t", "int64_t"])
def test_both_offset_widths(offset, monkeypatch) -> None:
    monkeypatch.setattr(c_kernel, "MAX_INT32_ELEMENTS", 2**31 - 1 if offset == "int32_t" else 0)
    used, kernel, case = [], c_kernel._kernel, CASES[0]
    monkeypatch.setattr(c_kernel, "_kernel", lambda *key: used.append(key) or kernel(*key))
    inputs = draw(case)
    expected = oracle(inputs[0], case.shapes, *inputs[1:])
    torch.testing.assert_close(run(case, *inputs).double(), expected, rtol=0, atol=1e-5)
    assert used == [(16, 2, 4, offset)]


def test_more_elements_than_32_bits_count() -> None:
    """NumPy's untouched zeros take no memory; the last row lies beyond 2**31 elements."""
    height, width = 2**13, 2**13 + 1
    value = torch.from_numpy(np.zeros((1, height * width, 1, 32), dtype=np.float32))
    assert value.numel() > 2**31
    value[0, -1, 0] = torch.arange(32.0)
    value[0, -2, 0] = 1.0
    locations = torch.tensor([(width - 1.0) / width, (height - 0.5) / height])  # between the two
    weights = torch.ones(1, 1, 1, 1, 1)
    found = ms_deform_attn(
        value, ((height, width),), None, locations.view(1, 1, 1, 1, 1, 2), weights, "c"
    )
    # 0.5 / width before the right border is the centre of the last cell, 1 / width before it
    # half-way to its neighbour; float32 tells such places apart to 1e-3 cells
    torch.testing.assert_close(found.flatten(), torch.arange(32.0) / 2 + 0.5, rtol=0, atol=0.03)


@pytest.mark.parametrize("openmp", [True, False])
def test_same_bits_for_any_number_of_threads(openmp, monkeypatch) -> None:
    monkeypatch.setattr(c_kernel, "MIN_ROWS_FOR_THREADS", 0)
    library = c_kernel._kernel(16, 2, 4, "int32_t")
    if not openmp:
        without = c_kernel.load_library(
            c_kernel.SOURCE, {"HEAD_DIM": 16, "NUM_LEVELS": 2, "NUM_POINTS": 4, "OFFSET": "int32_t"}
        )
        library = _WithoutOpenMP(without)
    monkeypatch.setattr(c_kernel, "_kernel", lambda *_: library)
    inputs, fused = draw(DENSE), draw_fused(DENSE, 2)
    grad = torch.randn(2, 30, 32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 13):
            torch.set_num_threads(threads)
            found = with_gradients(lambda *args: run(DENSE, *args), inputs, grad)
            found += with_gradients(
                lambda *args: run_fused(DENSE, fused[1], *args), [fused[0], *fused[2:]], grad
            )
            results.append(found)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


class _WithoutOpenMP:
    """A library that says it has no OpenMP, so that Python's threads are used."""

    def __init__(self, library):
        self.library = library

    def __getitem__(self, name):
        return self.library[name]

    def ms_deform_attn_has_openmp(self) -> int:
        return 0


@pytest.mark.parametrize("case", [CASES[0], DENSE])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38])
def test_a_location_that_is_no_place_reads_nothing(bad, axis, case) -> None:
    value, locations, weights = draw(case)
    grad = torch.randn(case.batch, case.queries, case.heads * case.dim)
    locations[0, 1, -1, 1, 3, axis] = bad
    inputs = value, locations, weights
    ours = with_gradients(lambda *args: run(case, *args), inputs, grad)
    expected = with_gradients(
        lambda v, x, w: ms_deform_attn(v, case.shapes, None, x, w, "reference"), inputs, grad
    )
    for a, b in zip(ours, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)
    assert not ours[2][0, 1, -1, 1, 3].any() and ours[3][0, 1, -1, 1, 3] == 0


@pytest.mark.parametrize("case", [CASES[0], DENSE])
def test_a_cell_that_is_not_read_cannot_spoil_the_result(case) -> None:
    value, locations, weights = draw(case)
    locations = locations * 0.2 + 1.5  # far outside on both sides
    locations[0] = 0.25
    value[1] = math.nan
    assert run(case, value, locations, weights).isfinite().all()
    value[1], value[0, 0] = 0.0, math.nan
    found = run(case, value, locations * 0 + 0.0, weights)  # the corner of cell 0: reads it
    assert found[0].isnan().all() and not found[1].isnan().any()


def test_a_weight_that_is_nan_spoils_its_query_only() -> None:
    case = CASES[0]
    value, locations, weights = draw(case)
    weights[0, 1, 2, 1, 3], locations[0, 1, 2, 1, 3] = math.nan, 7.0
    found = run(case, value, locations, weights).view(2, 5, 3, 16)
    assert found[0, 1, 2].isnan().all() and int(found.isnan().sum()) == 16
    value, references, offsets, logits = draw_fused(case, 2)
    logits[1, 2, 0, 1, 2] = math.nan
    found = run_fused(case, references, value, offsets, logits).view(2, 5, 3, 16)
    assert found[1, 2, 0].isnan().all() and int(found.isnan().sum()) == 16


def test_softmax_of_extreme_logits() -> None:
    case = CASES[0]
    value, references, offsets, logits = draw_fused(case, 4)
    logits = logits * 1000
    logits[0, 0, 0, 0, :2] = -math.inf
    found = run_fused(case, references, value, offsets, logits)
    expected = ms_deform_attn_fused(
        value, case.shapes, None, references, offsets, logits, "reference"
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_empty_inputs() -> None:
    case = CASES[0]
    value, locations, weights = draw(case)
    for inputs in (
        (value, locations[:, :0], weights[:, :0]),
        (value[:0], locations[:0], weights[:0]),
        (value, locations[..., :0, :], weights[..., :0]),
    ):
        grad = torch.randn(len(inputs[0]), inputs[1].shape[1], 48)
        found = with_gradients(lambda *args: run(case, *args), inputs, grad)
        assert found[0].shape == grad.shape and not found[0].any()
        assert [g.shape for g in found[1:]] == [t.shape for t in inputs]
        assert not any(g.any() for g in found[1:])


@pytest.mark.parametrize("case", [CASES[0], DENSE])
def test_non_contiguous_inputs(case) -> None:
    value, locations, weights = draw(case)
    grad = torch.randn(case.batch, case.queries, case.heads * case.dim)
    expected = with_gradients(lambda *args: run(case, *args), (value, locations, weights), grad)
    strided = (
        value.transpose(1, 2).contiguous().transpose(1, 2),
        locations.transpose(0, 5).contiguous().transpose(0, 5),
        weights.transpose(2, 4).contiguous().transpose(2, 4),
    )
    assert not any(tensor.is_contiguous() for tensor in strided)
    inputs = [tensor.requires_grad_() for tensor in strided]
    output = run(case, *inputs)
    output.backward(grad.transpose(0, 1).contiguous().transpose(0, 1))
    for a, b in zip([output, *(t.grad for t in inputs)], expected):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_loading_the_kernel_leaves_denormal_numbers_alone() -> None:
    """-ffast-math would link code that turns on flush-to-zero for the whole process."""
    code = (
        "import torch; from detrex_mammo.ops import why_not; assert not why_not('c');"
        "print((torch.tensor(1e-40) * 1).item() > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def _sum_in_a_child(queue, threads) -> None:
    torch.set_num_threads(threads)
    queue.put(run(DENSE, *draw(DENSE)).sum().item())


@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_can_use_it(threads, monkeypatch) -> None:
    """OpenMP's threads do not survive a fork: a child that asks for them would wait for ever."""
    monkeypatch.setattr(c_kernel, "MIN_ROWS_FOR_THREADS", 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = run(DENSE, *draw(DENSE)).sum().item()
    finally:
        torch.set_num_threads(before)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_sum_in_a_child, args=(queue, threads), daemon=True)
    child.start()
    assert queue.get(timeout=60) == expected
    child.join()
