# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Multi-layer perceptron."""

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        input_dim (int): channels in.
        hidden_dim (int): channels between layers.
        output_dim (int): channels out.
        num_layers (int): number of linear layers, at least 1.
    """

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(widths[i], widths[i + 1]) for i in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_dim) to (..., output_dim)."""
        shape = x.shape[:-1]
        x = x.flatten(0, -2)  # see feed_forward: ReLU in place must not meet a view
        for layer in self.layers[:-1]:
            x = layer(x).relu_()
        return self.layers[-1](x).unflatten(0, shape)
