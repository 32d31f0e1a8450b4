# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""BCS-DBT: Deformable DETR, R50, two-stage, 50 epochs. Not trained here.

    python tools/prepare_data.py bcs-dbt --root datasets/bcs_dbt --out datasets/bcs_dbt_coco
    python tools/train_net.py --num-gpus 8 \\
        --config-file projects/mammography/configs/deformable_detr_r50_two_stage_bcs_dbt_50ep.py

Classes: benign, cancer.

Data: The Cancer Imaging Archive, doi 10.7937/E4WT-CD02 (1.6 TB); said to be CC BY-NC 4.0, so read
the licence there. The annotated slices of the volumes become 16-bit PNG; test.json is kept apart.
"""

from .deformable_detr_r50_two_stage_mammography_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.num_classes = 2

dataloader.train.dataset.name = "bcs_dbt_train"
dataloader.train.dataset.json_file = "datasets/bcs_dbt_coco/train.json"
dataloader.train.dataset.image_root = "datasets/bcs_dbt_coco"
dataloader.test.dataset.name = "bcs_dbt_val"
dataloader.test.dataset.json_file = "datasets/bcs_dbt_coco/val.json"
dataloader.test.dataset.image_root = "${...train.dataset.image_root}"

train.output_dir = "output/deformable_detr_r50_two_stage_bcs_dbt_50ep"
