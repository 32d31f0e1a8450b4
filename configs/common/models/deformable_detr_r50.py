# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Deformable DETR with ResNet-50, multi-scale: every size as published.

https://arxiv.org/abs/2010.04159, main.py of github.com/fundamentalvision/Deformable-DETR, commit
11169a6. Variants import ``model`` from here relatively and change a few fields; a number that two
parts must agree on is written once and interpolated.
"""

from detectron2.config import LazyCall as L

from detrex_mammo.modeling.backbone import build_resnet
from detrex_mammo.modeling.criterion import SetCriterion
from detrex_mammo.modeling.detector import DeformableDETR
from detrex_mammo.modeling.matcher import HungarianMatcher
from detrex_mammo.modeling.transformer import DeformableTransformer

model = L(DeformableDETR)(
    backbone=L(build_resnet)(
        depth=50,
        out_features="${..in_features}",
        freeze_at=2,  # stem and first stage; 1 (detrex) freezes the stem only
        norm="FrozenBN",
        dc5=False,
        checkpointing=False,  # as encoder_checkpointing, stage by stage
    ),
    in_features=["res3", "res4", "res5"],
    transformer=L(DeformableTransformer)(
        embed_dim="${..embed_dim}",
        num_heads=8,
        num_encoder_layers=6,
        num_decoder_layers=6,
        feedforward_dim=1024,
        dropout=0.1,
        num_feature_levels="${..num_feature_levels}",
        num_encoder_points=4,
        num_decoder_points=4,
        two_stage="${..two_stage}",
        num_queries="${..num_queries}",
        encoder_checkpointing=False,  # True: less memory for more time
        decoder_checkpointing=False,
    ),
    criterion=L(SetCriterion)(
        num_classes="${..num_classes}",
        matcher=L(HungarianMatcher)(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0),
        weight_class=2.0,  # the paper's; 1.0 is detrex's
        weight_bbox=5.0,
        weight_giou=2.0,
        focal_alpha=0.25,
        focal_gamma=2.0,
        iou_power=0.0,  # above 0: ask for a score of IoU ** iou_power where it is 1 now
    ),
    num_classes=80,
    num_queries=300,
    num_feature_levels=4,
    embed_dim=256,
    aux_loss=True,
    with_box_refine=False,
    two_stage=False,
    inverse_sigmoid_eps=1e-5,  # weights that detrex trained need 1e-3, all others 1e-5
    topk=100,  # published; detrex keeps 300
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],  # null for both: each image's own
    tiles=None,  # L(Tiles)(height=..., width=...): detect in overlapping tiles
    # L(TestTimeAugmentation)(flips=["none", "vertical"], scales=[1.0, 1.2]): detect in versions
    test_time_augmentation=None,
    denoising=None,  # queries of training only: L(Denoising)(...), see ..._two_stage_dn_50ep.py
    hybrid=None,  # the same: L(HybridMatching)(...), see ..._two_stage_hybrid_12ep.py
)
