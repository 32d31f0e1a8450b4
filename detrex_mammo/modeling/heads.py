# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Class and box heads, and how a decoder layer's output becomes a prediction.

B batch, Q queries, C channels, K classes (background is not one).
"""

import copy
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrex_mammo.layers import (
    MLP,
    at_least_float32,
    in_own_precision,
    inverse_sigmoid,
    without_autocast,
)


def build_heads(
    embed_dim: int,
    num_classes: int,
    num_decoder_layers: int,
    with_box_refine: bool,
    two_stage: bool,
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Class heads and box heads with the published start.

    Class scores start at 0.01 (bias -log 99), boxes at their reference. Without refinement one head
    serves all layers and is stored once.

    Args:
        embed_dim (int): C.
        num_classes (int): K.
        num_decoder_layers (int): number of decoder layers.
        with_box_refine (bool): each layer has its own heads.
        two_stage (bool): one more pair, the last, scores the encoder's proposals.

    Returns:
        tuple[nn.ModuleList, nn.ModuleList]: K-way linear heads and 3-layer box heads, in equal
        number: 1, ``num_decoder_layers`` or ``num_decoder_layers + 1``.
    """
    class_head = nn.Linear(embed_dim, num_classes)
    nn.init.constant_(class_head.bias, -math.log((1 - 0.01) / 0.01))
    box_head = MLP(embed_dim, embed_dim, 4, 3)
    nn.init.zeros_(box_head.layers[-1].weight)
    nn.init.zeros_(box_head.layers[-1].bias)
    count = num_decoder_layers + int(two_stage) if with_box_refine else 1
    class_embed = nn.ModuleList(copy.deepcopy(class_head) for _ in range(count))
    bbox_embed = nn.ModuleList(copy.deepcopy(box_head) for _ in range(count))
    if not two_stage:
        # The reference of the first layer has no size yet: start at sigmoid(-2) = 0.12.
        nn.init.constant_(bbox_embed[0].layers[-1].bias[2:].detach(), -2.0)
    return class_embed, bbox_embed


class Predictor:
    """What the decoder asks for predictions: the heads, borrowed from the detector.

    Heads are left out of autocast: with the 8 bits of bfloat16 scores tie and boxes jump.

    Args:
        class_embed (nn.ModuleList): class heads, see :func:`build_heads`.
        bbox_embed (nn.ModuleList): box heads.
        eps (float): of :func:`inverse_sigmoid`.
        with_box_refine (bool): a layer's boxes are the next layer's references.
    """

    def __init__(
        self,
        class_embed: nn.ModuleList,
        bbox_embed: nn.ModuleList,
        eps: float,
        with_box_refine: bool,
    ):
        self.class_embed = class_embed
        self.bbox_embed = bbox_embed
        self.eps = eps
        self.with_box_refine = with_box_refine

    def logits(self, layer: int, hidden: Tensor) -> Tensor:
        """(B, Q, C) to class logits (B, Q, K); layer -1 is the proposal head."""
        head = self.class_embed[layer if self.with_box_refine else 0]
        return in_own_precision(head, hidden)

    def proposal_scores(self, tokens: Tensor) -> Tensor:
        """(B, S, C) to channel 0 of the proposal head's logits alone, (B, S)."""
        head = self.class_embed[-1]
        first = partial(F.linear, weight=head.weight[:1], bias=head.bias[:1])
        return without_autocast(first, tokens, head.weight.dtype)[..., 0]

    def box_deltas(self, layer: int, hidden: Tensor) -> Tensor:
        """(B, Q, C) to (B, Q, 4), cxcywh in logit space, at least float32."""
        head = self.bbox_embed[layer if self.with_box_refine else 0]
        return at_least_float32(in_own_precision(head, hidden))

    def boxes(self, layer: int, hidden: Tensor, reference_points: Tensor) -> Tensor:
        """Boxes of one decoder layer.

        Args:
            layer (int): index of the decoder layer.
            hidden (Tensor): (B, Q, C), its output.
            reference_points (Tensor): (B, Q, 2) as (x, y) or (B, Q, 4) as (cx, cy, w, h), in
                [0, 1] of the unpadded image, as they were BEFORE the layer.

        Returns:
            Tensor: (B, Q, 4) cxcywh in [0, 1] of the unpadded image.
        """
        deltas = self.box_deltas(layer, hidden)
        references = inverse_sigmoid(reference_points, self.eps)
        if references.shape[-1] == 2:
            deltas = torch.cat((deltas[..., :2] + references, deltas[..., 2:]), dim=-1)
        else:
            deltas = deltas + references
        return deltas.sigmoid()
