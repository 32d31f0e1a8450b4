#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO JSON to another format: ``export_data.py FORMAT --json A.json --out DIR``."""

import argparse
from pathlib import Path

from detrex_mammo.data.convert import coco
from detrex_mammo.data.convert.export import FORMATS, PLACES, Export
from detrex_mammo.errors import UserError, run_tool


def main() -> None:
    """Parse, call, print."""
    parser = argparse.ArgumentParser(
        description="Write COCO JSON files as KITTI, YOLO or Pascal VOC.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("format", choices=sorted(FORMATS), help="to write")
    parser.add_argument(
        "--json",
        type=Path,
        nargs="+",
        required=True,
        help="one file or several; named train.json, val.json and test.json, they are the splits",
    )
    parser.add_argument("--out", type=Path, required=True, help="empty folder to write")
    parser.add_argument("--image-root", type=Path, help="folder that file_name is relative to")
    parser.add_argument("--place", choices=PLACES, default="none", help="images into --out")
    parser.add_argument("--one-based", action="store_true", help="VOC: the first pixel is 1")
    parser.add_argument(
        "--segments", action="store_true", help="YOLO: outlines as polygons, boxes as their corners"
    )
    arguments = parser.parse_args()
    if arguments.place != "none" and arguments.image_root is None:
        raise UserError(f"--place {arguments.place} needs --image-root, the folder of the images")
    options = {}
    for name, of_format in (("one_based", "voc"), ("segments", "yolo")):
        if getattr(arguments, name):
            options[name] = True
            if arguments.format != of_format:
                flag = "--" + name.replace("_", "-")
                raise UserError(
                    f"{flag} is of format {of_format}, not {arguments.format}: leave it out"
                )
    files = [str(path.resolve()) for path in arguments.json]
    root = arguments.json[0].resolve().parent
    dataset = coco.convert(root, arguments.out, json=files, no_image_files=True)
    export = Export(dataset, arguments.out, arguments.image_root or root, arguments.place)
    report = FORMATS[arguments.format](export, **options)
    if any(dataset.report.counts[kind] for kind in ("fixed", "dropped")):
        print(f"Reading:\n{dataset.report.describe()}\n")
    print(f"{report.describe()}\nwritten to {arguments.out}")


if __name__ == "__main__":
    run_tool(main)
