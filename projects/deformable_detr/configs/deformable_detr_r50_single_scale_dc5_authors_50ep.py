# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Deformable DETR, R50, single-scale DC5, 50 epochs: the authors' recipe.

The last feature map only, dilated to stride 16.
Settings and sources: ``deformable_detr_r50_authors_50ep.py``.
Not trained here; the authors report 41.5 box AP on COCO val2017 (README of their repository).
"""

from .deformable_detr_r50_authors_50ep import dataloader, lr_multiplier, model, optimizer, train

model.in_features = ["res5"]
model.num_feature_levels = 1
model.backbone.dc5 = True

train.output_dir = "output/deformable_detr_r50_single_scale_dc5_authors_50ep"
