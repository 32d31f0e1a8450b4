# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The loss of Deformable DETR over all decoder layers and the encoder's proposals.

B batch, Q queries, K classes, T target boxes of one image, N matched pairs of the batch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from detrex_mammo.errors import UserError
from detrex_mammo.layers import at_least_float32, box_cxcywh_to_xyxy, elementwise_box_iou
from detrex_mammo.modeling.batching import to_device
from detrex_mammo.modeling.losses import giou_loss, l1_loss, sigmoid_focal_loss
from detrex_mammo.modeling.matcher import HungarianMatcher, Matching
from detrex_mammo.modeling.query_groups import LossGroup


class SetCriterion(nn.Module):
    """Focal, L1 and GIoU loss of matched predictions; each layer is matched anew.

    Computed in at least float32 whatever the autocast. Auxiliary and encoder losses have the same
    weights; which of them there are follows from the predictions.

    Args:
        num_classes (int): K, without background.
        matcher (HungarianMatcher): assigns predictions to targets.
        weight_class (float): of the focal loss; 2 is published, 1 is detrex's shipped config.
        weight_bbox (float): of the L1 loss.
        weight_giou (float): of the GIoU loss.
        focal_alpha (float): see :func:`sigmoid_focal_loss`.
        focal_gamma (float): see :func:`sigmoid_focal_loss`.
        iou_power (float): above 0, the score asked of a matched prediction is its IoU with the
            target to this power instead of 1: where a box is off, as from a loosely drawn one it
            always is, less confidence is asked for. 2 in the position-supervised loss of
            https://arxiv.org/abs/2304.04742, whose code also scales the scores of an image up to a
            best of 1; here they are not, as that would undo it where an image has one box.
            Published for steadier matching; nobody has measured it on noisy labels.

    Attributes:
        num_boxes (float, optional): what the losses are divided by; None, as published, is the
            number of boxes of the batch over all processes. Whoever sums over several batches
            sets it to 1 and divides by the boxes of all of them.
    """

    num_boxes: float | None = None

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weight_class: float = 2.0,
        weight_bbox: float = 5.0,
        weight_giou: float = 2.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        iou_power: float = 0.0,
    ):
        super().__init__()
        if iou_power < 0:
            raise UserError(
                f"iou_power of the criterion is {iou_power}; it must not be negative (0: the score "
                "asked of every matched prediction is 1)"
            )
        if not 0 <= focal_alpha <= 1:
            raise UserError(f"focal_alpha of the criterion is {focal_alpha}; it must be 0 to 1")
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_class = weight_class
        self.weight_bbox = weight_bbox
        self.weight_giou = weight_giou
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.iou_power = iou_power

    def forward(
        self,
        layer_outputs: Sequence[dict[str, Tensor]],
        encoder_output: dict[str, Tensor] | None,
        targets: Sequence[dict[str, Tensor]],
        groups: Sequence[LossGroup] = (),
    ) -> dict[str, Tensor]:
        """All losses, weighted.

        Args:
            layer_outputs (Sequence[dict]): predictions of decoder layers, the last one last, each
                ``pred_logits`` (B, Q, K) and ``pred_boxes`` (B, Q, 4) cxcywh in [0, 1].
            encoder_output (dict, optional): the same of the encoder's proposals; for its loss every
                target has label 0, which makes class channel 0 the score of "an object".
            targets (Sequence[dict]): B images, each ``labels`` (T,) int64 in [0, K) and ``boxes``
                (T, 4) cxcywh, normalised by the unpadded image; T may be 0, for all of them too.
            groups (Sequence[LossGroup]): predictions from queries that only training has.

        Returns:
            dict[str, Tensor]: ``loss_class``, ``loss_bbox``, ``loss_giou`` of the last layer, with
            suffix ``_0``, ``_1``, ... of the layers before it and ``_enc`` of the encoder; the same
            of each group, with its suffix before that.
        """
        all_groups = [LossGroup(layer_outputs, targets)]
        if encoder_output is not None:
            objects = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
            all_groups.append(LossGroup([encoder_output], objects, "_enc"))
        all_groups += groups
        device = layer_outputs[0]["pred_logits"].device
        losses = {}
        with torch.autocast(device.type, enabled=False):
            num_boxes = self.num_boxes
            if num_boxes is None:
                num_boxes = global_num_boxes(sum(len(t["labels"]) for t in targets), device)
            for group, matchings in zip(all_groups, self._match(all_groups)):
                scale = group.weight / group.copies
                for index, (output, matching) in enumerate(zip(group.outputs, matchings)):
                    layer = "" if index == len(group.outputs) - 1 else f"_{index}"
                    terms = self._losses(output, group.targets, matching, num_boxes)
                    for name, value in terms.items():
                        losses[name + group.suffix + layer] = value if scale == 1 else value * scale
        return losses

    def _match(self, groups: Sequence[LossGroup]) -> list[list[Matching]]:
        """For each group a matching of each layer; the matcher is asked once, for all together."""
        asked = [(output, g.targets) for g in groups if g.matching is None for output in g.outputs]
        found = iter(self.matcher(*zip(*asked)))
        return [[group.matching or next(found) for _ in group.outputs] for group in groups]

    def _losses(self, output, targets, matching: Matching, num_boxes) -> dict[str, Tensor]:
        logits = at_least_float32(output["pred_logits"])
        boxes = at_least_float32(output["pred_boxes"])
        image, query, target = flat_indices(matching, targets, logits.device)
        target_boxes = torch.cat([t["boxes"] for t in targets]).to(boxes)[target]
        labels = torch.cat([t["labels"] for t in targets])[target]
        is_class = torch.zeros_like(logits)
        is_class[image, query, labels] = 1
        boxes = boxes[image, query]
        quality = None
        if self.iou_power:
            overlap = elementwise_box_iou(
                box_cxcywh_to_xyxy(boxes.detach()), box_cxcywh_to_xyxy(target_boxes)
            )
            quality = torch.zeros_like(logits)
            quality[image, query, labels] = overlap**self.iou_power
        focal = sigmoid_focal_loss(logits, is_class, self.focal_alpha, self.focal_gamma, quality)
        return {
            "loss_class": self.weight_class * focal / num_boxes,
            "loss_bbox": self.weight_bbox * l1_loss(boxes, target_boxes) / num_boxes,
            "loss_giou": self.weight_giou * giou_loss(boxes, target_boxes) / num_boxes,
        }


def flat_indices(matching: Matching, targets, device: torch.device) -> tuple[Tensor, ...]:
    """Where the N matched pairs of a batch are.

    Args:
        matching (Matching): B pairs of arrays (queries, targets).
        targets (Sequence[dict]): B images with ``labels`` (T,).
        device (torch.device): of the result.

    Returns:
        tuple[Tensor, Tensor, Tensor]: (N,) int64 each: the image, the query inside its image, the
        target inside all targets of the batch one after another. One copy, not waited for.
    """
    columns, start = [np.zeros((3, 0), dtype=np.int64)], 0
    for image, (queries, chosen) in enumerate(matching):
        columns.append(np.stack((np.full_like(queries, image), queries, chosen + start)))
        start += len(targets[image]["labels"])
    indices = torch.from_numpy(np.concatenate(columns, axis=1))
    return to_device(indices, device).unbind(0)


def global_num_boxes(count: int, device: torch.device) -> Tensor | float:
    """Number of target boxes per rank: the mean over all ranks, at least 1.

    Args:
        count (int): boxes of this rank.
        device (torch.device): where ranks can exchange numbers.

    Returns:
        Tensor or float: (), so that losses averaged over ranks are the losses of the whole batch.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return max(float(count), 1.0)
    total = torch.full((), float(count), device=device)
    torch.distributed.all_reduce(total)
    return (total / torch.distributed.get_world_size()).clamp(min=1)
