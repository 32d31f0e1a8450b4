#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Find what would spoil a result: ``check_data.py train.json val.json test.json``.

Exit code 0: nothing would. 1: something would. 2: the command or a file is wrong.
"""

import argparse
from pathlib import Path

from detrex_mammo.data.check import check_datasets, fix_datasets, write_report
from detrex_mammo.errors import run_tool


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path, nargs="+", help="COCO JSON; all are checked together")
    parser.add_argument(
        "--image-root", type=Path, nargs="+", default=[], metavar="DIR",
        help="folder that file_name is relative to: one, or one per JSON (default: the JSON's own)",
    )  # fmt: skip
    parser.add_argument("--no-pixels", action="store_true", help="open no picture")
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument(
        "--fix", type=Path, metavar="DIR",
        help="write repaired copies and a log of every change; the exit code is that of the copies",
    )  # fmt: skip
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the table as JSON, too")
    args = parser.parse_args()
    pixels = not args.no_pixels
    checked = check_datasets(args.json, args.image_root, pixels, args.workers, progress=True)
    print(checked.describe())
    if args.report:
        write_report(checked, args.report)
    if args.fix:
        copies = fix_datasets(checked, args.fix, progress=True)
        roots = args.image_root or [path.parent for path in args.json]
        checked = check_datasets(copies, roots, pixels, args.workers, progress=True)
        print(f"\nrepaired copies in {args.fix}, with a log each:\n{checked.describe()}")
    return 1 if checked.findings.num_errors else 0


if __name__ == "__main__":
    run_tool(main)
