# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Two-stage Deformable DETR: every encoder token proposes a box, the best become queries.

Appendix A.4 of https://arxiv.org/abs/2010.04159.
B batch, S = sum of h*w over levels, C channels, L levels, Q queries, K classes.
"""

import torch
from torch import Tensor

from detrex_mammo.modeling.heads import Predictor


def generate_proposals(
    spatial_shapes: tuple[tuple[int, int], ...], valid_ratios: Tensor, padding_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A square at every cell, 0.05 of the image wide on the first level, doubling with each level.

    Args:
        spatial_shapes (tuple[tuple[int, int], ...]): L pairs (h, w).
        valid_ratios (Tensor): (B, L, 2) as (w, h), unpadded share of each level.
        padding_mask (BoolTensor, optional): (B, S), True on padding.

    Returns:
        tuple[Tensor, Tensor]: proposals (B, S, 4), cxcywh of the unpadded image in logit space,
        +inf where they do not count; and that place, (B, S, 1), True on padding and where any of
        the four lies outside of (0.01, 0.99), as at the border of a level of 50 cells or more.
    """
    proposals = []
    for level, (height, width) in enumerate(spatial_shapes):
        kwargs = {"dtype": valid_ratios.dtype, "device": valid_ratios.device}
        # The number of unpadded cells is a whole number; rounding undoes the ratio's division.
        num_x = (valid_ratios[:, level, :1] * width).round()
        num_y = (valid_ratios[:, level, 1:] * height).round()
        x = ((torch.arange(width, **kwargs) + 0.5) / num_x)[:, None, :].expand(-1, height, -1)
        y = ((torch.arange(height, **kwargs) + 0.5) / num_y)[:, :, None].expand(-1, -1, width)
        size = torch.full_like(x, 0.05) * 2.0**level
        proposals.append(torch.stack((x, y, size, size), dim=-1).flatten(1, 2))
    proposals = torch.cat(proposals, dim=1)
    is_invalid = ~((proposals > 0.01) & (proposals < 0.99)).all(-1, keepdim=True)
    if padding_mask is not None:
        is_invalid = is_invalid | padding_mask[..., None]
    proposals = torch.log(proposals / (1 - proposals))
    return proposals.masked_fill(is_invalid, float("inf")), is_invalid


def score_proposals(
    tokens: Tensor, proposals: Tensor, predictor: Predictor, num_queries: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """All proposals scored and refined by the proposal head, as training needs them.

    Args:
        tokens (Tensor): (B, S, C), memory behind ``enc_output`` and its norm.
        proposals (Tensor): (B, S, 4), cxcywh in logit space.
        predictor (Predictor): the heads; the last pair is the proposal head.
        num_queries (int): proposals to keep; all of them if there are fewer.

    Returns:
        tuple[Tensor, dict[str, Tensor]]: the best by CLASS CHANNEL 0, (B, Q, 4) cxcywh in logit
        space without gradient; and ``pred_logits`` (B, S, K), ``pred_boxes`` (B, S, 4) of all.
    """
    logits = predictor.logits(-1, tokens)
    boxes = predictor.box_deltas(-1, tokens) + proposals
    best = _best(logits[..., 0], num_queries)
    selected = boxes.detach().gather(1, best.expand(-1, -1, 4))
    return selected, {"pred_logits": logits, "pred_boxes": boxes.sigmoid()}


def select_proposals(
    tokens: Tensor, proposals: Tensor, predictor: Predictor, num_queries: int
) -> Tensor:
    """The same selection without what only the loss needs: one class, and boxes of the best.

    Args and first result as :func:`score_proposals`.
    """
    best = _best(predictor.proposal_scores(tokens), num_queries)
    selected = tokens.gather(1, best.expand(-1, -1, tokens.shape[-1]))
    deltas = predictor.box_deltas(-1, selected)
    chosen = proposals.expand(len(tokens), -1, -1).gather(1, best.expand(-1, -1, 4))
    return (deltas + chosen).detach()


def _best(scores: Tensor, num_queries: int) -> Tensor:
    """(B, S) to the places (B, Q, 1) of the highest scores, Q at most S."""
    return scores.topk(min(num_queries, scores.shape[1]), dim=1).indices[..., None]
