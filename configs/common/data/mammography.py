# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Mammograms with boxes in COCO JSON: 16-bit reading, breast crop, one side, negatives kept."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader
from detectron2.data.transforms import RandomFlip
from omegaconf import OmegaConf

from detrex_mammo.data.augmentation import RandomIntensity, ResizeToFit
from detrex_mammo.data.copy_paste import LesionCopyPaste
from detrex_mammo.data.datasets import load_coco_json
from detrex_mammo.data.loader import build_train_loader
from detrex_mammo.data.mapper import MammographyMapper
from detrex_mammo.data.preprocessing import Preprocessing
from detrex_mammo.data.sampling import Sampling
from detrex_mammo.evaluation.evaluators import DetectionEvaluators

dataloader = OmegaConf.create()

dataloader.train = L(build_train_loader)(
    dataset=L(load_coco_json)(name="mammography_train", json_file="", image_root=""),
    mapper=L(MammographyMapper)(
        is_train=True,
        # From file to network input; written into the checkpoint, read back by inference.
        preprocessing=L(Preprocessing)(),
        augmentations=[
            L(RandomFlip)(prob=0.5, horizontal=False, vertical=True),
            L(ResizeToFit)(height=1333, width=800),
            L(RandomIntensity)(),
        ],
        cache_dir="",  # a folder that tools/cache_data.py made: no DICOM is decoded twice
        # Lesions of other training images: for this share of the images; 0.0 is off.
        copy_paste=L(LesionCopyPaste)(prob=0.0, max_lesions=2),
    ),
    # How often each image is shown; as it stands, once in an epoch.
    sampling=L(Sampling)(
        hard_negatives="",  # predictions of an earlier model on these images
        hard_negative_factor=4.0,
        hard_negative_share=0.1,
        class_balance=0.0,  # 0.5: LVIS's repeat factors
        patient_balance=False,
        dataset_weights=None,  # {name: weight}
        negatives_per_positive=None,  # 1.0: as many images without boxes as with
        natural_after_epochs=None,
    ),
    total_batch_size=16,
    token_budget=None,  # pixels of a padded batch of one process, in place of a number of images
    max_padding=0.1,  # of such a batch
    sort_window=256,  # images that are sorted by size before they are cut into batches
    num_workers=4,
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(load_coco_json)(name="mammography_val", json_file="", image_root=""),
    mapper=L(MammographyMapper)(
        is_train=False,
        preprocessing="${...train.mapper.preprocessing}",
        augmentations=[L(ResizeToFit)(height=1333, width=800)],
        cache_dir="${...train.mapper.cache_dir}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(DetectionEvaluators)(
    dataset_name="${..test.dataset.name}", output_dir="${train.output_dir}"
)
