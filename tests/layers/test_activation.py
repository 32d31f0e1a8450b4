# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""inverse_sigmoid and its clamp."""

import math

import torch

from detrex_mammo.layers import at_least_float32, in_own_precision, inverse_sigmoid


def test_inverse_sigmoid_undoes_sigmoid():
    x = torch.linspace(-8, 8, 33, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(x.sigmoid()), x)


def test_inverse_sigmoid_clamps_each_side_alone():
    """At 0: log(eps / 1), not log(eps / (1 - eps)); also outside of [0, 1]."""
    found = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64))
    edge = math.log(1e5)
    expected = torch.tensor([-edge, -edge, edge, edge], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    found = inverse_sigmoid(torch.tensor([0.0], dtype=torch.float64), eps=1e-3)
    torch.testing.assert_close(found, torch.tensor([-math.log(1e3)], dtype=torch.float64))


def test_at_least_float32():
    assert at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert at_least_float32(torch.zeros(1, dtype=torch.float16)).dtype == torch.float32
    double = torch.zeros(1, dtype=torch.float64)
    assert at_least_float32(double) is double


def test_in_own_precision_leaves_autocast_out():
    """float32 to the last bit inside a bfloat16 autocast, and nothing new without or on meta."""
    linear, x = torch.nn.Linear(4, 3), torch.randn(2, 4)
    expected = linear(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16
        assert torch.equal(in_own_precision(linear, x), expected)
        assert in_own_precision(linear, x.bfloat16()).dtype == torch.float32
    assert torch.equal(in_own_precision(linear, x), expected)
    assert in_own_precision(linear.to("meta"), x.to("meta")).device.type == "meta"
    half = torch.nn.Linear(4, 3).bfloat16()  # a model that is itself in half precision stays so
    with torch.autocast("cpu", torch.bfloat16):
        assert in_own_precision(half, x.bfloat16()).dtype == torch.bfloat16
