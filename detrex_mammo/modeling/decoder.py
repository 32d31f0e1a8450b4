# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Decoder of Deformable DETR, with iterative box refinement.

B batch, Q queries, S = sum of h*w over levels, C channels, L levels, K classes.
"""

import torch
from torch import Tensor, nn

from detrex_mammo.layers import (
    Dropout,
    MultiScaleDeformableAttention,
    feed_forward,
    recomputation,
)
from detrex_mammo.modeling.heads import Predictor


class DeformableDecoderLayer(nn.Module):
    """Self-attention of the queries, deformable cross-attention, feed-forward network.

    The published names do not follow the order of execution: ``norm2`` follows the self-attention,
    ``norm1`` the cross-attention, ``norm3`` the feed-forward network.

    Args:
        embed_dim (int): C.
        feedforward_dim (int): hidden channels of the feed-forward network.
        dropout (float): after each part, inside the feed-forward network and on the weights of the
            self-attention.
        num_levels (int): L.
        num_heads (int): heads of both attentions.
        num_points (int): points per head and level.
    """

    def __init__(
        self,
        embed_dim: int,
        feedforward_dim: int,
        dropout: float,
        num_levels: int,
        num_heads: int,
        num_points: int,
    ):
        super().__init__()
        self.cross_attn = MultiScaleDeformableAttention(
            embed_dim, num_heads, num_levels, num_points
        )
        self.norm1 = nn.LayerNorm(embed_dim)
        self.self_attn = nn.MultiheadAttention(embed_dim, num_heads, dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, embed_dim)
        self.norm3 = nn.LayerNorm(embed_dim)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        tgt: Tensor,
        query_pos: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        self_attn_mask: Tensor | None = None,
        self_padding_mask: Tensor | None = None,
        **attention,
    ) -> Tensor:
        """Update the queries.

        Args:
            tgt (Tensor): (B, Q, C), content of the queries.
            query_pos (Tensor): (B, Q, C), their position embedding.
            reference_points (Tensor): (B, Q, L, 2 or 4), in [0, 1] of the padded feature maps.
            memory (Tensor): (B, S, C), output of the encoder.
            self_attn_mask (BoolTensor, optional): (Q, Q), True where the query of the row does not
                see that of the column.
            self_padding_mask (BoolTensor, optional): (B, Q), True on queries that none sees.
            **attention: spatial_shapes and padding_mask of
                :class:`MultiScaleDeformableAttention`.

        Returns:
            Tensor: (B, Q, C).
        """
        query = tgt + query_pos
        attended = self.self_attn(
            query, query, tgt, self_padding_mask, need_weights=False, attn_mask=self_attn_mask
        )[0]
        tgt = self.norm2(tgt + self.dropout(attended))
        attended = self.cross_attn(tgt + query_pos, reference_points, memory, **attention)
        tgt = self.norm1(tgt + self.dropout(attended))
        hidden = feed_forward(tgt, self.linear1, self.linear2, self.dropout)
        return self.norm3(tgt + self.dropout(hidden))


class DeformableDecoder(nn.Module):
    """A stack of :class:`DeformableDecoderLayer`.

    Args:
        num_layers (int): depth, at least 1.
        checkpointing (bool): as of the encoder.
        **layer: arguments of the layer.
    """

    def __init__(self, num_layers: int, checkpointing: bool = False, **layer):
        super().__init__()
        self.checkpointing = checkpointing
        self.layers = nn.ModuleList(DeformableDecoderLayer(**layer) for _ in range(num_layers))

    def forward(
        self,
        tgt: Tensor,
        query_pos: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        valid_ratios: Tensor,
        predictor: Predictor,
        all_layers: bool,
        **attention,
    ) -> list[dict[str, Tensor]]:
        """Decode.

        With refinement the boxes of a layer, cut off from the gradient, are the references of the
        next; its own loss still reaches them. (Published: computed twice, with equal values.)

        Args:
            tgt (Tensor): (B, Q, C), content of the queries.
            query_pos (Tensor): (B, Q, C), their position embedding.
            reference_points (Tensor): (B, Q, 2) as (x, y) or (B, Q, 4) as (cx, cy, w, h), in
                [0, 1] of the unpadded image.
            memory (Tensor): (B, S, C), output of the encoder.
            valid_ratios (Tensor): (B or 1, L, 2) as (w, h), unpadded share of each level.
            predictor (Predictor): the heads.
            all_layers (bool): predict from every layer, not only from the last.
            **attention: spatial_shapes and padding_mask, and masks of the self-attention.

        Returns:
            list[dict[str, Tensor]]: a prediction for each layer, or one: ``pred_logits``
            (B, Q, K), ``pred_boxes`` (B, Q, 4) cxcywh in [0, 1] of the unpadded image.
        """
        scales = {2: valid_ratios[:, None], 4: torch.cat((valid_ratios, valid_ratios), -1)[:, None]}
        predictions = []
        for index, layer in enumerate(self.layers):
            padded_references = reference_points[:, :, None] * scales[reference_points.shape[-1]]
            tgt = recomputation.run(
                layer, self.checkpointing, tgt, query_pos, padded_references, memory, **attention
            )
            is_output = all_layers or index == len(self.layers) - 1
            if is_output or predictor.with_box_refine:
                boxes = predictor.boxes(index, tgt, reference_points)
            if is_output:
                logits = predictor.logits(index, tgt)
                predictions.append({"pred_logits": logits, "pred_boxes": boxes})
            if predictor.with_box_refine:
                reference_points = boxes.detach()
        return predictions
