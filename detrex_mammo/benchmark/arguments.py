# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Command line of tools/benchmark.py."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from detrex_mammo.errors import UserError

FOLDER = Path("benchmarks")
MODES = {
    "op": "the operator: time, memory, first start, against image size and queries",
    "inference": "R50 two-stage on a whole image, against transformers",
    "train": "a training step of it",
    "data": "images per second of the mammography loader, by workers",
    "records": "seconds and memory of reading a COCO JSON, and what a loader worker adds to it",
    "evaluation": "a FROC with intervals on 10 million predictions: seconds and memory",
    "engine": "memory of accumulation and activation checkpointing, time of a run beside the model",
}


class OneSentenceParser(argparse.ArgumentParser):
    """A mistake is one sentence, as in all tools, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage and leaving the process."""
        raise UserError(f"{message}; see --help")


def parser() -> argparse.ArgumentParser:
    """One sub-command for each mode, and one that prints the newest figures."""
    top = OneSentenceParser(
        description="Measure this project side by side with others, in one run, in turn.",
        epilog="Figures go to stdout, progress to stderr. A whole run is kept in "
        "benchmarks/MODE_DEVICE.json and .png.",
    )
    modes = top.add_subparsers(dest="mode", required=True, metavar="MODE")
    for name, text in MODES.items():
        mode = modes.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        if name == "records":
            mode.add_argument("--images", type=int, default=100_000, help="of the JSON")
            mode.add_argument("--boxes", type=int, default=1_000_000, help="of the JSON")
        if name not in ("data", "engine", "evaluation", "records"):
            mode.add_argument(
                "--device",
                choices=("auto", "cpu", "cuda"),
                default="auto",
                help="auto takes the GPU if there is one",
            )
        mode.add_argument("--repeats", type=int, help="rounds of every comparison")
        mode.add_argument("--threads", type=int, help="of torch; all cores if not given")
        mode.add_argument(
            "--quick", action="store_true", help="small shapes, to try the program; kept apart"
        )
        mode.add_argument("--output", type=Path, default=FOLDER, help="folder of the results")
    table = modes.add_parser("table", help="the newest figures as a markdown table")
    table.add_argument("--output", type=Path, default=FOLDER, help="folder of the results")
    return top


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line.

    Raises:
        UserError: it cannot be done.
    """
    arguments = parser().parse_args(argv)
    for name in ("repeats", "threads", "images", "boxes"):
        value = getattr(arguments, name, None)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; use 1 or more")
    return arguments
