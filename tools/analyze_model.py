#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Size of a config's model: parameters, GFLOPs, and the memory that training it takes.

``analyze_model.py --config-file F [--size 800x1333] [--batch 1 2 4] [--processes 8]
[--memory 24GB [--device cuda]] [key=value ...]``; nothing is computed, downloaded or read but the
config.
"""

import argparse
import re
import warnings

import torch
import yaml
from omegaconf import DictConfig

from detrex_mammo.config import (
    config_to_text,
    instantiate,
    load_config,
    resolved,
    without_pretrained,
)
from detrex_mammo.engine.batch_size import MARGIN, fit
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
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="of the run")
    parser.add_argument(
        "--memory", metavar="24GB", help="of one process: what train.batch_size=auto would take"
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="whose the memory is"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    args = parser.parse_intermixed_args()
    # What follows --batch may be an override.
    overrides = [*args.overrides, *(text for text in args.batch if "=" in text)]
    batches = [read_batch(text) for text in args.batch if "=" not in text]
    cfg = load_config(args.config_file, overrides)
    if args.processes < 1:
        raise UserError(f"--processes is {args.processes}, but must be 1 or more")
    if args.memory is None and cfg.train.batch_size == "auto":
        raise UserError("train.batch_size is 'auto': give the --memory of one process, as 24GB")
    memory = None if args.memory is None else read_memory(args.memory)
    size = read_size(args.size, cfg)
    warnings.filterwarnings("ignore")  # of what is built only to be counted
    print_parameters(cfg, size)
    print_memory(cfg, size, batches, args.processes)
    if memory is not None:
        print_fit(cfg, memory, args.device, args.processes)


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


def read_memory(text: str) -> int:
    """``--memory`` in bytes: 24GB is 24e9, 24GiB is 24 * 2**30."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([MG])(i?)B?", text)
    if not found or float(found[1]) == 0:
        raise UserError(f"--memory is {text!r}, but must be an amount such as 24GB or 800MiB")
    power = 2 if found[2] == "M" else 3
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def print_parameters(cfg: DictConfig, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = instantiate(without_pretrained(cfg.model))
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


def print_memory(
    cfg: DictConfig, size: tuple[int, int], batches: list[int], processes: int
) -> None:
    kind = "in one process" if processes == 1 else f"in each of {processes} processes"
    print(f"\npeak memory of a training step, {size[0]}x{size[1]}, {kind}:")
    heads = ("weights", "optimizer", "beside", "the rest", "together")
    print(f"{'batch':>5} " + " ".join(f"{head:>12}" for head in heads))
    for batch in batches:
        peak = predict_peak(cfg, size, batch, processes)
        cells = (peak.weights, peak.optimizer, peak.besides, peak.activations, peak.peak)
        print(f"{batch:>5} " + " ".join(f"{format_bytes(cell):>12}" for cell in cells), flush=True)
    print(
        "beside: the average of the weights (train.ema), and gradients on their way between "
        f"processes.\nTensors only, within {ERROR:.0%}. A process needs its libraries besides; "
        "on a CPU the C library keeps up to\n45% more, which MALLOC_MMAP_THRESHOLD_=65536 gives "
        "back."
    )


def print_fit(cfg: DictConfig, memory: int, device: str, processes: int) -> None:
    found = fit(cfg, device, memory, processes)
    total = "" if processes == 1 else f", {found.images * processes} over {processes} processes"
    print(
        f"\ntrain.batch_size=auto with {format_bytes(memory)} free: {found.images} image(s) of up "
        f"to {found.size[0]}x{found.size[1]} in each process{total},\nneeding "
        f"{format_bytes(found.need)} with a margin of {MARGIN[device] - 1:.0%} "
        f"on the prediction ({device})"
    )


if __name__ == "__main__":
    run_tool(main)
