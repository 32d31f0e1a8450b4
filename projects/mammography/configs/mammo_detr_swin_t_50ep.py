# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""In the style of Mammo-DETR: Swin-T, one feature level, 3 encoder layers, 170 queries.

Xu et al., MELBA 2025:009, studied which parts of Deformable DETR help on mammography: a deep
encoder, several levels and box refinement do not. Numbers of the model and its loss are those of
the released settings, https://github.com/nyukat/Mammo-DETR, commit a4d0c77,
``src/configs/deformable_swin.gin``, and of the defaults that these leave alone; the matcher has the
weights of the loss there. Input of 2944 x 1920 pixels, each image normalised by its own mean and
deviation, grey copied to three channels. Not told there and ours: learning rates, schedule,
augmentation, and a Swin-T that starts from ImageNet.

    pip install timm
    python tools/train_net.py --num-gpus 8 \\
        --config-file projects/mammography/configs/mammo_detr_swin_t_50ep.py \\
        dataloader.train.dataset.json_file=train.json dataloader.train.dataset.image_root=images \\
        dataloader.test.dataset.json_file=val.json dataloader.test.dataset.image_root=images \\
        model.num_classes=2

Not trained here.
"""

from detectron2.config import LazyCall as L

from detrex_mammo.modeling.backbone import TimmBackbone

from ....configs.common.models.deformable_detr_r50 import model
from .deformable_detr_r50_two_stage_high_resolution_50ep import (
    dataloader,
    lr_multiplier,
    optimizer,
    train,
)

model.backbone = L(TimmBackbone)(
    model_name="swin_tiny_patch4_window7_224",
    out_indices=[3],
    pretrained=True,  # on ImageNet, fetched by timm; False: from scratch
)
model.in_features = ["p3"]
model.pixel_mean = None
model.pixel_std = None
model.num_feature_levels = 1
model.transformer.num_encoder_layers = 3
model.num_classes = 2  # benign and malignant
model.num_queries = 170
model.topk = 50

model.criterion.weight_class = 0.85
model.criterion.weight_bbox = 1.0
model.criterion.weight_giou = 0.47
model.criterion.focal_alpha = 0.2
model.criterion.focal_gamma = 2.14
model.criterion.matcher.cost_class = "${..weight_class}"
model.criterion.matcher.cost_bbox = "${..weight_bbox}"
model.criterion.matcher.cost_giou = "${..weight_giou}"
model.criterion.matcher.focal_alpha = "${..focal_alpha}"
model.criterion.matcher.focal_gamma = "${..focal_gamma}"

optimizer.lr = 1e-4

train.init_checkpoint = ""
train.output_dir = "output/mammo_detr_swin_t_50ep"
