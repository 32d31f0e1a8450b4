# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Lists of augmentations for ``dataloader.train.mapper.augmentations``.

Images are float32 (H, W) in [0, 255], cropped to the breast, and turned to one side, so that most
lists flip up and down only. Take one, and change what your network's size needs:

    from ....configs.common.data.augmentation import mammography_strong

    dataloader.train.mapper.augmentations = mammography_strong

In a config file that lies elsewhere, with ``get_config`` of ``detrex_mammo.config``:

    _lists = get_config("configs/common/data/augmentation.py").lists
    dataloader.train.mapper.augmentations = _lists.mammography_strong
"""

from detectron2.config import LazyCall as L
from detectron2.data.transforms import RandomFlip

from detrex_mammo.data.augmentation import RandomIntensity, ResizeToFit
from detrex_mammo.data.augmentation_geometry import LesionSafeCrop, RandomAffine
from detrex_mammo.data.augmentation_photometric import RandomBlur, RandomNoise
from detrex_mammo.data.augmentation_resize import RandomScale, ResizeShortEdge
from detrex_mammo.data.augmentation_tile import LesionTile
from detrex_mammo.data.augmentation_warp import RandomElastic, RandomPerspective

# That of configs/common/data/mammography.py.
mammography_basic = [
    L(RandomFlip)(prob=0.5, horizontal=False, vertical=True),
    L(ResizeToFit)(height=1333, width=800),
    L(RandomIntensity)(),
]

# For long training on few images. Bent and rotated after the resize, where it is cheap.
mammography_strong = [
    L(RandomFlip)(prob=0.5, horizontal=False, vertical=True),
    L(LesionSafeCrop)(min_share=0.6, prob=0.5),
    L(ResizeToFit)(height=1333, width=800, scale_range=[0.8, 1.0], aspect_jitter=0.05),
    L(RandomAffine)(degrees=8.0, scale=[0.9, 1.1], prob=0.5),
    L(RandomElastic)(displacement=[1.0, 5.0], sigma=40.0, prob=0.3),
    L(RandomIntensity)(),
    L(RandomBlur)(sigma=[0.3, 1.0], prob=0.2),
    L(RandomNoise)(gaussian=[0.0, 2.0], quantum=[0.0, 4.0], prob=0.3),
]

# COCO's recipe without the crop of 384x600 pixels in its second branch, which takes a lesion's
# surroundings away; the crop here holds every lesion whole.
coco_style = [
    L(RandomFlip)(prob=0.5, horizontal=False, vertical=True),
    L(LesionSafeCrop)(min_share=0.6, prob=0.5),
    L(ResizeShortEdge)(
        short_edges=[480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800], max_size=1333
    ),
]

# MammoMix's published list, in its order, with this package's transforms; its resize to 800 comes
# last. Elastic alpha 50 and sigma 5 displace by 50 / (3.54 * 5) pixels; where that would fold
# tissue the field is weakened, and theirs folds it. Boxes of which less than 0.1 is left are
# dropped by the mapper, as theirs; so are boxes below 1 pixel, theirs below 25 square pixels. Where
# they leave an edge black, bending repeats it.
mammomix = [
    L(RandomElastic)(displacement=[2.8, 2.8], sigma=5.0, prob=0.5),
    L(RandomPerspective)(scale=[0.05, 0.1], prob=0.5),
    L(RandomFlip)(prob=0.5),
    L(RandomAffine)(degrees=10.0, scale=[1.0, 1.0], prob=0.5),
    L(RandomScale)(scale=[0.8, 1.2], prob=0.5),
    L(RandomAffine)(degrees=10.0, scale=[0.9, 1.1], prob=0.5, shear=5.0, translate=0.1),
    L(RandomIntensity)(gamma=[1.0, 1.0], contrast=[0.8, 1.2], offset=[-51.0, 51.0], prob=0.5),
    L(RandomNoise)(gaussian=[12.75, 12.75], quantum=[0.0, 0.0], prob=0.5),
    L(RandomBlur)(sigma=[0.5, 3.0], prob=0.5),
    L(ResizeToFit)(height=800, width=800),
]

# For get_config, which finds no bare list.
lists = dict(
    mammography_basic=mammography_basic,
    mammography_strong=mammography_strong,
    coco_style=coco_style,
    mammomix=mammomix,
)


def tile(height, width, lesion_prob=0.5):
    """Tiles of the image at its own resolution, half of them around a lesion."""
    return [
        L(RandomFlip)(prob=0.5, horizontal=False, vertical=True),
        L(LesionTile)(height=height, width=width, lesion_prob=lesion_prob),
        L(RandomIntensity)(),
    ]


def large_scale_jitter(height, width, lesion_prob=0.5):
    """Resize to 0.1 to 2 times the frame, then cut a tile of its size that halves no lesion.

    Ghiasi et al., https://arxiv.org/abs/2012.07177, with our tile in place of their random crop.
    A smaller image is not padded to the frame here: the batch pads it.
    """
    return [
        L(RandomFlip)(prob=0.5, horizontal=False, vertical=True),
        L(ResizeToFit)(height=height, width=width, scale_range=[0.1, 2.0]),
        L(LesionTile)(height=height, width=width, lesion_prob=lesion_prob),
        L(RandomIntensity)(),
    ]
