# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What tools/benchmark.py calls: one mode, its table, its file and its picture."""

import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from detrex_mammo.benchmark import data, engine, evaluation, models, op, records
from detrex_mammo.benchmark.arguments import MODES, parse_arguments
from detrex_mammo.benchmark.machine import describe_versions
from detrex_mammo.benchmark.pictures import draw
from detrex_mammo.benchmark.results import Results, load_results
from detrex_mammo.benchmark.session import Session
from detrex_mammo.benchmark.tables import full_report, markdown
from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.hardware import describe_machine

RUN: dict[str, Callable[..., None]] = {
    "op": op.run,
    "inference": models.run_inference,
    "train": models.run_train,
    "data": data.run,
    "records": records.run,
    "evaluation": evaluation.run,
    "engine": engine.run,
}
SIZES = ("images", "boxes")  # options that go to the mode


def main(argv: Sequence[str] | None = None) -> None:
    """Run a mode, or print the table of the newest figures."""
    arguments = parse_arguments(argv)
    if arguments.mode == "table":
        print(newest_table(arguments.output))
        return
    device = resolve_device(getattr(arguments, "device", "cpu"))
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    command = shlex.join(
        ["python", "tools/benchmark.py", *(sys.argv[1:] if argv is None else argv)]
    )
    session = start_session(arguments, device, command)
    sizes = {name: getattr(arguments, name) for name in SIZES if hasattr(arguments, name)}
    try:
        RUN[arguments.mode](session, **sizes)
        session.results.finish()
    finally:
        # Also after Ctrl-C or an error: what was measured is told and kept.
        print(f"{full_report(session.results)}\n\nwritten to {session.results.path}")
    picture = session.results.path.with_suffix(".png")
    draw(session.results, picture)
    print(f"drawn in {picture}")


def start_session(arguments: Namespace, device: str, command: str) -> Session:
    """An empty file of results with all that they depend on."""
    name = f"{arguments.mode}_{'gpu' if device == 'cuda' else 'cpu'}"
    about = {
        "mode": arguments.mode,
        "device": device,
        "quick": arguments.quick,
        "command": command,
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    results = Results(arguments.output, name + ("_quick" if arguments.quick else ""), about)
    results.save()
    return Session(
        arguments.mode,
        device,
        arguments.quick,
        torch.get_num_threads(),
        results,
        arguments.repeats,
    )


def resolve_device(device: str) -> str:
    """ "cpu" or "cuda".

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError("--device is 'cuda', but torch finds no GPU here; use 'cpu' or 'auto'")
    if device == "auto":
        return "cuda" if has_gpu else "cpu"
    return device


def newest_table(folder: Path) -> str:
    """The figures of the whole runs in a folder, as markdown.

    Raises:
        UserError: it holds none.
    """
    names = [f"{mode}_{device}.json" for device in ("cpu", "gpu") for mode in MODES]
    files = [folder / name for name in names if (folder / name).is_file()]
    text = markdown([load_results(file) for file in files])
    if not text:
        raise UserError(
            f"--output {str(folder)!r} holds no results of a whole run; run `make bench` first"
        )
    return text
