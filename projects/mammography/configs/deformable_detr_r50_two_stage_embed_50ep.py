# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""EMBED Open Data: Deformable DETR, R50, two-stage, 50 epochs. Not trained here.

    python tools/prepare_data.py embed --root datasets/embed --out datasets/embed_coco
    python tools/prepare_data.py split datasets/embed_coco/annotations.json \\
        --out datasets/embed_coco/splits
    python tools/train_net.py --num-gpus 8 \\
        --config-file projects/mammography/configs/deformable_detr_r50_two_stage_embed_50ep.py

Classes: lesion.

Data: Emory's EMBED, 20 % of it as AWS Open Data after registration; the licence is stated there.
A region is not linked to a finding, so there is one class. There is no official split.
"""

from .deformable_detr_r50_two_stage_mammography_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.num_classes = 1

dataloader.train.dataset.name = "embed_train"
dataloader.train.dataset.json_file = "datasets/embed_coco/splits/train.json"
dataloader.train.dataset.image_root = "datasets/embed"
dataloader.test.dataset.name = "embed_val"
dataloader.test.dataset.json_file = "datasets/embed_coco/splits/val.json"
dataloader.test.dataset.image_root = "${...train.dataset.image_root}"

train.output_dir = "output/deformable_detr_r50_two_stage_embed_50ep"
