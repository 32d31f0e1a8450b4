# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The matrix of models and data sets as text to read, CSV and JSON."""

import csv
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from detrex_mammo.config_check import nearest
from detrex_mammo.engine.matrix import Matrix
from detrex_mammo.errors import UserError

COLUMNS = ("figure", "model", "dataset", "value", "low", "high", "of", "failed")


def check_figures(matrix: Matrix, names: Sequence[str]) -> None:
    """Refuse a figure that no pair has.

    Raises:
        UserError: naming the nearest figure, or all there are.
    """
    known = {name for figures in matrix.figures.values() for name in figures}
    for name in names:
        if known and name not in known:
            near = nearest(name, known)
            hint = f"the nearest is {near!r}" if near else f"there are {', '.join(sorted(known))}"
            raise UserError(f"--figure {name!r} was not computed: {hint}")


def matrix_rows(matrix: Matrix, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each figure and pair, in the order of ``COLUMNS``."""
    rows = []
    for name in names:
        for pair in matrix.pairs:
            figure = matrix.figures.get(pair, {}).get(name, {})
            numbers = {key: figure.get(key) for key in ("value", "low", "high", "of")}
            failed = matrix.failures.get(pair)
            rows.append(
                {"figure": name, "model": pair[0], "dataset": pair[1], **numbers, "failed": failed}
            )
    return rows


def matrix_text(matrix: Matrix, names: Sequence[str]) -> str:
    """A Markdown table for each figure, a row a model, the interval in brackets."""
    datasets = list(dict.fromkeys(dataset for _, dataset in matrix.pairs))
    models = list(dict.fromkeys(model for model, _ in matrix.pairs))
    rows = {
        (row["figure"], row["model"], row["dataset"]): row for row in matrix_rows(matrix, names)
    }
    parts = []
    for name in names:
        title = f"{name} (%)" if _is_percent(name) else name
        cells = [[m, *(_cell(rows[name, m, d]) for d in datasets)] for m in models]
        parts.append(tabulate(cells, [title, *datasets], "pipe", disable_numparse=True))
        parts.append(_out_of([row for key, row in rows.items() if key[0] == name]))
    bootstrap = matrix.settings.bootstrap
    told = [f"Rule: {matrix.settings.froc.text()}."]
    if bootstrap is not None:
        told.append(f"In brackets: {bootstrap.text()}.")
    told += [f"Failed: {m} x {d}: {text}" for (m, d), text in matrix.failures.items()]
    return "\n\n".join([*filter(None, parts), *told])


def write_matrix(folder: Path, matrix: Matrix, names: Sequence[str]) -> None:
    """``matrix.md``, ``matrix.csv`` and ``matrix.json``; each file whole.

    Raises:
        UserError: the folder cannot be written.
    """
    rows = matrix_rows(matrix, names)
    bootstrap = matrix.settings.bootstrap
    content = {
        "rule": matrix.settings.froc.text(),
        "interval": None if bootstrap is None else bootstrap.text(),
        "cells": rows,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "matrix.partial"
        partial.write_text(matrix_text(matrix, names) + "\n", encoding="utf-8")
        os.replace(partial, folder / "matrix.md")
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, folder / "matrix.json")
        with open(partial, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(partial, folder / "matrix.csv")
    except OSError as error:
        raise UserError(f"--out {str(folder)!r} cannot be written: {error.strerror}") from error


def _out_of(rows: Sequence[dict[str, Any]]) -> str:
    """The denominators of a figure; once for a data set, as they are the same for most figures."""
    told: dict[str, list[str]] = {}
    for row in rows:
        if row["of"] and row["of"] not in told.setdefault(row["dataset"], []):
            told[row["dataset"]].append(row["of"])
    return (
        "Out of: " + "; ".join(f"{d}: {' or '.join(of)}" for d, of in told.items()) if told else ""
    )


def _is_percent(name: str) -> bool:
    """COCO's figures are percent, all others shares."""
    return name.startswith(("AP", "AR"))


def _cell(row: dict[str, Any]) -> str:
    if row["failed"] is not None:
        return "failed"
    if row["value"] is None or not math.isfinite(row["value"]):
        return "-"
    digits = 1 if _is_percent(row["figure"]) else 3
    text = f"{row['value']:.{digits}f}"
    if row["low"] is None or row["high"] is None:
        return text
    return f"{text} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
