# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Which backend is called, and what is refused."""

import warnings

import pytest
import torch

from detrex_mammo.errors import UserError
from detrex_mammo.ops import (
    c_kernel,
    dispatch,
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_reference,
)
from tests.ops.attention_cases import CASES, Case, draw, draw_fused, oracle_fused, with_gradients

CASE = CASES[1]


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(dispatch.BACKEND_VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    dispatch._warn_once.cache_clear()
    yield
    dispatch._warn_once.cache_clear()


def test_shapes_as_tensor_or_integers():
    value, locations, weights = draw(CASE)
    expected = ms_deform_attn_reference(value, CASE.shapes, locations, weights)
    for shapes in (CASE.shapes, [list(s) for s in CASE.shapes], torch.tensor(CASE.shapes)):
        for start in (None, (0, 3, 8), torch.tensor([0, 3, 8])):
            found = ms_deform_attn(value, shapes, start, locations, weights, backend="reference")
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["reference", "embedding_bag"])
@pytest.mark.parametrize("numbers", [2, 4])
def test_plain_backends_take_the_fused_form(backend, numbers):
    value, references, offsets, logits = draw_fused(CASES[0], numbers)
    grad = torch.randn(2, 5, 48)
    ours = with_gradients(
        lambda v, r, o, a: ms_deform_attn_fused(v, CASES[0].shapes, None, r, o, a, backend),
        (value, references, offsets, logits),
        grad,
    )
    theirs = with_gradients(
        lambda v, r, o, a: oracle_fused(v, CASES[0].shapes, r, o, a),
        (value, references, offsets, logits),
        grad,
    )
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=5e-5)


@pytest.mark.skipif(bool(c_kernel.why_not()), reason=c_kernel.why_not())
@pytest.mark.parametrize("numbers", [2, 4])
def test_learned_reference_points_get_their_gradient_from_a_native_backend(numbers):
    inputs = draw_fused(CASES[0], numbers)
    grad = torch.randn(2, 5, 48)
    ours = with_gradients(
        lambda v, r, o, a: ms_deform_attn_fused(v, CASES[0].shapes, None, r, o, a, "c"),
        inputs,
        grad,
    )
    theirs = with_gradients(
        lambda v, r, o, a: oracle_fused(v, CASES[0].shapes, r, o, a), inputs, grad
    )
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=5e-5)


def pretend(monkeypatch, **missing):
    """Every backend is there, but for those named, which say why."""
    monkeypatch.setattr(dispatch, "why_not", lambda name: missing.get(name, ""))


def test_auto_takes_the_best_that_is_there(monkeypatch):
    pretend(monkeypatch)
    assert dispatch.choose_backend("auto", "cpu") == "c"
    assert dispatch.choose_backend("auto", "cuda") == "triton"
    assert dispatch.choose_backend("auto", "mps") == "reference"
    for device in ("cpu", "cuda"):
        assert dispatch.choose_backend("auto", device, is_double=True) == "reference"
    assert dispatch.choose_backend("reference", "cpu") == "reference"


def test_one_warning_for_each_step_down(monkeypatch):
    pretend(monkeypatch, c="no compiler found", triton="no triton found")
    value, locations, weights = draw(CASE)
    with pytest.warns(UserWarning, match="'embedding_bag' because 'c'.*no compiler") as caught:
        for _ in range(3):
            ms_deform_attn(value, CASE.shapes, None, locations, weights)
    assert len(caught) == 1 and caught[0].filename == __file__
    with pytest.warns(UserWarning, match="'reference' because 'triton'.*no triton") as caught:
        for _ in range(3):
            assert dispatch.choose_backend("auto", "cuda") == "reference"
    assert len(caught) == 1


def test_no_warning_when_pinned_or_double(monkeypatch):
    pretend(monkeypatch, c="no compiler found")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.choose_backend("auto", "cpu", is_double=True) == "reference"
        monkeypatch.setenv(dispatch.BACKEND_VARIABLE, "embedding_bag")
        assert dispatch.choose_backend("auto", "cpu") == "embedding_bag"


def test_variable_pins_a_backend(monkeypatch):
    pretend(monkeypatch)
    monkeypatch.setenv(dispatch.BACKEND_VARIABLE, "reference")
    assert dispatch.choose_backend("auto", "cpu") == "reference"
    assert dispatch.choose_backend("c", "cpu") == "c"  # an argument is stronger


def test_unknown_and_missing_backends_say_what_there_is(monkeypatch):
    monkeypatch.setenv(dispatch.BACKEND_VARIABLE, "cuda")
    with pytest.raises(UserError, match="OPS_BACKEND.*'cuda'.*auto, reference, embedding_bag, c"):
        dispatch.choose_backend("auto", "cpu")
    pretend(monkeypatch, c="no compiler found")
    with pytest.raises(UserError, match="no compiler found"):
        dispatch.choose_backend("c", "cpu")


def test_a_pinned_backend_refuses_tensors_it_cannot_take(monkeypatch):
    pretend(monkeypatch)
    with pytest.raises(UserError, match="'c'.*float64"):
        dispatch.choose_backend("c", "cpu", is_double=True)
    with pytest.raises(UserError, match="'c'.*lie on 'cuda'"):
        dispatch.choose_backend("c", "cuda")
    with pytest.raises(UserError, match="'triton'.*lie on 'cpu'"):
        dispatch.choose_backend("triton", "cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.choose_backend("triton", "cpu") == "triton"


def test_shapes_that_do_not_fit_are_refused():
    value, locations, weights = draw(CASE)
    with pytest.raises(ValueError, match="12 tokens.*have 14"):
        ms_deform_attn(value, ((1, 3), (5, 1), (2, 3)), None, locations, weights)
    with pytest.raises(ValueError, match="level_start_index"):
        ms_deform_attn(value, CASE.shapes, (0, 5, 8), locations, weights)
    with pytest.raises(ValueError, match="locations.*do not fit"):
        ms_deform_attn(value, CASE.shapes, None, locations[:, :, :, :1], weights)
    with pytest.raises(ValueError, match="cpu, meta"):
        ms_deform_attn(value, CASE.shapes, None, locations.to("meta"), weights)
    value, references, offsets, logits = draw_fused(CASE, 4)
    with pytest.raises(ValueError, match="reference_points.*2 for"):
        ms_deform_attn_fused(value, CASE.shapes, None, references[..., :3], offsets, logits)
    with pytest.raises(ValueError, match="reference_points.*expected .1 or 1, 4, 3"):
        ms_deform_attn_fused(value, CASE.shapes, None, references[:, :2], offsets, logits)


def test_wrong_axes_empty_levels_and_dtypes_are_refused():
    value, locations, weights = draw(CASE)
    with pytest.raises(ValueError, match="4, 6 and 5 axes"):
        ms_deform_attn(value, CASE.shapes, None, locations[0], weights)
    for shapes in ((), ((-1, -3), (5, 1), (2, 2)), ((0, 3), (5, 1), (2, 2))):
        with pytest.raises(ValueError, match="at least one cell"):
            ms_deform_attn(value, shapes, None, locations, weights)
    with pytest.raises(ValueError, match="complex64"):
        ms_deform_attn(value.to(torch.complex64), CASE.shapes, None, locations, weights)


def test_forward_mode_and_second_derivatives_are_errors_and_not_zeros():
    value, locations, weights = draw(CASE)

    def function(x):
        return ms_deform_attn(x, CASE.shapes, None, locations, weights)

    with pytest.raises(NotImplementedError):
        torch.func.jvp(function, (value,), (torch.ones_like(value),))
    value.requires_grad_()
    (grad,) = torch.autograd.grad((function(value) ** 2).sum(), value, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad((grad**2).sum(), value)


def test_more_samples_than_a_kernel_takes():
    case = Case(1, 2, 1, 4, ((3, 4), (2, 2)), dispatch.MOST_SAMPLES)
    inputs = draw(case)
    found = ms_deform_attn(inputs[0], case.shapes, None, *inputs[1:])
    expected = ms_deform_attn(inputs[0], case.shapes, None, *inputs[1:], "reference")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
