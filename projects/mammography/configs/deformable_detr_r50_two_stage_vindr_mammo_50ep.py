# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""VinDr-Mammo: Deformable DETR, R50, two-stage, 50 epochs. Not trained here.

    python tools/prepare_data.py vindr-mammo --root datasets/vindr_mammo \\
        --out datasets/vindr_mammo_coco
    python tools/train_net.py --num-gpus 8 \\
        --config-file \\
        projects/mammography/configs/deformable_detr_r50_two_stage_vindr_mammo_50ep.py

Classes: Mass, Suspicious Calcification, Architectural Distortion, Focal Asymmetry, Asymmetry,
Global Asymmetry, Suspicious Lymph Node, Skin Thickening, Nipple Retraction, Skin Retraction.

Data: PhysioNet, vindr-mammo 1.0.0, restricted access (register and sign its agreement); 20,000
images of 5,000 studies, most of them normal.
"""

from .deformable_detr_r50_two_stage_mammography_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.num_classes = 10

dataloader.train.dataset.name = "vindr_mammo_train"
dataloader.train.dataset.json_file = "datasets/vindr_mammo_coco/train.json"
dataloader.train.dataset.image_root = "datasets/vindr_mammo"
dataloader.test.dataset.name = "vindr_mammo_test"
dataloader.test.dataset.json_file = "datasets/vindr_mammo_coco/test.json"
dataloader.test.dataset.image_root = "${...train.dataset.image_root}"

train.output_dir = "output/deformable_detr_r50_two_stage_vindr_mammo_50ep"
