# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Deformable DETR, R50, two-stage, with hybrid matching (H-DETR), 12 epochs: detrex's recipe.

1500 further queries in training, each box six times a target for them, weight 1
(https://arxiv.org/abs/2207.13080). Other settings and sources: ``deformable_detr_r50_50ep.py``.

Not trained here. The authors of H-DETR report 48.7 box AP on COCO val2017 (their baseline: 47.0)
with three tricks that are not in this model but for the first, set below: no dropout, mixed query
selection, look forward twice. README of github.com/HDETR/H-Deformable-DETR, commit 01cd25b.
"""

from detectron2.config import LazyCall as L

from detrex_mammo.modeling.hybrid_matching import HybridMatching

from ....configs.common.schedule import lr_multiplier_12ep as lr_multiplier
from .deformable_detr_r50_two_stage_50ep import dataloader, model, optimizer, train

model.hybrid = L(HybridMatching)(
    embed_dim="${..embed_dim}",
    two_stage="${..two_stage}",
    num_queries_one2many=1500,
    k_one2many=6,
    lambda_one2many=1.0,
)
model.transformer.dropout = 0.0

train.epochs = 12
train.output_dir = "output/deformable_detr_r50_two_stage_hybrid_12ep"
