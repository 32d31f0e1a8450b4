# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""mini-MIAS: Deformable DETR, R50, two-stage, 50 epochs. Not trained here.

    python tools/prepare_data.py mini-mias --root datasets/mini_mias --out datasets/mini_mias_coco
    python tools/prepare_data.py split datasets/mini_mias_coco/annotations.json \\
        --out datasets/mini_mias_coco/splits
    python tools/train_net.py --num-gpus 8 \\
        --config-file projects/mammography/configs/deformable_detr_r50_two_stage_mini_mias_50ep.py

Classes: calcification, mass, architectural distortion, asymmetry.

Data: the Mammographic Image Analysis Society's 322 films at 0.2 mm a pixel, under its research
licence agreement. There is no official split.
"""

from .deformable_detr_r50_two_stage_mammography_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.num_classes = 4

dataloader.train.dataset.name = "mini_mias_train"
dataloader.train.dataset.json_file = "datasets/mini_mias_coco/splits/train.json"
dataloader.train.dataset.image_root = "datasets/mini_mias"
dataloader.test.dataset.name = "mini_mias_val"
dataloader.test.dataset.json_file = "datasets/mini_mias_coco/splits/val.json"
dataloader.test.dataset.image_root = "${...train.dataset.image_root}"

train.output_dir = "output/deformable_detr_r50_two_stage_mini_mias_50ep"
