# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""From raw predictions to detections.

B batch, Q queries, K classes.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from detrex_mammo.layers import at_least_float32, box_cxcywh_to_xyxy
from detrex_mammo.modeling.batching import to_device


def select_detections(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    topk: int,
    clip_boxes: bool = False,
) -> list[Instances]:
    """The highest scores over all queries and classes; no threshold, no suppression.

    Args:
        logits (Tensor): (B, Q, K).
        boxes_cxcywh (Tensor): (B, Q, 4), in [0, 1] of the unpadded image.
        image_sizes (Sequence[tuple[int, int]]): B pairs (height, width) that boxes are scaled to.
        topk (int): detections per image; all Q*K if there are fewer.
        clip_boxes (bool): cut boxes at the border. The published code does not.

    Returns:
        list[Instances]: for each image ``pred_boxes`` (xyxy pixels), ``scores`` (highest first)
        and ``pred_classes``.
    """
    num_classes = logits.shape[-1]
    scores = at_least_float32(logits).sigmoid().flatten(1)
    scores, places = scores.topk(min(topk, scores.shape[1]), dim=1)
    queries = places.div(num_classes, rounding_mode="floor")
    classes = places - queries * num_classes
    boxes = box_cxcywh_to_xyxy(at_least_float32(boxes_cxcywh))
    boxes = boxes.gather(1, queries[..., None].expand(-1, -1, 4))
    results = []
    for index, (height, width) in enumerate(image_sizes):
        scale = torch.tensor([width, height, width, height], dtype=boxes.dtype)
        image_boxes = Boxes(boxes[index] * to_device(scale, boxes.device))
        if clip_boxes:
            image_boxes.clip((height, width))
        result = Instances((height, width))
        result.pred_boxes = image_boxes
        result.scores = scores[index]
        result.pred_classes = classes[index]
        results.append(result)
    return results
