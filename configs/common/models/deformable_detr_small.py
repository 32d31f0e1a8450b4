# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A small two-stage Deformable DETR for grey images, trained from scratch on a CPU.

ResNet-18 of half width with batch norm (nothing frozen: there are no weights to keep), 3 levels,
128 channels, 2 + 3 layers, 30 queries.
"""

from .deformable_detr_r50 import model

model.backbone.depth = 18
model.backbone.stem_out_channels = 32
model.backbone.res2_out_channels = 32
model.backbone.freeze_at = 0
model.backbone.norm = "BN"

model.embed_dim = 128
model.transformer.num_encoder_layers = 2
model.transformer.num_decoder_layers = 3
model.transformer.feedforward_dim = 512
model.transformer.dropout = 0.0
model.num_queries = 30
model.num_feature_levels = 3
model.with_box_refine = True
model.two_stage = True
model.topk = 60

# Grey values of a breast on black, the same in the three channels.
model.pixel_mean = [50.0, 50.0, 50.0]
model.pixel_std = [60.0, 60.0, 60.0]
