# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Deformable DETR, R50, two-stage, with iterative box refinement, 50 epochs: detrex's recipe.

Settings and sources: ``deformable_detr_r50_50ep.py``.
Not trained here.
"""

from .deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.with_box_refine = True
model.two_stage = True

train.output_dir = "output/deformable_detr_r50_two_stage_50ep"
