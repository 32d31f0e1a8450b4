#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Strip a checkpoint to its weights and their description: ``publish_checkpoint.py IN OUT``."""

import argparse
from pathlib import Path

from detrex_mammo.checkpoint.publish import publish_checkpoint
from detrex_mammo.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="checkpoint of tools/train_net.py")
    parser.add_argument("target", type=Path, help="file to write")
    parser.add_argument("--half", action="store_true", help="store weights in half precision")
    args = parser.parse_args()
    size = publish_checkpoint(args.source, args.target, args.half)
    print(f"wrote {args.target}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_tool(main)
