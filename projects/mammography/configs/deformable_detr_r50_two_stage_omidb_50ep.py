# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""OMI-DB (OPTIMAM): Deformable DETR, R50, two-stage, 50 epochs. Not trained here.

    python tools/prepare_data.py omi-db --root datasets/omidb --out datasets/omidb_coco
    python tools/prepare_data.py split datasets/omidb_coco/annotations.json \\
        --out datasets/omidb_coco/splits
    python tools/train_net.py --num-gpus 8 \\
        --config-file projects/mammography/configs/deformable_detr_r50_two_stage_omidb_50ep.py

Classes: mass, calcification, architectural distortion, asymmetry, other.

Data: the OPTIMAM database of the United Kingdom, by application; the terms come with it. The
converter needs ``pip install omidb``. There is no official split.
"""

from .deformable_detr_r50_two_stage_mammography_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.num_classes = 5

dataloader.train.dataset.name = "omidb_train"
dataloader.train.dataset.json_file = "datasets/omidb_coco/splits/train.json"
dataloader.train.dataset.image_root = "datasets/omidb"
dataloader.test.dataset.name = "omidb_val"
dataloader.test.dataset.json_file = "datasets/omidb_coco/splits/val.json"
dataloader.test.dataset.image_root = "${...train.dataset.image_root}"

train.output_dir = "output/deformable_detr_r50_two_stage_omidb_50ep"
