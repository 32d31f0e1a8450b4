#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Write the Hugging Face model card of an evaluated run: ``model_card.py RUN_FOLDER``."""

import argparse
from pathlib import Path

from detrex_mammo.errors import run_tool
from detrex_mammo.zoo.card import write_card
from detrex_mammo.zoo.energy import KG_PER_KWH
from detrex_mammo.zoo.run_folder import damage_told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="output folder of tools/train_net.py")
    parser.add_argument("--out", type=Path, help="file to write (default: README.md in the folder)")
    parser.add_argument("--license", help="of the weights, such as apache-2.0; no file tells it")
    parser.add_argument("--watts", type=float, help="power of the machine that trained")
    parser.add_argument(
        "--kg-per-kwh", type=float, default=KG_PER_KWH, help="CO2 of its electricity (%(default)s)"
    )
    args = parser.parse_args()
    with damage_told(args.folder):
        out = write_card(args.folder, args.out, args.license, args.watts, args.kg_per_kwh)
    print(f"wrote {out}")


if __name__ == "__main__":
    run_tool(main)
