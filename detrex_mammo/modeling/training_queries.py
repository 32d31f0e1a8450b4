# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The further queries of a training step: what goes to the transformer, and what comes of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from detrex_mammo.errors import UserError
from detrex_mammo.modeling.denoising import Denoising, NoisedBoxes
from detrex_mammo.modeling.hybrid_matching import HybridMatching
from detrex_mammo.modeling.query_groups import ExtraQueries, LossGroup, Outputs


@dataclass(frozen=True)
class TrainingQueries:
    """Those of one batch.

    Attributes:
        extra: for the transformer.
        targets: of the batch.
        hybrid: None without hybrid matching.
        denoising: None without denoising.
        noised: what denoising made of the targets.
    """

    extra: ExtraQueries
    targets: Sequence[dict[str, Tensor]]
    hybrid: HybridMatching | None
    denoising: Denoising | None
    noised: NoisedBoxes | None

    def split(self, outputs: Outputs) -> tuple[Outputs, list[LossGroup]]:
        """Predictions of all queries to those of inference, and the others with their targets."""
        outputs, further, denoised = self.extra.split(outputs)
        groups = []
        if self.hybrid is not None:
            groups.append(self.hybrid.loss_group(further, self.targets))
        if self.denoising is not None:
            groups.append(self.denoising.loss_group(self.noised, denoised, self.targets))
        return outputs, groups


def make_queries(
    targets: Sequence[dict[str, Tensor]],
    num_queries: int,
    denoising: Denoising | None,
    hybrid: HybridMatching | None,
) -> TrainingQueries | None:
    """Queries for a batch; None if neither part is there and in training mode.

    (For the losses of validation only the detector itself is in that mode, not its parts.)
    """
    denoising = denoising if denoising is not None and denoising.training else None
    hybrid = hybrid if hybrid is not None and hybrid.training else None
    settings, noised = {}, None
    if hybrid is not None:
        settings["num_further"] = hybrid.num_queries
        settings["query_embed"] = None if hybrid.two_stage else hybrid.query_embed.weight
    if denoising is not None:
        noised = denoising(targets)
        settings["content"] = denoising.label_embed(noised.labels)
        settings["boxes"], settings["is_padding"] = noised.boxes, noised.is_padding
        settings["group_size"] = noised.labels.shape[1] // denoising.num_groups
    if not settings:
        return None
    extra = ExtraQueries(num_queries, **settings)
    return TrainingQueries(extra, targets, hybrid, denoising, noised)


def check_agreement(
    denoising: Denoising | None,
    hybrid: HybridMatching | None,
    num_classes: int,
    embed_dim: int,
    two_stage: bool,
) -> None:
    """Raise a UserError if these parts were made for another model than the one described."""
    pairs = {}
    if denoising is not None:
        pairs["denoising.num_classes"] = (num_classes, denoising.num_classes)
        pairs["denoising.embed_dim"] = (embed_dim, denoising.label_embed.embedding_dim)
    if hybrid is not None:
        pairs["hybrid.embed_dim"] = (embed_dim, hybrid.embed_dim)
        pairs["hybrid.two_stage"] = (two_stage, hybrid.two_stage)
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise UserError(
                f"model.{name.split('.')[1]} is {ours} but model.{name} is {theirs}; set it once "
                "and interpolate it"
            )
    if denoising is not None and not two_stage:
        raise UserError(
            "model.denoising is set and model.two_stage False; noised boxes need queries that are "
            "boxes, so set model.two_stage=True and model.with_box_refine=True, or "
            "model.denoising=null"
        )
