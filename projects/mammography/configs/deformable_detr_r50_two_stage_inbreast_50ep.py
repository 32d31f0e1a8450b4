# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""INbreast: Deformable DETR, R50, two-stage, 50 epochs. Not trained here.

    python tools/prepare_data.py inbreast --root datasets/inbreast --out datasets/inbreast_coco
    python tools/prepare_data.py split datasets/inbreast_coco/annotations.json \\
        --out datasets/inbreast_coco/splits
    python tools/train_net.py --num-gpus 8 \\
        --config-file projects/mammography/configs/deformable_detr_r50_two_stage_inbreast_50ep.py

Classes: mass, calcification, calcification cluster, spiculated region, architectural
distortion, asymmetry.

Data: given by its authors on request, for research only; 410 images of 115 cases. Calcifications
of one point have no box unless ``--points`` gives them one. There is no official split.
"""

from .deformable_detr_r50_two_stage_mammography_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.num_classes = 6

dataloader.train.dataset.name = "inbreast_train"
dataloader.train.dataset.json_file = "datasets/inbreast_coco/splits/train.json"
dataloader.train.dataset.image_root = "datasets/inbreast"
dataloader.test.dataset.name = "inbreast_val"
dataloader.test.dataset.json_file = "datasets/inbreast_coco/splits/val.json"
dataloader.test.dataset.image_root = "${...train.dataset.image_root}"

train.output_dir = "output/deformable_detr_r50_two_stage_inbreast_50ep"
