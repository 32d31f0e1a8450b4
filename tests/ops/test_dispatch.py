# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Which backend is called, and what is refused."""

import types
import warnings

import pytest
import torch

from detrex_mammo.errors import UserError
from detrex_mammo.ops import dispatch, ms_deform_attn, ms_deform_attn_reference

SHAPES = ((2, 3), (1, 2))


def inputs(dtype=torch.float32):
    value = torch.randn(1, 8, 2, 4, dtype=dtype)
    locations, weights = torch.rand(1, 5, 2, 2, 3, 2), torch.rand(1, 5, 2, 2, 3)
    return value, locations, weights


def fake_kernel(monkeypatch, available=True):
    """A CPU kernel that answers with ones."""
    module = types.SimpleNamespace(
        is_available=lambda: available,
        why_not=lambda: "" if available else "no compiler found",
    )
    monkeypatch.setattr(dispatch, "cpu", module)
    monkeypatch.setitem(dispatch.BACKENDS, "cpu", lambda value, *_: torch.ones(1, 5, 8))


def test_shapes_as_tensor_or_integers():
    value, locations, weights = inputs()
    expected = ms_deform_attn_reference(value, SHAPES, locations, weights)
    for shapes in (SHAPES, [list(shape) for shape in SHAPES], torch.tensor(SHAPES)):
        for start in (None, (0, 6), torch.tensor([0, 6])):
            found = ms_deform_attn(value, shapes, start, locations, weights, backend="reference")
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_auto_prefers_the_kernel_for_float32_on_the_cpu(monkeypatch):
    monkeypatch.delenv(dispatch.BACKEND_VARIABLE, raising=False)
    value = inputs()[0]
    fake_kernel(monkeypatch)
    assert dispatch.choose_backend("auto", value) == "cpu"
    assert dispatch.choose_backend("auto", value.double()) == "reference"
    assert dispatch.choose_backend("auto", value.bfloat16()) == "reference"
    assert dispatch.choose_backend("auto", value, value.double()) == "reference"
    assert dispatch.choose_backend("reference", value) == "reference"


def test_one_warning_when_there_is_no_kernel(monkeypatch):
    monkeypatch.delenv(dispatch.BACKEND_VARIABLE, raising=False)
    dispatch._warn_once.cache_clear()
    fake_kernel(monkeypatch, available=False)
    value, locations, weights = inputs()
    with pytest.warns(UserWarning, match="no compiler found") as caught:
        for _ in range(3):
            ms_deform_attn(value, SHAPES, None, locations, weights)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dispatch._warn_once.cache_clear()
        assert dispatch.choose_backend("auto", value.double()) == "reference"
        monkeypatch.setenv(dispatch.BACKEND_VARIABLE, "reference")
        assert dispatch.choose_backend("auto", value) == "reference"
    dispatch._warn_once.cache_clear()


def test_the_kernel_is_called(monkeypatch):
    fake_kernel(monkeypatch)
    value, locations, weights = inputs()
    found = ms_deform_attn(value, SHAPES, None, locations, weights, backend="cpu")
    torch.testing.assert_close(found, torch.ones(1, 5, 8))


def test_variable_pins_a_backend(monkeypatch):
    fake_kernel(monkeypatch)
    monkeypatch.setenv(dispatch.BACKEND_VARIABLE, "reference")
    assert dispatch.choose_backend("auto", inputs()[0]) == "reference"
    monkeypatch.setenv(dispatch.BACKEND_VARIABLE, "cuda")
    with pytest.raises(UserError, match="DETREX_MAMMO_OPS_BACKEND.*'cuda'.*reference, cpu"):
        dispatch.choose_backend("auto", inputs()[0])


def test_pinned_backend_that_is_missing_says_why(monkeypatch):
    fake_kernel(monkeypatch, available=False)
    with pytest.raises(UserError, match="no compiler found"):
        dispatch.choose_backend("cpu", inputs()[0])


def test_shapes_that_do_not_fit_are_refused():
    value, locations, weights = inputs()
    with pytest.raises(ValueError, match="8 tokens.*have 9"):
        ms_deform_attn(value, ((2, 3), (1, 3)), None, locations, weights)
    with pytest.raises(ValueError, match="level_start_index"):
        ms_deform_attn(value, SHAPES, (0, 5), locations, weights)
    with pytest.raises(ValueError, match="sampling_locations"):
        ms_deform_attn(value, SHAPES, None, locations[:, :, :, :1], weights)
