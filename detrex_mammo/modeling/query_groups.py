# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Queries that only training has: behind those of inference, seen by none of them, with own losses.

They pass the same decoder and heads. What is predicted from the queries of inference is as if the
others were not there, so leaving them out afterwards changes nothing.

B batch, Q queries of inference, H further queries of their kind, D denoising queries, C channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detrex_mammo.modeling.batching import to_device
from detrex_mammo.modeling.matcher import Matching

Outputs = list[dict[str, Tensor]]


def is_count(value: object) -> bool:
    """Whether a setting is a whole number of at least 1."""
    return type(value) is int and value >= 1


def is_amount(value: object, most: float = math.inf) -> bool:
    """Whether a setting is a finite number from 0 to ``most``."""
    return type(value) in (int, float) and 0 <= value <= most and value < math.inf


@dataclass(frozen=True)
class ExtraQueries:
    """What the transformer adds to its Q queries.

    Attributes:
        num_queries: Q, or as many as there are tokens if those are fewer.
        num_further: H, made as the Q are: learned, or the next best proposals.
        query_embed: (H, 2*C), the learned ones; None when two-stage.
        content: (B, D, C), of denoising queries; None without any.
        boxes: (B, D, 4) cxcywh in [0, 1], their references.
        group_size: denoising queries that see one another; D is a multiple of it.
        is_padding: (B, D), True where a denoising query stands for no box; None if all do.
    """

    num_queries: int
    num_further: int = 0
    query_embed: Tensor | None = None
    content: Tensor | None = None
    boxes: Tensor | None = None
    group_size: int = 1
    is_padding: Tensor | None = None

    def sizes(self, total: int) -> tuple[int, int, int]:
        """How many of ``total`` queries are of inference, further and denoising ones."""
        num_denoising = 0 if self.boxes is None else self.boxes.shape[1]
        num_queries = min(self.num_queries, total - num_denoising)
        return num_queries, total - num_denoising - num_queries, num_denoising

    def masks(self, total: int, device: torch.device) -> dict[str, Tensor]:
        """What a query of the self-attention must not see.

        Returns:
            dict[str, BoolTensor]: ``self_attn_mask`` (Q+H+D, Q+H+D), True where the query of the
            row does not see that of the column: every group sees itself, and denoising queries see
            those of inference too, as in the papers; and, where some are padding,
            ``self_padding_mask`` (B, Q+H+D), True on those.
        """
        num_queries, num_further, num_denoising = self.sizes(total)
        groups = [0] * num_queries + [1] * num_further
        groups += [2 + index // self.group_size for index in range(num_denoising)]
        group = to_device(torch.tensor(groups), device)
        is_hidden = group[:, None] != group
        is_hidden &= (group[:, None] < 2) | (group != 0)
        if self.is_padding is None:
            return {"self_attn_mask": is_hidden}
        padding = self.is_padding.new_zeros(len(self.is_padding), total)
        padding[:, total - num_denoising :] = self.is_padding
        return {"self_attn_mask": is_hidden, "self_padding_mask": padding}

    def split(self, outputs: Outputs) -> tuple[Outputs, Outputs, Outputs]:
        """Predictions (B, Q+H+D, ...) of each layer to those of the three kinds."""
        sizes = self.sizes(outputs[0]["pred_boxes"].shape[1])
        parts = [{name: t.split(sizes, dim=1) for name, t in layer.items()} for layer in outputs]
        first, further, denoising = (
            [{name: split[kind] for name, split in layer.items()} for layer in parts]
            for kind in range(3)
        )
        return first, further, denoising


@dataclass(frozen=True)
class LossGroup:
    """Predictions that have losses of their own.

    Attributes:
        outputs: of decoder layers, the last one last, as for :class:`SetCriterion`.
        targets: images with ``labels`` and ``boxes``.
        suffix: of the names of its losses.
        matching: of each layer alike; None leaves it to the matcher.
        copies: how often the targets hold each box of the batch.
        weight: of its losses.
    """

    outputs: Sequence[dict[str, Tensor]]
    targets: Sequence[dict[str, Tensor]]
    suffix: str = ""
    matching: Matching | None = None
    copies: int = 1
    weight: float = 1.0
