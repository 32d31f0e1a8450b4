# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""CSAW-CC: Deformable DETR, R50, two-stage, 50 epochs. Not trained here.

    python tools/prepare_data.py csaw-cc --root datasets/csaw_cc --out datasets/csaw_cc_coco
    python tools/prepare_data.py split datasets/csaw_cc_coco/annotations.json \\
        --out datasets/csaw_cc_coco/splits
    python tools/train_net.py --num-gpus 8 \\
        --config-file projects/mammography/configs/deformable_detr_r50_two_stage_csaw_cc_50ep.py

Classes: cancer.

Data: researchdata.se, on request from the Karolinska Institute; outlines of the cancers of one
centre by one radiologist. There is no official split.
"""

from .deformable_detr_r50_two_stage_mammography_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.num_classes = 1

dataloader.train.dataset.name = "csaw_cc_train"
dataloader.train.dataset.json_file = "datasets/csaw_cc_coco/splits/train.json"
dataloader.train.dataset.image_root = "datasets/csaw_cc"
dataloader.test.dataset.name = "csaw_cc_val"
dataloader.test.dataset.json_file = "datasets/csaw_cc_coco/splits/val.json"
dataloader.test.dataset.image_root = "${...train.dataset.image_root}"

train.output_dir = "output/deformable_detr_r50_two_stage_csaw_cc_50ep"
