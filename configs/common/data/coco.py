# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO 2017 with DETR's augmentation: flip, then resize, or resize, crop and resize.

The images are looked for in the folder that the variable DETECTRON2_DATASETS names (default:
``./datasets``), laid out as detectron2 has it: ``coco/annotations/instances_train2017.json``,
``coco/train2017/*.jpg`` and the same for val2017.
"""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data.transforms import RandomCrop, RandomFlip

from detrex_mammo.data.coco_mapper import COCOMapper, ResizeShortEdge
from detrex_mammo.data.loader import build_train_loader
from detrex_mammo.evaluation.coco import MammographyCOCOEvaluator

short_edges = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]


def _coco(filter_empty, rounding, sort_window):
    return dict(
        train=L(build_train_loader)(
            dataset=L(get_detection_dataset_dicts)(
                names="coco_2017_train", filter_empty=filter_empty
            ),
            mapper=L(COCOMapper)(
                is_train=True,
                # One branch is drawn for each image, with equal chance.
                branches=[
                    [
                        L(RandomFlip)(prob=0.5),
                        L(ResizeShortEdge)(
                            short_edges=short_edges, max_size=1333, rounding=rounding
                        ),
                    ],
                    [
                        L(RandomFlip)(prob=0.5),
                        L(ResizeShortEdge)(
                            short_edges=[400, 500, 600], max_size=None, rounding=rounding
                        ),
                        L(RandomCrop)(crop_type="absolute_range", crop_size=[384, 600]),
                        L(ResizeShortEdge)(
                            short_edges=short_edges, max_size=1333, rounding=rounding
                        ),
                    ],
                ],
            ),
            total_batch_size=16,
            sort_window=sort_window,  # images that are sorted by size before they are cut
            num_workers=4,
        ),
        test=L(build_detection_test_loader)(
            dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
            mapper=L(COCOMapper)(
                is_train=False,
                branches=[[L(ResizeShortEdge)(short_edges=800, max_size=1333, rounding=rounding)]],
            ),
            num_workers=4,
        ),
        evaluator=L(MammographyCOCOEvaluator)(
            dataset_name="${..test.dataset.names}",
            output_dir="${train.output_dir}/inference",
        ),
    )


# As in detrex: images without any box are left out, sizes of resized images are rounded. Images of
# nearly equal size come together, where detrex has those of one orientation.
dataloader = _coco(filter_empty=True, rounding="nearest", sort_window=256)
# As published: images without any box are kept, sizes are truncated (480x640 to 800x1066), and any
# images come together.
dataloader_as_published = _coco(filter_empty=False, rounding="truncate", sort_window=0)
