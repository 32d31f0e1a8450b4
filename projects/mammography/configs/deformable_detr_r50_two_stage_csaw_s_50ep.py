# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""CSAW-S: Deformable DETR, R50, two-stage, 50 epochs. Not trained here.

    python tools/prepare_data.py csaw-s --root datasets/csaw_s --out datasets/csaw_s_coco
    python tools/train_net.py --num-gpus 8 \\
        --config-file projects/mammography/configs/deformable_detr_r50_two_stage_csaw_s_50ep.py

Classes: cancer.

Data: Zenodo record 4030660, CC BY-NC-ND 4.0; 172 patients, masks of cancers and tissues as PNG.
The authors' validation patients become val.json where their list is in the folder.
"""

from .deformable_detr_r50_two_stage_mammography_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.num_classes = 1

dataloader.train.dataset.name = "csaw_s_train"
dataloader.train.dataset.json_file = "datasets/csaw_s_coco/train.json"
dataloader.train.dataset.image_root = "datasets/csaw_s"
dataloader.test.dataset.name = "csaw_s_test"
dataloader.test.dataset.json_file = "datasets/csaw_s_coco/test.json"
dataloader.test.dataset.image_root = "${...train.dataset.image_root}"

train.output_dir = "output/deformable_detr_r50_two_stage_csaw_s_50ep"
