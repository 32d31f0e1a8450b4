# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Deformable DETR, R50, single-scale DC5, 50 epochs: detrex's recipe.

The last feature map only, dilated to stride 16.
Settings and sources: ``deformable_detr_r50_50ep.py``.
detrex publishes no single-scale model: this is its recipe for the multi-scale one.
Not trained here.
"""

from .deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.in_features = ["res5"]
model.num_feature_levels = 1
model.backbone.dc5 = True

train.output_dir = "output/deformable_detr_r50_single_scale_dc5_50ep"
