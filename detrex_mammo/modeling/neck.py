# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""From the backbone's feature maps to levels of one width.

B batch, C channels, L levels.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from detrex_mammo.errors import UserError
from detrex_mammo.layers import group_norm


def _projection(in_channels: int, embed_dim: int, **conv) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, embed_dim, **conv)
    nn.init.xavier_uniform_(convolution.weight, gain=1)
    nn.init.zeros_(convolution.bias)
    return nn.Sequential(convolution, group_norm(embed_dim))


class InputProjection(nn.ModuleList):
    """One projection for each level; a list, so that its keys are ``{level}.0`` and ``{level}.1``.

    A feature map gets Conv1x1 + GroupNorm. Levels beyond the feature maps get Conv3x3 of stride 2:
    the first of them from the LAST FEATURE MAP (not its projection), further ones from the level
    before. https://arxiv.org/abs/2010.04159, appendix A.2.

    Args:
        in_channels (Sequence[int]): channels of the feature maps, finest first.
        embed_dim (int): C.
        num_levels (int): L, at least the number of feature maps.
    """

    def __init__(self, in_channels: Sequence[int], embed_dim: int, num_levels: int):
        if num_levels < len(in_channels):
            raise UserError(
                f"num_feature_levels is {num_levels}, but in_features names {len(in_channels)} "
                "feature maps; use at least as many levels as feature maps"
            )
        layers = [_projection(c, embed_dim, kernel_size=1) for c in in_channels]
        channels = in_channels[-1]
        for _ in range(num_levels - len(in_channels)):
            layers.append(_projection(channels, embed_dim, kernel_size=3, stride=2, padding=1))
            channels = embed_dim
        super().__init__(layers)
        self.num_features = len(in_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps (B, channels, h, w), finest first, to L levels (B, C, h, w)."""
        levels = [layer(feature) for layer, feature in zip(self, features)]
        source = features[-1]
        for layer in list(self)[self.num_features :]:
            levels.append(layer(source))
            source = levels[-1]
        return levels
