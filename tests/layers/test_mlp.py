# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The perceptron's shape, names and the place of its ReLUs."""

import torch

from detrex_mammo.layers import MLP


def test_relu_only_between_layers():
    """x -> 2x - 1 -> relu -> -y: 3 gives -5, 0 gives 0 (cut), never relu at the end."""
    mlp = MLP(1, 1, 1, 2)
    with torch.no_grad():
        mlp.layers[0].weight.fill_(2), mlp.layers[0].bias.fill_(-1)
        mlp.layers[1].weight.fill_(-1), mlp.layers[1].bias.fill_(0)
        found = mlp(torch.tensor([[3.0], [0.0]]))
    torch.testing.assert_close(found, torch.tensor([[-5.0], [0.0]]))


def test_widths():
    shapes = [tuple(layer.weight.shape) for layer in MLP(3, 5, 4, 3).layers]
    assert shapes == [(5, 3), (5, 5), (4, 5)]
