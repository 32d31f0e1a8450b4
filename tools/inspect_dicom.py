#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What happens to a mammogram from file to network input: ``inspect_dicom.py FILE [--out DIR]``."""

import argparse
from pathlib import Path

from detrex_mammo.config import instantiate, load_config
from detrex_mammo.data.inspection import inspect, write_step
from detrex_mammo.engine.evaluation import by_name
from detrex_mammo.errors import UserError, run_tool

CONFIG = "projects/mammography/configs/deformable_detr_r50_two_stage_mammography_50ep.py"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Print what dataloader.test.mapper of a config does to FILE, step by step.",
        epilog="example: inspect_dicom.py image.dcm --out steps "
        "dataloader.train.mapper.preprocessing.window=minmax",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="DICOM, or a PNG or TIFF of 8 or 16 bits")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write a picture of each step here")
    parser.add_argument("--frame", type=int, help="of a multi-frame file, from 0")
    parser.add_argument("--config-file", default=CONFIG, metavar="F", help="lazy config or .yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    args = parser.parse_intermixed_args()
    loaders = by_name(load_config(args.config_file, args.overrides).dataloader.test)
    node = next(iter(loaders.values())).mapper
    if "preprocessing" not in node:
        raise UserError(
            f"dataloader.test.mapper of {args.config_file!r} has no preprocessing: use a "
            "mammography config"
        )
    for number, step in enumerate(inspect(args.file, instantiate(node), args.frame), start=1):
        print(f"{number:2d}. {step.name}: {step.text}")
        written = write_step(args.out, number, step) if args.out else None
        if written:
            print(f"    {written}")


if __name__ == "__main__":
    run_tool(main)
