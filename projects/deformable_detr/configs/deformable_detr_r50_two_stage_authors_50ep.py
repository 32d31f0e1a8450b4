# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Deformable DETR, R50, two-stage, with iterative box refinement, 50 epochs: the authors' recipe.

Settings and sources: ``deformable_detr_r50_authors_50ep.py``.
Not trained here; the authors report 46.9 box AP on COCO val2017 (README of their repository).
"""

from .deformable_detr_r50_authors_50ep import dataloader, lr_multiplier, model, optimizer, train

model.with_box_refine = True
model.two_stage = True

train.output_dir = "output/deformable_detr_r50_two_stage_authors_50ep"
