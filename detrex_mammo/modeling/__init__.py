# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Backbone adapters, neck, transformer, detector, matcher and criterion; free of configs."""

from detrex_mammo.modeling.backbone import RESNET_DEPTHS, TimmBackbone, build_resnet
from detrex_mammo.modeling.criterion import SetCriterion
from detrex_mammo.modeling.denoising import Denoising
from detrex_mammo.modeling.detector import DeformableDETR
from detrex_mammo.modeling.hybrid_matching import HybridMatching
from detrex_mammo.modeling.matcher import HungarianMatcher
from detrex_mammo.modeling.postprocessing import select_detections
from detrex_mammo.modeling.transformer import DeformableTransformer

__all__ = [
    "RESNET_DEPTHS",
    "DeformableDETR",
    "DeformableTransformer",
    "Denoising",
    "HungarianMatcher",
    "HybridMatching",
    "SetCriterion",
    "TimmBackbone",
    "build_resnet",
    "select_detections",
]
