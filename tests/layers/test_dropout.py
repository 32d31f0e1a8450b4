# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Dropout: how often, by how much, and the same places in the backward pass."""

import pytest
import torch
from torch import nn

from detrex_mammo.layers import Dropout
from detrex_mammo.layers.dropout import drop_mask


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_scale(p):
    """A million draws: the share of zeros within 5 standard deviations of p, the mean kept."""
    count = 10**6
    out = Dropout(p)(torch.ones(count))
    deviation = (p * (1 - p) / count) ** 0.5
    assert abs(float((out == 0).float().mean()) - p) < 5 * deviation
    kept = out[out != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-3, atol=0)


def test_neighbours_are_independent():
    """Four numbers share one random word: each pair of places drops together in p * p of cases."""
    mask = drop_mask((250_000, 4), 0.3)[0].double()
    together = mask.T @ mask / len(mask)
    expected = torch.full((4, 4), 0.09, dtype=torch.float64).fill_diagonal_(0.3)
    torch.testing.assert_close(together, expected, rtol=0, atol=0.005)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4), (2, 3, 7)])
def test_any_shape(shape):
    x = torch.ones(shape, requires_grad=True)
    out = Dropout(0.5)(x)
    out.sum().backward()
    assert out.shape == shape
    torch.testing.assert_close(x.grad, out.detach())  # of ones: the mask, scaled, both times


def test_after_relu_is_dropout_of_relu():
    """The same mask, forward and backward, as the two written one after the other."""
    dropout = Dropout(0.25)
    x = torch.randn(64, 33)
    weights = torch.randn(64, 33)

    def run(function):
        torch.manual_seed(5)
        leaf = x.clone().requires_grad_()
        out = function(leaf * 1.0)
        (out * weights).sum().backward()
        return out.detach(), leaf.grad

    out, grad = run(dropout.after_relu_)
    expected, expected_grad = run(lambda y: dropout(y.relu()))
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=0)
    assert 0.5 < float((out == 0).float().mean()) < 0.75  # half by ReLU, a quarter of the rest


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_never_and_always(p):
    x = torch.randn(10)
    assert torch.equal(Dropout(p)(x), x * (1 - p))
    assert torch.equal(Dropout(p).after_relu_(x.clone()), x.relu() * (1 - p))


def test_evaluation_leaves_everything_as_it_is():
    x = torch.randn(10)
    dropout = Dropout(0.5).eval()
    assert dropout(x) is x
    assert torch.equal(dropout.after_relu_(x.clone()), x.relu())


def test_follows_the_seed_and_is_an_nn_dropout():
    dropout, x = Dropout(0.5), torch.ones(100)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first) and not torch.equal(first, second)
    assert isinstance(dropout, nn.Dropout)
