# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The feed-forward network against its formula."""

import torch
from torch import nn

from detrex_mammo.layers import Dropout, feed_forward


def test_equals_the_formula_and_its_gradients():
    linear1, linear2 = nn.Linear(6, 10), nn.Linear(10, 6)
    x = torch.randn(2, 5, 6, requires_grad=True)
    expected = linear2(linear1(x).relu())
    expected_grads = torch.autograd.grad(expected.square().sum(), [x, *linear1.parameters()])
    found = feed_forward(x, linear1, linear2, Dropout(0.0))
    grads = torch.autograd.grad(found.square().sum(), [x, *linear1.parameters()])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(grads, expected_grads)


def test_backward_copies_no_view():
    """In place on a view, autograd would put a CopySlices node between the layers."""
    x = torch.randn(2, 5, 6, requires_grad=True)
    out = feed_forward(x, nn.Linear(6, 10), nn.Linear(10, 6), Dropout(0.1))
    names, nodes = set(), [out.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(type(node).__name__)
        nodes += [following for following, _ in node.next_functions if following is not None]
    assert "CopySlices" not in names and any("ReluDropout" in name for name in names)
