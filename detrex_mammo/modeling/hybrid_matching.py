# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Hybrid matching of H-DETR, https://arxiv.org/abs/2207.13080 (its hybrid branch scheme).

One-to-one matching gives a box one query to learn from. In training, further queries learn beside
them with every box repeated k times; inference has the one-to-one queries alone.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from detrex_mammo.errors import UserError
from detrex_mammo.modeling.query_groups import LossGroup, Outputs, is_amount, is_count


class HybridMatching(nn.Module):
    """Queries with one-to-many matching; names and numbers as in the paper's code.

    When two-stage they are the next best proposals, otherwise learned.

    Args:
        embed_dim (int): C; the same as the model's.
        two_stage (bool): the same as the model's.
        num_queries_one2many (int): T of the paper.
        k_one2many (int): how often each box is a target for them.
        lambda_one2many (float): weight of their losses.
    """

    def __init__(
        self,
        embed_dim: int,
        two_stage: bool,
        num_queries_one2many: int = 1500,
        k_one2many: int = 6,
        lambda_one2many: float = 1.0,
    ):
        super().__init__()
        are_counts = is_count(num_queries_one2many) and is_count(k_one2many)
        if not (are_counts and is_amount(lambda_one2many)):
            raise UserError(
                f"num_queries_one2many is {num_queries_one2many}, k_one2many {k_one2many} and "
                f"lambda_one2many {lambda_one2many}; the first two must be whole numbers of at "
                "least 1 and the last not negative; without hybrid matching set model.hybrid=null"
            )
        self.embed_dim = embed_dim
        self.two_stage = two_stage
        self.num_queries = num_queries_one2many
        self.copies = k_one2many
        self.weight = lambda_one2many
        self.query_embed = None if two_stage else nn.Embedding(num_queries_one2many, embed_dim * 2)

    def loss_group(self, outputs: Outputs, targets: Sequence[dict[str, Tensor]]) -> LossGroup:
        """Their predictions, and the batch's targets repeated."""
        repeated = [
            {"labels": t["labels"].repeat(self.copies), "boxes": t["boxes"].repeat(self.copies, 1)}
            for t in targets
        ]
        return LossGroup(outputs, repeated, "_one2many", copies=self.copies, weight=self.weight)
