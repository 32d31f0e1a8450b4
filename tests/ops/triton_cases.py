# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The Triton kernels against `reference` in float64; run by test_triton_kernel.py, not collected.

With TRITON_INTERPRET=1 the kernels run on the CPU, without it on the GPU.
"""

import os

import pytest
import torch

from detrex_mammo import ops
from detrex_mammo.ops import autotune, triton_kernel
from detrex_mammo.ops.reference import ms_deform_attn_reference

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

# name: (B, Q, M, D, levels, P)
CASES = {
    "several_blocks": (2, 5, 2, 32, ((5, 6), (3, 2)), 4),
    "sizes_of_one": (1, 4, 2, 7, ((1, 3), (5, 1), (2, 2)), 3),
    "single_cell": (2, 3, 1, 1, ((1, 1),), 1),
    "four_levels": (1, 5, 2, 24, ((6, 7), (3, 4), (2, 2), (1, 1)), 2),
}
REFERENCE_SIZES = {"unfused": 0, "xy": 2, "cxcywh": 4}


class Problem:
    """Inputs of one call, how the oracle reads them, and what comes out."""

    def __init__(self, case, reference_size: int, dtype=torch.float32, small_dtype=torch.float32):
        batch, queries, heads, channels, self.shapes, points = case
        tokens, levels = sum(h * w for h, w in self.shapes), len(self.shapes)
        self.value = torch.randn(batch, tokens, heads, channels).to(dtype)
        size = (batch, queries, heads, levels, points)
        self.references = None
        if reference_size:
            self.references = torch.rand(batch, queries, levels, reference_size)
            self.places = (torch.randn(*size, 2) * 2).to(small_dtype)
            self.attention = (torch.randn(size) * 3).to(small_dtype)
        else:
            self.places = (torch.rand(*size, 2) * 1.5 - 0.25).to(small_dtype)
            self.attention = torch.randn(size).to(small_dtype)
        self.grad_output = torch.randn(batch, queries, heads * channels).to(dtype)

    def compute(self) -> list[torch.Tensor]:
        """Output and gradients of value, places and attention from the kernels."""
        value, places, attention, grad = (
            tensor.to(DEVICE)
            for tensor in (self.value, self.places, self.attention, self.grad_output)
        )
        if self.references is None:
            inputs = (value, self.shapes, places, attention)
            run, back = triton_kernel.forward, triton_kernel.backward
        else:
            inputs = (value, self.shapes, self.references.to(DEVICE), places, attention)
            run, back = triton_kernel.fused_forward, triton_kernel.fused_backward
        return [tensor.cpu() for tensor in (run(*inputs), *back(grad, *inputs))]

    def expect(self) -> list[torch.Tensor]:
        """The same from `reference` and autograd, in float64."""
        value, places, attention = (
            tensor.double().requires_grad_() for tensor in (self.value, self.places, self.attention)
        )
        locations, weights = places, attention
        if self.references is not None:
            sizes = torch.tensor(self.shapes).flip(-1).double()[:, None]
            box = self.references.double()[:, :, None, :, None]
            half = box[..., 2:] * 0.5 / places.shape[4]
            step = half if self.references.shape[-1] == 4 else 1 / sizes
            locations = box[..., :2] + places * step
            weights = attention.flatten(3).softmax(-1).view_as(attention)
        output = ms_deform_attn_reference(value, self.shapes, locations, weights)
        output.backward(self.grad_output.double())
        return [output.detach(), value.grad, places.grad, attention.grad]

    def check(self, rtol: float = 1e-5, atol: float = 1e-5) -> list[torch.Tensor]:
        """Compare; a location's gradient carries the float32 rounding of location times width."""
        found, expected = self.compute(), self.expect()
        dtypes = [self.value.dtype] * 2 + [self.places.dtype, self.attention.dtype]
        names = ("output", "grad_value", "grad_places", "grad_attention")
        for name, dtype, ours, theirs in zip(names, dtypes, found, expected):
            assert ours.dtype == dtype and ours.is_contiguous(), name
            scale = 10 if name == "grad_places" else 1
            torch.testing.assert_close(
                ours.double(),
                theirs,
                rtol=rtol * scale,
                atol=atol * scale,
                equal_nan=True,
                msg=lambda text, name=name: f"{name}: {text}",
            )
        return found


both = pytest.mark.parametrize("size", REFERENCE_SIZES.values(), ids=REFERENCE_SIZES.keys())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@both
def test_result_and_gradients(case, size: int) -> None:
    Problem(case, size).check()


@pytest.mark.parametrize("small_dtype", [torch.float32, None], ids=["float32_places", "all"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@both
def test_half_precision(dtype, small_dtype, size: int) -> None:
    """Only the result is rounded, to 8 or 11 bits: accumulation and coordinates are float32.

    (The interpreter cuts off what does not fit bfloat16, the GPU rounds: hence 2**-7, not 2**-9.)
    """
    case = (1, 4, 2, 16, ((5, 6), (3, 2)), 2)
    problem = Problem(case, size, dtype, small_dtype or dtype)
    problem.check(rtol=2**-7 if dtype == torch.bfloat16 else 2**-11, atol=2e-5)


@pytest.mark.parametrize(("channels", "offset"), [(6, 0), (5, 0), (6, 1)])
def test_bfloat16_of_odd_sizes(channels: int, offset: int) -> None:
    """Pairs of channels are read as one integer where that is possible."""
    problem = Problem((1, 3, 2, channels, ((4, 3), (2, 2)), 2), 0, torch.bfloat16)
    storage = torch.empty(problem.value.numel() + offset, dtype=torch.bfloat16)
    problem.value = storage[offset:].copy_(problem.value.flatten()).view(problem.value.shape)
    problem.check(rtol=2**-7, atol=2e-5)


HOSTILE = (float("nan"), float("inf"), -float("inf"), 3e38, -1e30, 1e9, -1e9, 1e5, -2.0)


@both
def test_hostile_coordinates(size: int) -> None:
    problem = Problem((1, 20, 1, 4, ((3, 4), (2, 1)), 1), size)
    for index, bad in enumerate(HOSTILE):
        problem.places[0, 2 * index, 0, 0, 0, 0] = bad
        problem.places[0, 2 * index + 1, 0, 1, 0, :] = bad
    output, *_ = problem.check()
    assert not output.isnan().any()


def test_hostile_references_and_logits() -> None:
    for size in (2, 4):
        problem = Problem((1, 12, 1, 4, ((3, 4), (2, 1)), 3), size)
        for index, bad in enumerate(HOSTILE):
            problem.references[0, index, 1, index % size] = bad
        problem.attention[0, 9, 0, 0, 0] = float("nan")
        problem.attention[0, 10, 0, :, 1:] = -float("inf")  # masked samples
        problem.attention[0, 11, 0] = torch.finfo(torch.float32).min
        problem.attention[0, 8, 0, 0, 0] = 3e4
        output, *_ = problem.check()
        assert output[0, 9].isnan().all() and not output[0, 10:].isnan().any()


def test_every_logit_minus_infinity_is_nan_as_in_softmax() -> None:
    problem = Problem((1, 2, 1, 4, ((3, 4),), 3), 2)
    problem.attention[0, 0] = -float("inf")
    output, *_ = problem.check()
    assert output[0, 0].isnan().all() and not output[0, 1].isnan().any()


@both
def test_what_is_not_sampled_is_not_read(size: int) -> None:
    """NaN all around the sampled cells, in the next level and in the next image."""
    problem = Problem((2, 4, 1, 5, ((4, 5), (4, 5)), 2), size)
    if problem.references is not None:
        problem.references[..., :2], problem.places = 0.0, problem.places * 0
    else:
        problem.places *= 1e-3  # around pixel -0.5
    problem.value[:, 1:] = float("nan")
    problem.value[:, 20] = 1.0  # first cell of the second level
    for tensor in problem.check():
        assert not tensor.isnan().any()


@both
def test_public_function(size: int) -> None:
    """The whole way: checks, operator, autograd."""
    problem = Problem(CASES["sizes_of_one"], size)
    value, places, attention = (
        tensor.to(DEVICE, copy=True).requires_grad_()
        for tensor in (problem.value, problem.places, problem.attention)
    )
    inputs = (value, problem.shapes, None)
    if size:
        references = problem.references.to(DEVICE)
        output = ops.ms_deform_attn_fused(*inputs, references, places, attention, backend="triton")
    else:
        output = ops.ms_deform_attn(*inputs, places, attention, backend="triton")
    output.backward(problem.grad_output.to(DEVICE))
    found = (output.detach(), value.grad, places.grad, attention.grad)
    for ours, theirs in zip(found, problem.expect()):
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=1e-4, atol=1e-4)


@both
def test_strided_inputs(size: int) -> None:
    """Offsets and logits as slices of one projection; the rest permuted or expanded."""
    case = (2, 5, 2, 8, ((4, 3), (2, 2)), 2)
    problem = Problem(case, size)
    batch, queries, heads, _, shapes, points = case
    samples = heads * len(shapes) * points
    joint = torch.randn(batch, queries, 3 * samples)
    offsets, logits = joint.split([2 * samples, samples], -1)
    problem.places, problem.attention = (
        offsets.view(problem.places.shape),
        logits.view(problem.attention.shape),
    )
    problem.value = torch.randn(8, 2, 16, 2).permute(3, 2, 1, 0)
    problem.grad_output = torch.randn(1, 1, 1).expand(batch, queries, 16)
    if size:
        problem.references = problem.references[:, :, :1].expand(-1, -1, 2, -1)
    problem.check()
    problem.places = problem.places.transpose(2, 3).contiguous().transpose(2, 3)
    problem.attention = problem.attention.transpose(3, 4).contiguous().transpose(3, 4)
    problem.check()


@pytest.mark.parametrize("size", [2, 4])
def test_images_share_reference_points(size: int) -> None:
    problem = Problem((3, 4, 1, 4, ((4, 3), (2, 2)), 2), size)
    problem.references = problem.references[:1]
    found = problem.check()
    problem.references = problem.references.expand(3, -1, -1, -1)
    assert all(torch.equal(a, b) for a, b in zip(found, problem.compute()))


@pytest.mark.parametrize(("batch", "queries"), [(0, 3), (2, 0)])
@both
def test_nothing_to_do(batch: int, queries: int, size: int) -> None:
    problem = Problem((batch, queries, 2, 4, ((4, 3), (2, 2)), 2), size)
    output, grad_value, grad_places, grad_attention = problem.compute()
    assert output.shape == (batch, queries, 8)
    assert grad_value.shape == problem.value.shape and not grad_value.any()
    assert grad_places.shape == problem.places.shape
    assert grad_attention.shape == problem.attention.shape


def test_every_configuration_gives_the_same() -> None:
    problem = Problem((1, 21, 1, 16, ((4, 3), (2, 2)), 4), 4)
    expected = problem.check()
    known = autotune.CANDIDATES
    for config in {config for configs in known.values() for config in configs}:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(autotune, "CANDIDATES", dict.fromkeys(known, (config,)))
            for ours, theirs in zip(problem.compute(), expected):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@both
def test_offsets_of_64_bits(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "MOST_ELEMENTS", 0)
    problem = Problem((2, 5, 2, 6, ((4, 3), (2, 2)), 3), size)
    seen = []
    launch = triton_kernel._launch
    monkeypatch.setattr(
        triton_kernel, "_launch", lambda *a: (seen.append(a[1]["WIDE"]), launch(*a))
    )
    problem.check()
    assert seen == [True, True]


@pytest.mark.skipif(DEVICE == "cpu", reason="takes 20 GB of a GPU")
@pytest.mark.parametrize("batch", [1, 2])
def test_value_of_more_than_2_31_elements(batch: int) -> None:
    """The last cell of the last image is read and gets its gradient."""
    side = 2900 if batch == 1 else 2060
    value = torch.zeros(batch, side**2, 8, 32, dtype=torch.bfloat16, device=DEVICE)
    assert value.numel() > 2**31
    value[-1, -1] = 1
    locations = torch.full((batch, 1, 8, 1, 1, 2), 1 - 0.5 / side, device=DEVICE)
    weights = torch.full(locations.shape[:-1], 0.5, device=DEVICE)
    output = triton_kernel.forward(value, ((side, side),), locations, weights)
    assert (output[-1] == 0.5).all() and not output[:-1].any()
    grad = torch.ones_like(output)
    grad_value, _, grad_weights = triton_kernel.backward(
        grad, value, ((side, side),), locations, weights
    )
    assert (grad_value[:, -1] == 0.5).all() and grad_value.sum(dtype=torch.float64) == 128 * batch
    assert (grad_weights[-1] == 32).all()


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e15])
@both
def test_deterministic_gradients(deterministic, size: int, scale: float) -> None:
    """Any order of the queries gives bitwise the same; many samples fall on few cells."""
    problem = Problem((1, 33, 1, 4, ((2, 2), (1, 1)), 4), size)
    problem.grad_output *= scale
    found, expected = problem.compute(), problem.expect()
    torch.testing.assert_close(found[1].double() / scale, expected[1] / scale, rtol=0, atol=2e-5)
    order = torch.randperm(33)
    problem.places, problem.attention = problem.places[:, order], problem.attention[:, order]
    problem.grad_output = problem.grad_output[:, order]
    if size:
        problem.references = problem.references[:, order]
    again = problem.compute()
    assert torch.equal(again[1], found[1])
    assert torch.equal(again[2], found[2][:, order])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_deterministic_gradients_show_overflow(deterministic, bad: float) -> None:
    """As loss scaling needs it: what is not finite makes the gradient NaN, everywhere."""
    problem = Problem((1, 3, 1, 4, ((2, 2),), 1), 0)
    problem.grad_output[0, 1, 2] = bad
    assert problem.compute()[1].isnan().all()


def test_deterministic_gradients_of_zero(deterministic) -> None:
    problem = Problem((1, 3, 1, 4, ((2, 2),), 1), 0)
    problem.grad_output *= 0
    assert torch.equal(problem.compute()[1], torch.zeros_like(problem.value))
