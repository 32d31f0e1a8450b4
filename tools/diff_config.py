#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What differs between two runs: ``diff_config.py A B``, each a run's folder, config or checkpoint.

Exit code 0: nothing differs, 1: something does, 2: a file cannot be read.
"""

import argparse

from detrex_mammo.engine.config_diff import differences, format_differences, read_text
from detrex_mammo.errors import run_tool


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", help="folder of a run, config file or checkpoint")
    parser.add_argument("b", help="another one")
    parser.add_argument(
        "--ignore",
        nargs="*",
        default=[],
        metavar="KEY",
        help="keys, or groups of keys, to leave out",
    )
    args = parser.parse_args()
    ignored = tuple(f"{key}." for key in args.ignore)
    rows = [
        row
        for row in differences(read_text(args.a), read_text(args.b))
        if not f"{row[0]}.".startswith(ignored)
    ]
    print(format_differences(rows, (args.a, args.b)) if rows else "no setting differs")
    return int(bool(rows))


if __name__ == "__main__":
    run_tool(main)
