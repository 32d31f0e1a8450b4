# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The backend without a compiler against the reference."""

import math
import shutil
import warnings

import pytest
import torch

from detrex_mammo.ops import embedding_bag, ms_deform_attn_reference
from detrex_mammo.ops.embedding_bag import ms_deform_attn_embedding_bag

SHAPES = ((3, 5), (2, 1), (1, 4), (1, 1))
STRANGE = (math.nan, math.inf, -math.inf, 1e30, -1e30, 1e9, -0.5, 1.5)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(embedding_bag, "_num_large_calls", 0)
    monkeypatch.setattr(embedding_bag, "_compiled_plan", None)


def random_inputs(batch=2, queries=7, heads=2, channels=3, points=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(h * w for h, w in SHAPES)
    size = (batch, queries, heads, len(SHAPES), points)
    value = torch.randn(batch, tokens, heads, channels, generator=generator, dtype=dtype)
    locations = torch.rand(*size, 2, generator=generator, dtype=dtype) * 1.6 - 0.3  # also outside
    weights = torch.rand(size, generator=generator, dtype=dtype)
    return value, locations, weights / weights.sum((-1, -2), keepdim=True)


def outputs_and_gradients(function, inputs):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = function(leaves[0], SHAPES, *leaves[1:])
    ramp = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return (output.detach(), *torch.autograd.grad(output, leaves, ramp))


def assert_as_reference(inputs, atol=1e-12):
    expected = outputs_and_gradients(ms_deform_attn_reference, inputs)
    found = outputs_and_gradients(ms_deform_attn_embedding_bag, inputs)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=atol, equal_nan=True)
    with torch.no_grad():
        inferred = ms_deform_attn_embedding_bag(inputs[0], SHAPES, *inputs[1:])
    torch.testing.assert_close(inferred, expected[0], rtol=0, atol=atol, equal_nan=True)


@pytest.mark.parametrize(
    "batch, queries, heads, points", [(2, 7, 2, 2), (3, 1, 1, 1), (1, 5, 3, 4)]
)
def test_output_and_gradients(batch, queries, heads, points):
    assert_as_reference(random_inputs(batch, queries, heads, points=points))


def test_on_the_grid_and_on_the_edge():
    """Centres of cells, the lines at 0 and 1, and half a cell outside: forward only, as they are
    the knots of the interpolation."""
    value, locations, weights = random_inputs(queries=9)
    ticks = torch.tensor([-0.1, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 1.1], dtype=torch.float64)
    locations = ticks[:, None, None, None, None].expand(2, 9, 2, 4, 2, 2)
    found = ms_deform_attn_embedding_bag(value, SHAPES, locations, weights)
    expected = ms_deform_attn_reference(value, SHAPES, locations, weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_strange_locations_read_zero_and_get_no_gradient():
    value, locations, weights = random_inputs(queries=len(STRANGE))
    for query, number in enumerate(STRANGE):
        locations[0, query, 0, :, 0, 0] = number
        locations[0, query, 1, :, :, 1] = number
        locations[1, query] = number
    assert_as_reference((value, locations, weights))
    gradient = outputs_and_gradients(ms_deform_attn_embedding_bag, (value, locations, weights))[2]
    assert gradient.isfinite().all() and gradient[1].count_nonzero() == 0


def test_nan_of_value_shows_where_it_is_read_and_nowhere_else():
    value, locations, weights = random_inputs(queries=40, points=1)
    value[0, 7] = math.nan
    value[1, :15] = math.nan  # the first level
    locations[1, :20, :, 0] += 3
    assert_as_reference((value, locations, weights))
    found = ms_deform_attn_embedding_bag(value, SHAPES, locations, weights)
    assert 0 < found[0].isnan().sum() < found[0].numel()
    assert found[1, :20].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_accumulates_in_float32(dtype):
    """The result is that of float32 on the same rounded values, rounded once."""
    value, locations, weights = random_inputs(dtype=torch.float32)
    value = value.to(dtype)
    found = ms_deform_attn_embedding_bag(value, SHAPES, locations, weights)
    assert found.dtype == dtype
    expected = ms_deform_attn_embedding_bag(value.float(), SHAPES, locations, weights)
    torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=0)
    assert_as_reference((value.float(), locations, weights), atol=1e-5)


def test_not_contiguous():
    value, locations, weights = random_inputs()
    assert_as_reference(
        (
            value.transpose(1, 2).contiguous().transpose(1, 2),
            torch.cat([locations, locations], -1)[..., :2],
            weights.flip(1).contiguous().flip(1).transpose(0, 1).contiguous().transpose(0, 1),
        )
    )


@pytest.mark.parametrize("batch, queries", [(0, 3), (2, 0)])
def test_nothing_to_do(batch, queries):
    inputs = random_inputs(batch, queries)
    assert ms_deform_attn_embedding_bag(inputs[0], SHAPES, *inputs[1:]).shape == (batch, queries, 6)


def test_wide_indices_for_large_problems(monkeypatch):
    monkeypatch.setattr(embedding_bag, "_MAX_INT32", 100)
    seen = []
    plan = embedding_bag._plan
    monkeypatch.setattr(embedding_bag, "_plan", lambda *a: seen.append(plan(*a)) or seen[-1])
    assert_as_reference(random_inputs())
    assert all(index.dtype == torch.int64 for index, _ in seen)


def test_in_steps_it_is_the_same(monkeypatch):
    value, locations, weights = random_inputs(queries=11, dtype=torch.float32)
    whole = ms_deform_attn_embedding_bag(value, SHAPES, locations, weights)
    for rows in (1, 3, 5, 22):
        monkeypatch.setattr(embedding_bag, "CHUNK", rows * 4 * 2 * 8)
        steps = ms_deform_attn_embedding_bag(value, SHAPES, locations, weights)
        torch.testing.assert_close(steps, whole, rtol=0, atol=0)


def compile_soon(monkeypatch, compiler):
    """Steps of two queries; compiled from the third call on."""
    monkeypatch.setattr(embedding_bag, "CHUNK", 2 * 4 * 2 * 8)
    monkeypatch.setattr(embedding_bag, "COMPILE_AFTER", 2)
    monkeypatch.setattr(torch, "compile", compiler)


def test_compiles_late_once_and_for_one_size(monkeypatch):
    made, sizes = [], []

    def compiler(function, **options):
        made.append(function)
        return lambda *inputs: sizes.append(len(inputs[0])) or function(*inputs)

    compile_soon(monkeypatch, compiler)
    small, large = random_inputs(queries=3), random_inputs(batch=1, queries=11)
    for _ in range(5):
        ms_deform_attn_embedding_bag(small[0], SHAPES, *small[1:])
    for _ in range(2):
        ms_deform_attn_embedding_bag(large[0], SHAPES, *large[1:])
    outputs_and_gradients(ms_deform_attn_embedding_bag, large)
    assert made == []
    for _ in range(2):
        found = ms_deform_attn_embedding_bag(large[0], SHAPES, *large[1:])
    assert made == [embedding_bag._plan] and sizes == [2] * 10  # and 1 query left, twice
    expected = ms_deform_attn_reference(large[0], SHAPES, *large[1:])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fails_at_once", [True, False])
def test_one_warning_when_compiling_fails(monkeypatch, fails_at_once):
    def fail(*inputs, **options):
        raise RuntimeError("No working C++ compiler found\nand much more")

    compile_soon(monkeypatch, fail if fails_at_once else lambda function, **options: fail)
    inputs = random_inputs(queries=11)
    expected = ms_deform_attn_reference(inputs[0], SHAPES, *inputs[1:])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(6):
            found = ms_deform_attn_embedding_bag(inputs[0], SHAPES, *inputs[1:])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert [str(warning.message) for warning in caught] == [
        "ms_deform_attn's backend 'embedding_bag' goes on without torch.compile "
        "(No working C++ compiler found)"
    ]


class Operator(torch.nn.Module):
    def forward(self, value, locations, weights):
        return ms_deform_attn_embedding_bag(value, SHAPES, locations, weights)


def test_within_torch_compile_and_export(monkeypatch):
    monkeypatch.setattr(embedding_bag, "COMPILE_AFTER", 0)
    monkeypatch.setattr(embedding_bag, "CHUNK", 2 * 4 * 2 * 8)
    inputs = random_inputs(dtype=torch.float32)
    expected = ms_deform_attn_reference(inputs[0], SHAPES, *inputs[1:])
    compiled = torch.compile(Operator(), backend="eager", fullgraph=True)
    exported = torch.export.export(Operator(), inputs).module()
    with torch.no_grad():
        for function in (compiled, exported):
            torch.testing.assert_close(function(*inputs), expected, rtol=0, atol=1e-5)
    assert embedding_bag._compiled_plan is None


def test_exported_once_for_any_batch_and_number_of_queries():
    batch, queries = torch.export.Dim("batch"), torch.export.Dim("queries")
    sizes = ({0: batch}, {0: batch, 1: queries}, {0: batch, 1: queries})
    inputs = random_inputs(dtype=torch.float32)
    exported = torch.export.export(Operator(), inputs, dynamic_shapes=sizes).module()
    inputs = random_inputs(batch=3, queries=11, dtype=torch.float32)
    expected = ms_deform_attn_reference(inputs[0], SHAPES, *inputs[1:])
    torch.testing.assert_close(exported(*inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
def test_really_compiled(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(embedding_bag, "COMPILE_AFTER", 0)
    monkeypatch.setattr(embedding_bag, "CHUNK", 2 * 4 * 2 * 8)
    inputs = random_inputs(queries=len(STRANGE), dtype=torch.float32)
    for query, number in enumerate(STRANGE):
        inputs[1][0, query, 0] = number
    expected = ms_deform_attn_reference(inputs[0], SHAPES, *inputs[1:])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*goes on without torch.compile")
        found = ms_deform_attn_embedding_bag(inputs[0], SHAPES, *inputs[1:])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert embedding_bag._compiled_plan not in (None, embedding_bag._plan)
