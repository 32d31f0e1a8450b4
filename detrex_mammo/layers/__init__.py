# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Tensors in, tensors out."""

from detrex_mammo.layers.activation import (
    at_least_float32,
    in_own_precision,
    inverse_sigmoid,
    without_autocast,
)
from detrex_mammo.layers.boxes import (
    box_area,
    box_cxcywh_to_xyxy,
    box_iou,
    box_xyxy_to_cxcywh,
    elementwise_box_iou,
    elementwise_generalized_box_iou,
    generalized_box_iou,
)
from detrex_mammo.layers.chunks import in_chunks
from detrex_mammo.layers.dropout import Dropout
from detrex_mammo.layers.feed_forward import feed_forward
from detrex_mammo.layers.mlp import MLP
from detrex_mammo.layers.multi_scale_deformable_attention import MultiScaleDeformableAttention
from detrex_mammo.layers.normalization import group_norm
from detrex_mammo.layers.position_embedding import (
    SinePositionEmbedding,
    box_sine_embedding,
    sine_embedding,
)

__all__ = [
    "MLP",
    "Dropout",
    "MultiScaleDeformableAttention",
    "SinePositionEmbedding",
    "at_least_float32",
    "box_area",
    "box_cxcywh_to_xyxy",
    "box_iou",
    "box_sine_embedding",
    "box_xyxy_to_cxcywh",
    "elementwise_box_iou",
    "elementwise_generalized_box_iou",
    "feed_forward",
    "generalized_box_iou",
    "group_norm",
    "in_chunks",
    "in_own_precision",
    "inverse_sigmoid",
    "sine_embedding",
    "without_autocast",
]
