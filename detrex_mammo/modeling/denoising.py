# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Denoising queries of DN-DETR, https://arxiv.org/abs/2203.01305, contrastive as in DINO's.

In training, boxes of the batch with noise on them go through the decoder beside the queries of
inference and are to be put right; nothing has to be matched, so that learning is steadier.

B batch, G groups, T target boxes of one image, N the most of them in a group, D = G*N or, when
contrastive, 2*G*N queries, C channels, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from detrex_mammo.errors import UserError
from detrex_mammo.layers import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from detrex_mammo.modeling.batching import to_device
from detrex_mammo.modeling.matcher import Matching
from detrex_mammo.modeling.query_groups import LossGroup, Outputs, is_amount, is_count


@dataclass(frozen=True)
class NoisedBoxes:
    """The denoising queries of a batch.

    Attributes:
        labels: (B, D) int64, with noise; 0 on padding.
        boxes: (B, D, 4) cxcywh in [0, 1], with noise; 0 on padding.
        is_padding: (B, D), True where a query stands for no box; None if all do.
        places: (2, M) int64, image and query of the M that stand for a box, as :meth:`select`
            puts them.
        matching: of those M the places of the ones to be put right, and the numbers of their boxes
            among all boxes of the batch.
    """

    labels: Tensor
    boxes: Tensor
    is_padding: Tensor | None
    places: Tensor
    matching: Matching

    def select(self, outputs: Outputs) -> Outputs:
        """Predictions (B, D, ...) of each layer to those of real queries, as one image's."""
        image, query = self.places.unbind(0)
        return [{name: t[image, query][None] for name, t in layer.items()} for layer in outputs]


class Denoising(nn.Module):
    """Makes denoising queries; for two-stage models, whose queries are boxes.

    A query's content is the embedding of its label; its position is embedded as a proposal's is.
    Each image has its own noise, whatever else is in the batch, drawn on the host one image after
    another: a batch has the losses of its images.

    Args:
        num_classes (int): K; the same as the model's.
        embed_dim (int): C; the same as the model's.
        num_groups (int): G; each holds every box once, with other noise. 5 in DN-DETR.
        boxes_per_group (int): of an image with more boxes, each group takes so many at random. It
            bounds D, which in DINO is at most 200 but for images with over 100 boxes. The losses
            are still divided by all boxes.
        label_noise (float): probability that a label is drawn anew from all K; DINO's
            ``label_noise_ratio`` of 0.5 is 0.25 here.
        box_noise (float): each side of a box moves by up to this share of half the box's size, in
            or out.
        contrastive (bool): each group also holds every box moved by one to two times that share,
            to be told from an object.
        weight (float): of the losses.

    Attributes:
        room (int): N is at least this.
    """

    room = 1  # a query, as padding if need be, so that the embedding has a gradient

    def __init__(
        self,
        num_classes: int,
        embed_dim: int,
        num_groups: int = 5,
        boxes_per_group: int = 20,
        label_noise: float = 0.25,
        box_noise: float = 1.0,
        contrastive: bool = True,
        weight: float = 1.0,
    ):
        super().__init__()
        if not (is_count(num_groups) and is_count(boxes_per_group)):
            raise UserError(
                f"num_groups of the denoising queries is {num_groups} and boxes_per_group "
                f"{boxes_per_group}; both must be whole numbers of at least 1; without denoising "
                "set model.denoising=null"
            )
        if not (is_amount(label_noise, 1) and is_amount(box_noise, 1) and is_amount(weight)):
            raise UserError(
                f"label_noise of the denoising queries is {label_noise}, box_noise {box_noise} and "
                f"weight {weight}; the first two must be in [0, 1] and the last not negative"
            )
        self.num_classes = num_classes
        self.num_groups = num_groups
        self.boxes_per_group = boxes_per_group
        self.label_noise = label_noise
        self.box_noise = box_noise
        self.num_kinds = 2 if contrastive else 1
        self.weight = weight
        self.label_embed = nn.Embedding(num_classes, embed_dim)

    def forward(self, targets: Sequence[dict[str, Tensor]]) -> NoisedBoxes:
        """Noised boxes of a batch.

        A group is N queries to be put right and, when contrastive, N to be told from objects.

        Args:
            targets (Sequence[dict]): B images, each ``labels`` (T,) and ``boxes`` (T, 4) cxcywh.

        Returns:
            NoisedBoxes: on the targets' device.
        """
        counts = [min(len(target["labels"]), self.boxes_per_group) for target in targets]
        most = max(self.room, *counts)
        shape = (len(targets), self.num_groups, self.num_kinds, most)
        labels = targets[0]["labels"].new_zeros(shape)
        boxes = targets[0]["boxes"].new_zeros((*shape, 4))
        is_real = np.zeros(shape, dtype=bool)
        chosen = np.zeros(shape, dtype=np.int64)
        start = 0
        for image, (target, count) in enumerate(zip(targets, counts)):
            total = len(target["labels"])
            if count:
                picks = self._choose(total, count)
                noised = self._noised(target["labels"], target["boxes"], picks)
                labels[image, ..., :count], boxes[image, ..., :count, :] = noised
                chosen[image, ..., :count] = picks[:, None] + start
                is_real[image, ..., :count] = True
            start += total
        device = labels.device
        image, query = np.nonzero(is_real.reshape(len(targets), -1))
        is_positive = np.zeros(shape, dtype=bool)
        is_positive[:, :, 0] = True
        positive = np.nonzero(is_positive[is_real])[0]
        is_padding = torch.from_numpy(~is_real).flatten(1)
        return NoisedBoxes(
            labels.flatten(1),
            boxes.flatten(1, 3),
            to_device(is_padding, device) if min(counts) < most else None,
            to_device(torch.from_numpy(np.stack((image, query))), device),
            [(positive, chosen[is_real & is_positive])],
        )

    def loss_group(
        self, noised: NoisedBoxes, outputs: Outputs, targets: Sequence[dict[str, Tensor]]
    ) -> LossGroup:
        """Predictions from denoising queries with the boxes they came from; padding left out."""
        together = {name: torch.cat([t[name] for t in targets]) for name in ("labels", "boxes")}
        return LossGroup(
            noised.select(outputs), [together], "_dn", noised.matching, self.num_groups, self.weight
        )

    def _choose(self, total: int, count: int) -> np.ndarray:
        """(G, count), which of an image's boxes each group takes."""
        if count == total:
            return np.tile(np.arange(total), (self.num_groups, 1))
        return torch.rand(self.num_groups, total).argsort(1)[:, :count].numpy()

    def _noised(self, labels: Tensor, boxes: Tensor, picks: np.ndarray) -> tuple[Tensor, Tensor]:
        """Labels (T,) and boxes (T, 4) to (G, 1 or 2, N) and (G, 1 or 2, N, 4)."""
        device = labels.device
        draws = torch.rand(len(picks), self.num_kinds, picks.shape[1], 10)  # the host's generator
        change, label, amount, sign = to_device(draws, device).split((1, 1, 4, 4), dim=-1)
        picks = to_device(torch.from_numpy(picks), device)[:, None].expand(-1, self.num_kinds, -1)
        labels, boxes = labels[picks], boxes[picks]
        drawn = (label[..., 0] * self.num_classes).long()
        labels = torch.where(change[..., 0] < self.label_noise, drawn, labels)
        is_negative = torch.arange(self.num_kinds, device=device)[:, None, None]
        half_size = boxes[..., 2:].repeat(1, 1, 1, 2) / 2
        moved = torch.where(sign < 0.5, -1, 1) * (amount + is_negative) * half_size
        corners = (box_cxcywh_to_xyxy(boxes) + self.box_noise * moved).clamp(0, 1)
        # Sides that have passed each other leave a box without size.
        return labels, box_xyxy_to_cxcywh(corners).clamp(0, 1)
