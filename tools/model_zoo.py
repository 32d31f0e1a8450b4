#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Rows of the model zoo: ``model_zoo.py add RUN_FOLDER``; its page: ``model_zoo.py build``."""

import argparse
from pathlib import Path

from detrex_mammo.errors import run_tool
from detrex_mammo.zoo.entry import add_entry
from detrex_mammo.zoo.page import PAGE, build, check
from detrex_mammo.zoo.run_folder import damage_told

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder with zoo/ in it")
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="write zoo/NAME.json from an evaluated run")
    adding.add_argument(
        "folder",
        type=Path,
        help="output folder of tools/train_net.py; RUN/NAME for one of several test sets",
    )
    adding.add_argument("--name", help="of the row (default: the checkpoint's)")
    adding.add_argument("--url", help="where the checkpoint can be downloaded (https)")
    building = commands.add_parser("build", help=f"write {PAGE} from zoo/*.json")
    building.add_argument("--check", action="store_true", help="write nothing, compare")
    args = parser.parse_args()
    if args.command == "add":
        with damage_told(args.folder):
            path = add_entry(args.folder, args.root, args.name, args.url)
        print(f"wrote {path}")
    elif args.check:
        check(args.root)
        print(f"{PAGE} is what zoo/*.json gives")
    else:
        (args.root / PAGE).write_text(build(args.root), encoding="utf-8")
        print(f"wrote {args.root / PAGE}")


if __name__ == "__main__":
    run_tool(main)
