#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Draw a dataset on one sheet, or what a config's augmentation makes of it.

visualize_data.py --json train.json --out sheet.png
visualize_data.py --config-file CONFIG --out sheet.png [dataloader.train.dataset.json_file=...]
"""

import argparse
from pathlib import Path

from detectron2.data import MetadataCatalog

from detrex_mammo.config import instantiate, load_config
from detrex_mammo.data.datasets import load_coco_json
from detrex_mammo.data.preprocessing import Preprocessing
from detrex_mammo.engine.loaders import class_table, dataset_errors, dataset_names
from detrex_mammo.errors import UserError, run_tool
from detrex_mammo.inference.contact_sheet import (
    annotation_sheet,
    augmentation_sheet,
    choose,
    write_sheet,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--json", type=Path, help="COCO JSON: its annotations are drawn")
    source.add_argument("--config-file", help="its dataset, before and after its augmentation")
    parser.add_argument("--image-root", type=Path, help="for --json (default: the JSON's folder)")
    parser.add_argument("--out", type=Path, required=True, help="picture to write, .png or .jpg")
    parser.add_argument("--count", type=int, help="images (12; with a config 4)")
    parser.add_argument(
        "--repeats", type=int, default=4, help="augmentations of each (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the augmentation (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config")
    args = parser.parse_args()
    for name in ("count", "repeats"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; use 1 or more")
    sheet = _draw_config(args) if args.config_file else _draw_json(args)
    write_sheet(args.out, sheet)
    print(f"wrote {args.out}, {sheet.shape[1]}x{sheet.shape[0]} pixels")


def _draw_json(args: argparse.Namespace):
    name = str(args.json)
    root = args.json.parent if args.image_root is None else args.image_root
    records = choose(load_coco_json(name, name, str(root)), args.count or 12)
    classes = MetadataCatalog.get(name).thing_classes
    return annotation_sheet(records, classes, Preprocessing(allow_for_processing=True))


def _draw_config(args: argparse.Namespace):
    node = load_config(args.config_file, args.overrides).dataloader.train
    with dataset_errors("dataloader.train"):
        records = instantiate(node.dataset)
    mapper = instantiate(node.mapper)
    if hasattr(mapper, "attach"):
        mapper.attach(records)  # copy_paste takes lesions of them
    classes = class_table(dataset_names(node))["names"]
    chosen = choose(records, args.count or 4)
    return augmentation_sheet(chosen, classes, mapper, args.repeats, args.seed)


if __name__ == "__main__":
    run_tool(main)
