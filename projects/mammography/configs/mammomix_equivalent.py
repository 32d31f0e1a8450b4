# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""MammoMix's published settings of Deformable DETR, for comparison. Not trained here.

Pascal VOC folders in MammoMix's layout (github.com/tommyngx/MammoMix, 64b523d), one class:

    python tools/prepare_data.py voc --root datasets/mammomix/splits --out datasets/mammomix_coco
    python tools/train_net.py \\
        --config-file projects/mammography/configs/mammomix_equivalent.py \\
        train.init_checkpoint=FOLDER_OF_SenseTime_deformable-detr

Theirs and here: one stage, R50, 300 queries, no auxiliary losses, the losses and costs of
transformers; one learning rate of 5e-4 for all, decay 1e-5, 32 images a step of one at a time,
clipping at 5, warm-up of 5 % and half a cosine after it, 100 epochs, full precision, the best by
validation loss, longest side 800, whole images, their augmentation. Several processes share a step:
``--num-gpus 8 dataloader.train.total_batch_size=8 train.accumulate=4`` is the same step.

What differs, because theirs loses data or cannot run: 16 bits are kept; images without boxes are
used, not drawn again for ever; padding is masked, and there is no padding to a square; AP has no
score threshold; split by patient (``prepare_data.py split``), not by image; and the training ends
with an evaluation that counts. A class of another name is renamed or left out (null) by
``dataloader.train.dataset.class_map``.
"""

from ....configs.common.data.augmentation import mammomix
from ....configs.common.data.mammography import dataloader
from ....configs.common.models.deformable_detr_r50 import model
from ....configs.common.optim import AdamW as optimizer
from ....configs.common.schedule import lr_multiplier_cosine as lr_multiplier
from ....configs.common.train import train

model.num_classes = 1
model.aux_loss = False
model.criterion.weight_class = 1.0
model.criterion.matcher.cost_class = 1.0

_data = dataloader.train.dataset
_data.name = "mammomix_train"
_data.json_file = "datasets/mammomix_coco/train.json"
_data.image_root = "datasets/mammomix/splits"
_data.classes = ["cancer"]
_data.class_map = dict(mass="cancer", calcification="cancer", lesion="cancer")
dataloader.test.dataset.name = "mammomix_val"
dataloader.test.dataset.json_file = "datasets/mammomix_coco/val.json"
for _key in ("image_root", "classes", "class_map"):
    dataloader.test.dataset[_key] = f"${{...train.dataset.{_key}}}"

dataloader.train.mapper.preprocessing.crop_breast = False
dataloader.train.mapper.preprocessing.chest_wall = ""
dataloader.train.mapper.augmentations = mammomix
dataloader.test.mapper.augmentations[0].height = 800
dataloader.test.mapper.augmentations[0].width = 800
dataloader.train.total_batch_size = 1

optimizer.lr = 5e-4
optimizer.weight_decay = 1e-5
lr_multiplier.warmup_share = 0.05
lr_multiplier.warmup_factor = 0.0
lr_multiplier.after_warmup = True

train.accumulate = 32
train.scale_lr.reference = 32
train.clip_grad.params.max_norm = 5.0
train.epochs = 100
train.eval_loss = True
train.best.metric = "val/loss"
train.best.mode = "min"
train.checkpointer.max_to_keep = 2
train.init_checkpoint = "datasets/weights/deformable-detr"
train.init.classes = "reinitialise"
train.output_dir = "output/mammomix_equivalent"
