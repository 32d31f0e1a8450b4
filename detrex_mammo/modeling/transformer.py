# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The transformer of Deformable DETR: levels in, predictions out.

https://arxiv.org/abs/2010.04159. B batch, C channels, L levels, S = sum of h*w over levels,
Q queries, K classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detrex_mammo.errors import UserError
from detrex_mammo.layers import (
    MultiScaleDeformableAttention,
    SinePositionEmbedding,
    box_sine_embedding,
    in_own_precision,
)
from detrex_mammo.modeling.decoder import DeformableDecoder
from detrex_mammo.modeling.encoder import DeformableEncoder
from detrex_mammo.modeling.heads import Predictor
from detrex_mammo.modeling.query_groups import ExtraQueries
from detrex_mammo.modeling.two_stage import generate_proposals, score_proposals, select_proposals


class DeformableTransformer(nn.Module):
    """Encoder and decoder with deformable attention.

    Args:
        embed_dim (int): C.
        num_heads (int): attention heads, a divisor of ``embed_dim``.
        num_encoder_layers (int): depth of the encoder; 0 is allowed.
        num_decoder_layers (int): depth of the decoder.
        feedforward_dim (int): hidden channels of the feed-forward networks.
        dropout (float): in all layers.
        num_feature_levels (int): L.
        num_encoder_points (int): points per head and level in the encoder.
        num_decoder_points (int): the same in the decoder.
        two_stage (bool): queries come from the encoder's best proposals.
        num_queries (int): Q, the number of proposals kept; not used unless ``two_stage``.
        temperature (float): of the position embedding.
        encoder_checkpointing (bool): compute each encoder layer again in the backward pass instead
            of keeping its activations; same numbers, less memory, about a fifth more time.
        decoder_checkpointing (bool): the same for the decoder's layers.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        feedforward_dim: int = 1024,
        dropout: float = 0.1,
        num_feature_levels: int = 4,
        num_encoder_points: int = 4,
        num_decoder_points: int = 4,
        two_stage: bool = False,
        num_queries: int = 300,
        temperature: float = 10000.0,
        encoder_checkpointing: bool = False,
        decoder_checkpointing: bool = False,
    ):
        super().__init__()
        if num_decoder_layers < 1:
            raise UserError(f"num_decoder_layers is {num_decoder_layers}; it must be at least 1")
        if embed_dim % num_heads:
            raise UserError(
                f"embed_dim is {embed_dim}; it must be a multiple of num_heads, {num_heads}"
            )
        if not 0 <= dropout < 1:
            raise UserError(f"dropout is {dropout}; it must be at least 0 and below 1")
        self.embed_dim = embed_dim
        self.num_feature_levels = num_feature_levels
        self.two_stage = two_stage
        self.num_queries = num_queries
        self.position_embedding = SinePositionEmbedding(embed_dim, temperature)
        layer = {
            "embed_dim": embed_dim,
            "feedforward_dim": feedforward_dim,
            "dropout": dropout,
            "num_levels": num_feature_levels,
            "num_heads": num_heads,
        }
        self.encoder = DeformableEncoder(
            num_encoder_layers, encoder_checkpointing, num_points=num_encoder_points, **layer
        )
        self.decoder = DeformableDecoder(
            num_decoder_layers, decoder_checkpointing, num_points=num_decoder_points, **layer
        )
        self.level_embed = nn.Parameter(torch.empty(num_feature_levels, embed_dim))
        if two_stage:
            self.enc_output = nn.Linear(embed_dim, embed_dim)
            self.enc_output_norm = nn.LayerNorm(embed_dim)
            self.pos_trans = nn.Linear(embed_dim * 2, embed_dim * 2)
            self.pos_trans_norm = nn.LayerNorm(embed_dim * 2)
        else:
            self.reference_points = nn.Linear(embed_dim, 2)
        self.reset_parameters()

    @property
    def num_decoder_layers(self) -> int:
        """Depth of the decoder."""
        return len(self.decoder.layers)

    def reset_parameters(self) -> None:
        """The published start: Xavier for every matrix, then what the attention sets itself."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.reset_parameters()
        if not self.two_stage:
            nn.init.zeros_(self.reference_points.bias)
        nn.init.normal_(self.level_embed)

    def forward(
        self,
        levels: Sequence[Tensor],
        padding_masks: Sequence[Tensor] | None,
        query_embed: Tensor | None,
        predictor: Predictor,
        all_outputs: bool = True,
        extra: ExtraQueries | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor] | None]:
        """Encode, decode and predict.

        Args:
            levels (Sequence[Tensor]): L feature maps (B, C, h, w), finest first.
            padding_masks (Sequence[BoolTensor], optional): L masks (B, h, w), True on padding;
                None when no image of the batch is padded.
            query_embed (Tensor, optional): (Q, 2*C), position and content of the queries, further
                ones of training included; None when two-stage.
            predictor (Predictor): the heads.
            all_outputs (bool): also the predictions that only a loss needs: of all decoder layers,
                and of the encoder.
            extra (ExtraQueries, optional): queries of training, which follow the others in all
                predictions of the decoder.

        Returns:
            tuple[list[dict], dict or None]: predictions of the decoder layers (the last last), each
            ``pred_logits`` (B, Q, K) and ``pred_boxes`` (B, Q, 4) cxcywh in [0, 1] of the unpadded
            image; and of the encoder's S proposals when two-stage and asked for.
        """
        attention = {"spatial_shapes": tuple(tuple(level.shape[-2:]) for level in levels)}
        src = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        pos = self._position(levels, padding_masks)
        valid_ratios = self._valid_ratios(padding_masks, pos)
        attention["padding_mask"] = None
        if padding_masks is not None:
            attention["padding_mask"] = torch.cat([m.flatten(1) for m in padding_masks], dim=1)
        memory = self.encoder(src, pos, valid_ratios, **attention)

        encoder_output = None
        if self.two_stage:
            query_pos, tgt, references, encoder_output = self._queries_from_proposals(
                memory, valid_ratios, attention, predictor, all_outputs, extra
            )
        else:
            query_pos, tgt = query_embed.expand(len(src), -1, -1).split(self.embed_dim, dim=-1)
            references = in_own_precision(self.reference_points, query_pos)
            references = references.to(pos.dtype).sigmoid()
        if extra is not None:
            attention |= extra.masks(tgt.shape[1], tgt.device)
        outputs = self.decoder(
            tgt, query_pos, references, memory, valid_ratios, predictor, all_outputs, **attention
        )
        return outputs, encoder_output

    def _position(self, levels, padding_masks) -> Tensor:
        """(B or 1, S, C), embedding of position and level, at least float32."""
        dtype = self.level_embed.dtype
        embeddings = []
        for index, level in enumerate(levels):
            mask = None if padding_masks is None else padding_masks[index]
            pos = self.position_embedding(level.shape[-2:], mask, level.device, dtype)
            embeddings.append(pos + self.level_embed[index])
        return torch.cat(embeddings, dim=1)

    def _valid_ratios(self, padding_masks, like: Tensor) -> Tensor:
        """(B or 1, L, 2) as (w, h): unpadded share of each level's columns and rows."""
        if padding_masks is None:
            return like.new_ones(1, self.num_feature_levels, 2)
        ratios = []
        for mask in padding_masks:
            rows, columns = (~mask[:, :, 0]).to(like.dtype), (~mask[:, 0, :]).to(like.dtype)
            ratios.append(torch.stack((columns.mean(1), rows.mean(1)), dim=-1))
        return torch.stack(ratios, dim=1)

    def _queries_from_proposals(
        self, memory, valid_ratios, attention, predictor, all_outputs, extra
    ):
        """Position and content of queries, (B, Q, C) each, references (B, Q, 4), predictions."""
        proposals, is_invalid = generate_proposals(
            attention["spatial_shapes"], valid_ratios, attention["padding_mask"]
        )
        tokens = self.enc_output_norm(self.enc_output(memory.masked_fill(is_invalid, 0)))
        count = self.num_queries + (0 if extra is None else extra.num_further)
        encoder_output = None
        if all_outputs:
            selected, encoder_output = score_proposals(tokens, proposals, predictor, count)
        else:
            selected = select_proposals(tokens, proposals, predictor, count)
        references = selected.sigmoid()
        if extra is not None and extra.boxes is not None:
            references = torch.cat((references, extra.boxes.to(references)), dim=1)
        embedding = box_sine_embedding(references, self.embed_dim)
        query_pos, tgt = self.pos_trans_norm(self.pos_trans(embedding)).chunk(2, dim=-1)
        if extra is not None and extra.content is not None:
            tgt = torch.cat((tgt[:, : -extra.content.shape[1]], extra.content.to(tgt)), dim=1)
        return query_pos, tgt, references, encoder_output
