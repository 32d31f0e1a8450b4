#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Size of a config's model: parameters, GFLOPs, and the memory that training it takes.

``analyze_model.py --config-file F [--size 800x1333] [--batch 1 2 4] [key=value ...]``; nothing is
computed, downloaded or read but the config.
"""

import argparse
import re
import warnings

import torch
import yaml
from omegaconf import DictConfig

from detrex_mammo.config import config_to_text, instantiate, load_config, resolved
from detrex_mammo.engine.freezing import freeze
from detrex_mammo.engine.memory import ERROR, predict_peak
from detrex_mammo.engine.summary import format_bytes
from detrex_mammo.errors import UserError, run_tool
from detrex_mammo.zoo.complexity import count_multiply_adds, count_parts, largest_input


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, metavar="F", help="lazy config or .yaml")
    parser.add_argument("--size", help="HEIGHTxWIDTH (default: the largest of the test loader)")
    parser.add_argument("--batch", nargs="+", default=["1", "2", "4"], metavar="N")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    args = parser.parse_intermixed_args()
    # What follows --batch may be an override.
    overrides = [*args.overrides, *(text for text in args.batch if "=" in text)]
    batches = [read_batch(text) for text in args.batch if "=" not in text]
    cfg = load_config(args.config_file, overrides)
    size = read_size(args.size, cfg)
    warnings.filterwarnings("ignore")  # of what is built only to be counted
    print_parameters(cfg, size)
    print_memory(cfg, size, batches)


def read_size(text: str | None, cfg: DictConfig) -> tuple[int, int]:
    """``--size``, or the largest input of the config's test loader."""
    if text is None:
        size = largest_input(yaml.safe_load(config_to_text(resolved(cfg))))
        if size is None:
            raise UserError("the config's test loader has no largest size: give --size 800x1333")
        return size
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise UserError(f"--size is {text!r}, but must be HEIGHTxWIDTH, such as 800x1333")
    return int(found[1]), int(found[2])


def read_batch(text: str) -> int:
    """One number after ``--batch``."""
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--batch is {text!r}, but must be a whole number of images above 0")
    return int(text)


def print_parameters(cfg: DictConfig, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = instantiate(cfg.model)
    freeze(model, cfg.train.freeze)
    parts = count_parts(model)
    width = max(len(part.name) for part in parts)
    print(f"{'parameters':<{width}} {'all':>12} {'trainable':>12} {'frozen':>12}")
    for part in parts:
        print(f"{part.name:<{width}} {part.total:>12,} {part.trainable:>12,} {part.frozen:>12,}")
    giga = count_multiply_adds(model.requires_grad_(False), size) / 1e9
    print(
        f"\n{giga:.1f} GFLOPs: multiply-adds of one {size[0]}x{size[1]} image, deformable "
        "attention counted"
    )


def print_memory(cfg: DictConfig, size: tuple[int, int], batches: list[int]) -> None:
    print(f"\npeak memory of a training step, {size[0]}x{size[1]}, in one process:")
    print(f"{'batch':>5} {'weights':>12} {'optimizer':>12} {'the rest':>12} {'together':>12}")
    for batch in batches:
        peak = predict_peak(cfg, size, batch)
        cells = (peak.weights, peak.optimizer, peak.activations, peak.peak)
        print(f"{batch:>5} " + " ".join(f"{format_bytes(cell):>12}" for cell in cells), flush=True)
    print(
        f"Tensors only, within {ERROR:.0%}. A process needs its libraries besides; on a CPU the C "
        "library keeps up to\n45% more, which MALLOC_MMAP_THRESHOLD_=65536 gives back."
    )


if __name__ == "__main__":
    run_tool(main)
