#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Decode a config's images once: ``cache_data.py --config-file F --out DIR [key=value ...]``."""

import argparse

from detrex_mammo.config import instantiate, load_config
from detrex_mammo.data.cache_build import SHARD_MEGABYTES, build_cache
from detrex_mammo.data.preprocessing import Preprocessing
from detrex_mammo.engine.evaluation import by_name
from detrex_mammo.errors import UserError, run_tool


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Write the images of dataloader.train and dataloader.test, preprocessed, into "
        "a folder that mapper.cache_dir then names. A second run makes what is missing. Exit code "
        "1: some images could not be read.",
        epilog="Give the same config file and key=value as to tools/train_net.py.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, metavar="F", help="lazy config or .yaml")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the cache")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode")
    parser.add_argument("--verify", action="store_true", help="compare all images with their hash")
    parser.add_argument(
        "--shard-megabytes", type=float, default=SHARD_MEGABYTES, help="of one file of pixels"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    args = parser.parse_intermixed_args()
    config = load_config(args.config_file, args.overrides)
    records, preprocessing = [], []
    loaders = {
        f"test.{name}": node for name, node in by_name(config.dataloader.get("test")).items()
    }
    for part, loader in {"train": config.dataloader.get("train"), **loaders}.items():
        if loader is None or "preprocessing" not in loader.mapper:
            raise UserError(
                f"dataloader.{part.rstrip('.')}.mapper of {args.config_file!r} has no "
                "preprocessing: only mammography configs have what a cache is made of"
            )
        records += instantiate(loader.dataset)
        preprocessing.append(instantiate(loader.mapper.preprocessing))
    spec = preprocessing[0]
    if any(other != spec for other in preprocessing) or not isinstance(spec, Preprocessing):
        raise UserError(
            "dataloader.train and dataloader.test have different preprocessing, so that one cache "
            "cannot serve both: make them the same"
        )
    report = build_cache(args.out, records, spec, args.workers, args.verify, args.shard_megabytes)
    print(report.describe())
    print(f"use it: dataloader.train.mapper.cache_dir={args.out}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    run_tool(main)
