# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Deformable DETR, R50, two-stage, with denoising queries in training, 50 epochs: detrex's recipe.

Denoising as in DN-DETR (https://arxiv.org/abs/2203.01305) with the contrastive groups of DINO
(https://arxiv.org/abs/2203.03605). Other settings and sources: ``deformable_detr_r50_50ep.py``.

Not trained here, and nobody published this very model: DN-DETR builds on learned anchors and
reports 43.4 box AP on COCO val2017 after 12 and 48.6 after 50 epochs with R50 (its abstract).
"""

from detectron2.config import LazyCall as L

from detrex_mammo.modeling.denoising import Denoising

from .deformable_detr_r50_two_stage_50ep import dataloader, lr_multiplier, model, optimizer, train

model.denoising = L(Denoising)(
    num_classes="${..num_classes}",
    embed_dim="${..embed_dim}",
    num_groups=5,
    boxes_per_group=20,
    label_noise=0.25,
    box_noise=1.0,
    contrastive=True,
    weight=1.0,
)

train.output_dir = "output/deformable_detr_r50_two_stage_dn_50ep"
