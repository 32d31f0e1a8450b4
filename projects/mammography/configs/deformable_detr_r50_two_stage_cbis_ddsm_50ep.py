# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""CBIS-DDSM: Deformable DETR, R50, two-stage, 50 epochs. Not trained here.

    python tools/prepare_data.py cbis-ddsm --root datasets/cbis_ddsm --out datasets/cbis_ddsm_coco
    python tools/train_net.py --num-gpus 8 \\
        --config-file projects/mammography/configs/deformable_detr_r50_two_stage_cbis_ddsm_50ep.py

Classes: mass, calcification.

Data: The Cancer Imaging Archive, collection CBIS-DDSM (164 GB, films as DICOM), CC BY 3.0. It has
no normal films: false positives are counted on abnormal ones only.
"""

from .deformable_detr_r50_two_stage_mammography_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.num_classes = 2

dataloader.train.dataset.name = "cbis_ddsm_train"
dataloader.train.dataset.json_file = "datasets/cbis_ddsm_coco/train.json"
dataloader.train.dataset.image_root = "datasets/cbis_ddsm"
dataloader.test.dataset.name = "cbis_ddsm_test"
dataloader.test.dataset.json_file = "datasets/cbis_ddsm_coco/test.json"
dataloader.test.dataset.image_root = "${...train.dataset.image_root}"

train.output_dir = "output/deformable_detr_r50_two_stage_cbis_ddsm_50ep"
