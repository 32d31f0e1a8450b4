# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The table at the end of a run: how long, how fast, how much memory, what came out, what is left.

Everything is read from the files of the run, so the same table can be made at any later time.
"""

import datetime
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detrex_mammo.engine.record import NAME as RECORD

LAST_STEPS = 100  # a step's time is their median
ENDS = ("_low", "_high")  # of the name of a number that is an end of another one's interval
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def summarise(folder: Path, kpi: Mapping[str, float]) -> str:
    """The table of a run, training or evaluation.

    Args:
        folder: of the run.
        kpi: numbers of its last evaluation, flat.

    Returns:
        str: lines "name  value"; what the run has not left is left out.
    """
    record = _read_record(folder)
    rows = [*_training_rows(record, _read_metrics(folder)), *_session_rows(record)]
    rows += _kpi_rows(kpi)
    rows += _file_rows(folder)
    return format_rows(rows)


def format_rows(rows: list[tuple[str, str]]) -> str:
    """Two columns, the first one padded."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def format_bytes(count: float) -> str:
    """Bytes with a binary unit: ``1.5 GiB``."""
    for unit in UNITS:
        if count < 1024 or unit == UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("the last unit takes everything")


def format_seconds(seconds: float) -> str:
    """Hours, minutes and seconds: ``1:02:03``, below ten seconds ``3.21 s``."""
    return f"{seconds:.3g} s" if seconds < 10 else str(datetime.timedelta(seconds=round(seconds)))


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of metrics.json; a cut one is left out."""
    try:
        text = (folder / "metrics.json").read_text(encoding="utf-8")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _training_rows(record: Mapping[str, Any], lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    training = record.get("training")
    steps = [line for line in lines if "total_loss" in line]
    if not training or not steps:
        return []
    done = int(steps[-1]["iteration"]) + 1
    # A run of an earlier version has noted its images alone.
    per_epoch = training.get("steps_per_epoch", max(training["images"], 1) / training["batch"])
    epochs = done / per_epoch
    rows = [("steps", f"{done} of {training['steps']} ({epochs:.2f} epochs)")]
    losses = [line["total_loss"] for line in steps]
    rows.append(("total_loss", f"{losses[0]:.4f} -> {losses[-1]:.4f}"))
    times = [line["time"] for line in steps[-LAST_STEPS:] if "time" in line]
    if times:
        median = statistics.median(times)
        speed = training["batch"] / median if median > 0 else float("inf")
        rows.append(("step", f"{median:.3g} s ({speed:.3g} images/s)"))
    return rows


def _kpi_rows(kpi: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """A row a number; the ends of its interval, ``name_low`` and ``name_high``, stand beside it."""
    for name, value in kpi.items():
        place, slash, last = name.rpartition("/")
        kind, dash, category = last.partition("-")
        head, tail = f"{place}{slash}{kind}", f"{dash}{category}"
        if any(f"{head.removesuffix(end)}{tail}" in kpi for end in ENDS if head.endswith(end)):
            continue
        ends = [kpi[f"{head}{end}{tail}"] for end in ENDS if f"{head}{end}{tail}" in kpi]
        interval = f" [{ends[0]:.4f}, {ends[1]:.4f}]" if len(ends) == 2 else ""
        yield name, f"{value:.4f}{interval}"


def _session_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    sessions = [session for session in record.get("sessions", []) if "seconds" in session]
    if not sessions:
        return []
    seconds = sum(session["seconds"] for session in sessions)
    starts = f" in {len(sessions)} starts" if len(sessions) > 1 else ""
    memory = max((session["peak_memory"] for session in sessions), key=lambda peak: peak["bytes"])
    return [
        ("time", f"{format_seconds(seconds)}{starts}"),
        (f"peak {memory['of']}", format_bytes(memory["bytes"])),
    ]


def _file_rows(folder: Path) -> list[tuple[str, str]]:
    files = sorted(folder.glob("model_*.pth"))
    size = sum(file.stat().st_size for file in files)
    rows = [("folder", str(folder))]
    if files:
        names = ", ".join(file.name for file in files if file.stem in ("model_best", "model_final"))
        rows.append(("checkpoints", f"{len(files)}, {format_bytes(size)} ({names or 'periodic'})"))
    return rows
