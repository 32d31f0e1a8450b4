# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""CBIS-DDSM, INbreast and VinDr-Mammo together: R50, two-stage, 50 epochs. Not trained here.

Prepare each as the config of its own says, then:

    python tools/train_net.py --num-gpus 8 \\
        --config-file projects/mammography/configs/multi_dataset_r50_two_stage_50ep.py

Classes are matched by name: mass and calcification. Each data set is evaluated by itself, as
``inbreast/bbox/AP50`` and so on, into a folder of its own. To train without one, give its part the
weight 0; to evaluate without it:

    dataloader.test.inbreast=null dataloader.evaluator.inbreast=null
"""

from detectron2.config import LazyCall as L

from detrex_mammo.data.mixed import load_mixed

from .deformable_detr_r50_two_stage_mammography_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.num_classes = 2

# Annotations for training and evaluation, images, and the share of an epoch: about as the square
# root of the number of images, so that the largest does not drown the others.
_parts = dict(
    cbis_ddsm=("cbis_ddsm_coco/train.json", "cbis_ddsm_coco/test.json", "cbis_ddsm", 5.0),
    inbreast=("inbreast_coco/splits/train.json", "inbreast_coco/splits/val.json", "inbreast", 2.0),
    vindr_mammo=("vindr_mammo_coco/train.json", "vindr_mammo_coco/test.json", "vindr_mammo", 13.0),
)
# Name in a data set -> name here; null leaves its boxes out.
_class_maps = dict(
    cbis_ddsm={},
    inbreast={
        "calcification cluster": "calcification",
        **dict.fromkeys(["spiculated region", "architectural distortion", "asymmetry"]),
    },
    vindr_mammo={
        "Mass": "mass",
        "Suspicious Calcification": "calcification",
        **dict.fromkeys(["Architectural Distortion", "Focal Asymmetry", "Asymmetry"]),
        **dict.fromkeys(["Global Asymmetry", "Suspicious Lymph Node", "Skin Thickening"]),
        **dict.fromkeys(["Nipple Retraction", "Skin Retraction"]),
    },
)

dataloader.train.dataset = L(load_mixed)(
    name="multi_dataset_train",
    parts={
        name: dict(json_file=f"datasets/{file}", image_root=f"datasets/{root}", weight=weight)
        for name, (file, _, root, weight) in _parts.items()
    },
    classes=["mass", "calcification"],
    class_map={old: new for names in _class_maps.values() for old, new in names.items()},
)

_test, _evaluator = dataloader.test, dataloader.evaluator
dataloader.test, dataloader.evaluator = {}, {}
for _name, (_, _file, _root, _) in _parts.items():
    dataloader.test[_name] = _test
    _part = dataloader.test[_name]
    _part.dataset.name = f"{_name}_test"
    _part.dataset.json_file = f"datasets/{_file}"
    _part.dataset.image_root = f"datasets/{_root}"
    _part.dataset.classes = "${dataloader.train.dataset.classes}"
    _part.dataset.class_map = _class_maps[_name]
    _part.mapper.preprocessing = "${dataloader.train.mapper.preprocessing}"
    _part.mapper.cache_dir = "${dataloader.train.mapper.cache_dir}"
    dataloader.evaluator[_name] = _evaluator
    dataloader.evaluator[_name].dataset_name = f"${{dataloader.test.{_name}.dataset.name}}"
    dataloader.evaluator[_name].output_dir = f"${{train.output_dir}}/{_name}"

train.output_dir = "output/multi_dataset_r50_two_stage_50ep"
