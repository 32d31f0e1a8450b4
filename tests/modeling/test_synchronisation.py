# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A training step looks at the device's numbers once: in the matcher.

Tensors that are fake hold no numbers, so whatever asks for one (``item``, ``nonzero``, an index by
mask, an ``if``) raises; they can claim to be on a GPU where there is none.
"""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detrex_mammo.modeling import DeformableDETR, HungarianMatcher
from detrex_mammo.modeling.denoising import Denoising
from detrex_mammo.modeling.hybrid_matching import HybridMatching
from tests.modeling.tiny_detector import make_inputs, tiny_detector


class CopiesToHost(TorchDispatchMode):
    """Names of operators that take a tensor of the GPU and give one of the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        before, after = (
            {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}
            for tree in ((args, kwargs), result)
        )
        if "cuda" in before and "cpu" in after:
            self.found.append(str(operator))
        return result


@pytest.fixture
def fake(monkeypatch):
    """What cannot be asked of fake tensors, replaced: the assignment itself, and pinned memory."""
    monkeypatch.setenv("DETREX_MAMMO_OPS_BACKEND", "reference")
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(DeformableDETR, "_check_labels", lambda *_: None)  # reads the host only
    monkeypatch.setattr(torch.Tensor, "numpy", lambda tensor: np.zeros(tensor.shape))
    return FakeTensorMode(allow_non_fake_inputs=True)


TWO_STAGE = {"with_box_refine": True, "two_stage": True}
VARIANTS = [{}, TWO_STAGE, {**TWO_STAGE, "further": True}]


def build(further=False, **settings):
    """``further``: with queries that only training has."""
    if further:
        settings["hybrid"] = HybridMatching(32, True, 9, 2)
        settings["denoising"] = Denoising(3, 32)
    return tiny_detector(**settings)


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("sizes", [((64, 96), (80, 50)), ((64, 96), (64, 96))])
def test_forward_copies_once_to_the_host(fake, settings, sizes):
    inputs = make_inputs(sizes, (2, 1))
    with fake, torch.device("cuda"):
        detector = build(**settings)
    with fake, CopiesToHost() as copies:
        losses = detector(inputs)
    assert all(loss.device.type == "cuda" for loss in losses.values())
    assert copies.found == ["aten._to_copy.default"]


def test_the_copy_is_the_matchers(fake, monkeypatch):
    """The test above can fail: without the matcher there is none, with an ``item`` it raises."""
    inputs = make_inputs(counts=(2, 1))
    pairs = [(np.arange(2), np.arange(2)), (np.arange(1), np.arange(1))]
    monkeypatch.setattr(HungarianMatcher, "forward", lambda _, outputs, targets: [pairs] * 2)
    with fake, torch.device("cuda"):
        detector = tiny_detector()
    with fake, CopiesToHost() as copies:
        losses = detector(inputs)
        with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
            losses["loss_class"].item()
    assert copies.found == []


@pytest.mark.parametrize("settings", VARIANTS)
def test_backward_asks_for_no_number(fake, settings):
    """On the CPU, because a backward pass on a GPU, even a fake one, needs its driver."""
    inputs = make_inputs(counts=(2, 1))
    with fake:
        detector = build(**settings)
        losses = detector(inputs)
        sum(losses.values()).backward()
        assert all(parameter.grad is not None for parameter in detector.parameters())
