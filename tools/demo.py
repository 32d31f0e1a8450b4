#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Train and evaluate a small detector on real mammograms with simulated lesions: ``demo.py``."""

import argparse
from pathlib import Path

from detrex_mammo.engine.demo import run_demo
from detrex_mammo.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("output/demo"), help="results")
    parser.add_argument("--data", type=Path, default=Path("datasets/demo"), help="demo dataset")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    args = parser.parse_args()
    run_demo(args.out, args.data, tuple(args.overrides))


if __name__ == "__main__":
    run_tool(main)
