# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Peers: those that are there agree with the reference, those that are not are named.

Peers that need a GPU are played by small stand-ins that compute with the reference and check how
they are called; their kernels run in the benchmark alone.
"""

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from detrex_mammo.benchmark import peers
from detrex_mammo.benchmark.operator_inputs import Problem, make_inputs
from detrex_mammo.benchmark.peers import (
    COMPILED,
    DEFORMOPS,
    NAMES,
    OFFICIAL,
    REFERENCE,
    TRANSFORMERS,
    Missing,
    find_operator,
    find_operators,
)
from detrex_mammo.ops import BACKENDS, embedding_bag, ms_deform_attn_reference, why_not

PROBLEM = Problem("decoder", 64, 64, queries=5, batch=2)


def outputs(operator, form: str, dtype: torch.dtype = torch.float32):
    """Output and gradients of value, places and weights."""
    inputs = make_inputs(PROBLEM, dtype=dtype)
    value, *rest = (tensor.detach() for tensor in getattr(inputs, form))
    learned = [tensor.requires_grad_() for tensor in (value, *rest[-2:])]
    with operator.around():
        out = getattr(operator, form)(value, inputs.shapes, *rest)
        return [out, *torch.autograd.grad(out, learned, inputs.grad_output)]


@pytest.mark.parametrize("form", ["unfused", "fused"])
@pytest.mark.parametrize("name", [TRANSFORMERS, "embedding_bag", COMPILED, "c"])
def test_peers_agree_with_the_reference(name: str, form: str) -> None:
    if name == "c" and why_not(name):
        pytest.skip(why_not(name))
    expected = outputs(find_operator(REFERENCE, "cpu"), form)
    found = outputs(find_operator(name, "cpu"), form)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_all_are_found_or_named_with_a_reason() -> None:
    found, missing = find_operators("cpu")
    assert {o.name for o in found} | set(missing) == set(NAMES) >= set(BACKENDS)
    assert {REFERENCE, TRANSFORMERS, "embedding_bag", COMPILED} <= {o.name for o in found}
    assert missing[DEFORMOPS] == "its kernels need a GPU"
    assert missing[OFFICIAL] == "it needs a GPU"
    assert missing["triton"]


def test_packages_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.sys, "version_info", (3, 12))
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    found, missing = find_operators("cuda")
    assert missing[TRANSFORMERS] == "the package transformers is not installed"
    assert missing[DEFORMOPS] == "the package deformops is not installed"
    for package in ("MultiScaleDeformableAttention", "mmcv", "kernels"):
        assert f"the package {package} is not installed" in missing[OFFICIAL]
    assert REFERENCE in {operator.name for operator in found}


def test_deformops_needs_a_newer_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.sys, "version_info", (3, 11))
    with pytest.raises(Missing, match="Python 3.12"):
        find_operator(DEFORMOPS, "cuda")


def test_a_broken_package_is_named_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError(f"{name}: undefined symbol")

    monkeypatch.setattr(peers.sys, "version_info", (3, 12))
    monkeypatch.setattr(peers, "find_spec", lambda name: object())
    monkeypatch.setattr(peers, "import_module", broken)
    with pytest.raises(Missing, match="deformops does not import here .*undefined symbol"):
        find_operator(DEFORMOPS, "cuda")


def test_an_interpreted_kernel_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(Missing, match="TRITON_INTERPRET"):
        find_operator("triton", "cpu")


def install(monkeypatch: pytest.MonkeyPatch, name: str, module) -> None:
    """A module that only this test has."""
    parent = name.partition(".")[0]
    if parent != name:
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(peers, "find_spec", lambda asked: object() if asked == parent else None)


class OfficialStandIn(ModuleType):
    """The published extension's two functions, in float32 and contiguous as it asks for."""

    def ms_deform_attn_forward(self, value, sizes, starts, locations, weights, step):
        assert sizes.dtype == starts.dtype == torch.int64 and step == 64
        assert starts.tolist() == [0, 64, 80, 84]
        for tensor in (value, locations, weights):
            assert tensor.dtype == torch.float32 and tensor.is_contiguous()
        shapes = tuple(map(tuple, sizes.tolist()))
        return ms_deform_attn_reference(value, shapes, locations, weights)

    def ms_deform_attn_backward(self, value, sizes, starts, locations, weights, grad, step):
        assert grad.is_contiguous()
        tensors = [t.detach().requires_grad_() for t in (value, locations, weights)]
        with torch.enable_grad():
            out = self.ms_deform_attn_forward(tensors[0], sizes, starts, *tensors[1:], step)
        return torch.autograd.grad(out, tensors, grad)


@pytest.mark.parametrize("form", ["unfused", "fused"])
def test_official_extension_is_called_as_published(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    name = "MultiScaleDeformableAttention"
    install(monkeypatch, name, OfficialStandIn(name))
    operator = find_operator(OFFICIAL, "cuda")
    assert operator.dtypes == (torch.float32,)
    expected = outputs(find_operator(REFERENCE, "cpu"), form)
    for ours, theirs in zip(outputs(operator, form), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_mmcv_takes_the_gradients_to_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = OfficialStandIn("ext")

    def backward(*tensors, im2col_step):
        computed = stand_in.ms_deform_attn_backward(*tensors[:6], im2col_step)
        for gradient, value in zip(tensors[6:], computed):
            gradient += value

    extension = SimpleNamespace(
        ms_deform_attn_forward=lambda *tensors, im2col_step: stand_in.ms_deform_attn_forward(
            *tensors, im2col_step
        ),
        ms_deform_attn_backward=backward,
    )
    module = SimpleNamespace(ext_module=extension)
    install(monkeypatch, "mmcv.ops.multi_scale_deform_attn", module)
    expected = outputs(find_operator(REFERENCE, "cpu"), "unfused")
    for ours, theirs in zip(outputs(find_operator(OFFICIAL, "cuda"), "unfused"), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_kernel_that_is_not_in_the_local_cache_is_not_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def get_kernel(name: str) -> None:
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        raise FileNotFoundError(name)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    install(monkeypatch, "kernels", SimpleNamespace(get_kernel=get_kernel))
    with pytest.raises(Missing, match="kernels-community/deformable-detr is not there"):
        find_operator(OFFICIAL, "cuda")
    assert "HF_HUB_OFFLINE" not in os.environ


@pytest.mark.parametrize("form", ["unfused", "fused"])
def test_deformops_does_the_softmax_itself(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(peers.sys, "version_info", (3, 12))
    seen = []

    def msda(value, sizes, starts, locations, weights, *, softmax):
        seen.append((softmax, weights.dtype == value.dtype))
        shapes = tuple(map(tuple, sizes.tolist()))
        if softmax:
            weights = weights.flatten(3).softmax(-1).view(weights.shape)
        return ms_deform_attn_reference(value, shapes, locations, weights)

    install(monkeypatch, "deformops.registry", SimpleNamespace(msda=msda))
    expected = outputs(find_operator(REFERENCE, "cpu"), form)
    for ours, theirs in zip(outputs(find_operator(DEFORMOPS, "cuda"), form), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    outputs(find_operator(DEFORMOPS, "cuda"), form, torch.bfloat16)
    assert seen == [(form == "fused", True)] * 2


def test_transformers_takes_half_precision() -> None:
    expected = outputs(find_operator(REFERENCE, "cpu"), "unfused", torch.bfloat16)
    found = outputs(find_operator(TRANSFORMERS, "cpu"), "unfused", torch.bfloat16)
    assert found[0].dtype == torch.bfloat16
    torch.testing.assert_close(found[0], expected[0], rtol=0.02, atol=0.05)


def test_eager_and_compiled_embedding_bag_stay_what_they_are() -> None:
    default = embedding_bag.COMPILE_AFTER
    with find_operator("embedding_bag", "cpu").around():
        assert not 10**9 > embedding_bag.COMPILE_AFTER
    with find_operator(COMPILED, "cpu").around():
        assert embedding_bag.COMPILE_AFTER < 0
    assert embedding_bag.COMPILE_AFTER == default
