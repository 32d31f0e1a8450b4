# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""DMID: Deformable DETR, R50, two-stage, 50 epochs. Not trained here.

    python tools/prepare_data.py dmid --root datasets/dmid --out datasets/dmid_coco
    python tools/prepare_data.py split datasets/dmid_coco/annotations.json \\
        --out datasets/dmid_coco/splits
    python tools/train_net.py --num-gpus 8 \\
        --config-file projects/mammography/configs/deformable_detr_r50_two_stage_dmid_50ep.py

Classes: calcification, mass, architectural distortion, asymmetry, lesion.

Data: figshare, some 510 images; said to be CC BY 4.0, so read the licence there. "lesion" is what
a mask shows where its image has several classes. No patients are named: a split is by image.
"""

from .deformable_detr_r50_two_stage_mammography_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.num_classes = 5

dataloader.train.dataset.name = "dmid_train"
dataloader.train.dataset.json_file = "datasets/dmid_coco/splits/train.json"
dataloader.train.dataset.image_root = "datasets/dmid"
dataloader.test.dataset.name = "dmid_val"
dataloader.test.dataset.json_file = "datasets/dmid_coco/splits/val.json"
dataloader.test.dataset.image_root = "${...train.dataset.image_root}"

train.output_dir = "output/deformable_detr_r50_two_stage_dmid_50ep"
