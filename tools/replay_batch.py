#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Run the batch again that stopped a run, and tell where it stops being finite.

Exit code 0 if that place was found, 1 if everything is finite here (another device may compute
otherwise), 2 after a mistake.
"""

import argparse
from pathlib import Path

from detrex_mammo.engine.replay import Replay
from detrex_mammo.engine.setup import resolve_device
from detrex_mammo.errors import UserError, run_tool


def main() -> int:
    """Parse, replay, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="OUTPUT/nan_step_N")
    parser.add_argument(
        "--config-file",
        help="whose model to build, if it has classes of your own: FOLDER/config.yaml",
    )
    parser.add_argument("--rank", type=int, help="only the batches of this process")
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda"))
    args = parser.parse_args()
    replay = Replay(args.folder, resolve_device(args.device), args.config_file)
    ranks = replay.ranks()
    if args.rank is not None and args.rank not in ranks:
        raise UserError(f"--rank is {args.rank}, but there are batches of {ranks}")
    is_finite = True
    for rank in ranks if args.rank is None else [args.rank]:
        for number, found in enumerate(replay.run(rank)):
            print(f"process {rank}, batch {number}: {found.describe()}")
            is_finite &= found.is_finite
    return int(is_finite)


if __name__ == "__main__":
    run_tool(main)
