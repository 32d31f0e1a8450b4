# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Command line of tools/train_net.py: detectron2's flags, in any order with the overrides."""

import argparse
from collections.abc import Sequence

from detrex_mammo.errors import UserError


def train_parser() -> argparse.ArgumentParser:
    """Parser with detectron2's flags."""
    parser = argparse.ArgumentParser(
        description="Train or evaluate a lazy config.",
        epilog="example: train_net.py --config-file "
        "projects/deformable_detr/configs/deformable_detr_r50_50ep.py "
        "--num-gpus 8 train.output_dir=output/mine",
    )
    parser.add_argument("--config-file", required=True, metavar="F", help="lazy config or .yaml")
    parser.add_argument("--resume", action="store_true", help="go on in train.output_dir")
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate train.init_checkpoint, train nothing"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the final config as YAML, run nothing"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="try everything once, leave nothing, tell how long the run will take",
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, help="processes per machine; on CPU without a GPU"
    )
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0, help="0 to num-machines - 1")
    parser.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT for several machines")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; flags and ``key=value`` overrides may be mixed.

    Raises:
        UserError: an argument that is neither.
    """
    args = train_parser().parse_intermixed_args(argv)
    for override in args.overrides:
        if "=" not in override:
            raise UserError(f"argument {override!r} is neither a flag nor key=value")
    modes = ("resume", "eval_only", "dry_run")
    given = [f"--{name.replace('_', '-')}" for name in modes if getattr(args, name)]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other: give one")
    return args
