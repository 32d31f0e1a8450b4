# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Deformable DETR, R50, two-stage, in tiles of 1024 x 1024 pixels of 0.1 mm, 50 epochs.

For lesions that the whole image would lose, on a GPU that cannot hold it. Every image is brought to
0.1 mm per pixel (one without pixel spacing into 2944 x 1920). Training takes a random tile that
halves no lesion; evaluation looks at all tiles, which overlap by 256 pixels, 25 mm, and makes one
detection of what several of them show (``detrex_mammo/modeling/tiling.py``). The tiles are part of
the model, so prediction from the checkpoint does the same.

    python tools/train_net.py --num-gpus 8 \\
        --config-file \\
        projects/mammography/configs/deformable_detr_r50_two_stage_tiled_50ep.py \\
        dataloader.train.dataset.json_file=train.json dataloader.train.dataset.image_root=images \\
        dataloader.test.dataset.json_file=val.json dataloader.test.dataset.image_root=images \\
        model.num_classes=2

Another size, for training and evaluation: ``model.tiles.height=512 model.tiles.width=512``; for
lesions larger than a tile: ``model.tiles.whole_image=True``. Images at their own resolution: take
``ResizeToSpacing`` out of both lists below. Not trained here.
"""

from detectron2.config import LazyCall as L

from detrex_mammo.data.augmentation_resize import ResizeToSpacing
from detrex_mammo.modeling.tiling import Tiles

from ....configs.common.data.augmentation import tile
from .deformable_detr_r50_two_stage_mammography_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.tiles = L(Tiles)(
    height=1024,
    width=1024,
    overlap=0.25,  # of a tile; a lesion no larger than this is whole in at least one
    batch_size=4,
    whole_image=False,
    merge_iou=0.5,
)

dataloader.train.mapper.augmentations = tile(
    height="${model.tiles.height}", width="${model.tiles.width}"
)
dataloader.train.mapper.augmentations.insert(
    1, L(ResizeToSpacing)(mm_per_pixel=0.1, max_height=2944, max_width=1920)
)
dataloader.test.mapper.augmentations = ["${dataloader.train.mapper.augmentations.1}"]

train.output_dir = "output/deformable_detr_r50_two_stage_tiled_50ep"
