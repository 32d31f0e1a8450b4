# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The figures of one run, on disk after every single measurement."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from detrex_mammo.benchmark.statistics import Spread, spread
from detrex_mammo.errors import UserError


@dataclass
class Row:
    """All repeats of one candidate in one comparison.

    Attributes:
        case: what is worked on, such as "encoder, fused, fp32".
        quantity: what is measured, such as "forward".
        candidate: who does it.
        unit: "s", "B" (bytes) or "images/s".
        values: one for each round, in the order of the rounds.
        x: place on a curve; None outside of curves.
        note: anything a reader must know, such as the batch that fitted.
        error: why there are no (more) values.
    """

    case: str
    quantity: str
    candidate: str
    unit: str = "s"
    values: list[float] = field(default_factory=list)
    x: float | None = None
    note: str = ""
    error: str = ""

    @property
    def key(self) -> tuple[str, str, str, float | None]:
        """What tells rows apart."""
        return self.case, self.quantity, self.candidate, self.x

    @property
    def spread(self) -> Spread | None:
        """Median and quartiles; None without values."""
        return spread(self.values) if self.values else None


class Results:
    """Rows, what they were measured on, and their file.

    While a run is under way the file is called ``..._unfinished.json``: an interrupted run neither
    loses its own figures nor overwrites those of the last whole one.

    Args:
        folder: where the file goes.
        name: its name without ending, such as "op_cpu".
        about: mode, device, settings, machine, versions, command.
    """

    def __init__(self, folder: Path, name: str, about: dict[str, Any]):
        self.folder, self.name = folder, name
        self.about = {**about, "started": _now(), "finished": ""}
        self.missing: dict[str, str] = {}
        self.rows: list[Row] = []

    @property
    def path(self) -> Path:
        """Where the figures lie now."""
        suffix = "" if self.about["finished"] else "_unfinished"
        return self.folder / f"{self.name}{suffix}.json"

    def row(self, case: str, quantity: str, candidate: str, x: float | None = None) -> Row | None:
        """The row of a candidate; None if it was not measured."""
        key = (case, quantity, candidate, x)
        return next((row for row in self.rows if row.key == key), None)

    def add(self, row: Row) -> None:
        """Add a row, or its values, note and error to the row with the same key; save."""
        known = self.row(*row.key)
        if known is None:
            self.rows.append(row)
        else:
            known.values += row.values
            known.note = row.note or known.note
            known.error = row.error or known.error
        self.save()

    def add_missing(self, reasons: dict[str, str]) -> None:
        """Name peers that are not compared, and why."""
        self.missing.update(reasons)
        self.save()

    def finish(self) -> None:
        """Declare the run whole: its figures replace those of the last one."""
        unfinished = self.path
        self.about["finished"] = _now()
        self.save()
        unfinished.unlink(missing_ok=True)

    def save(self) -> None:
        """Write the file whole or not at all."""
        partial = self.path.with_name(self.path.name + ".partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
            os.replace(partial, self.path)
        except OSError as error:
            raise UserError(
                f"--output {str(self.folder)!r} cannot be written ({error.strerror}); "
                "choose another folder"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON data; rows also with their quartiles, which are derived."""
        rows = []
        for row in self.rows:
            found = row.spread
            rows.append({**asdict(row), "spread": asdict(found) if found else None})
        return {**self.about, "missing": self.missing, "rows": rows}


def load_results(path: Path) -> Results:
    """Read what :class:`Results` wrote.

    Raises:
        UserError: the file is no such file.
    """
    try:
        content = json.loads(path.read_text())
        rows = [
            Row(**{key: value for key, value in row.items() if key != "spread"})
            for row in content.pop("rows")
        ]
        missing = content.pop("missing")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{str(path)!r} is no file of results ({type(error).__name__}: {error}); "
            "remove it and measure again"
        ) from error
    results = Results(path.parent, path.stem.removesuffix("_unfinished"), {})
    results.about, results.rows, results.missing = content, rows, missing
    return results


def sections(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows outside of curves by (case, quantity), in the order they were measured."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.x is None:
            found.setdefault((row.case, row.quantity), []).append(row)
    return found


def curves(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, list[Row]]]:
    """Rows of curves by (case, quantity) and candidate, each by growing x."""
    found: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in sorted((r for r in rows if r.x is not None), key=lambda r: r.x):
        found.setdefault((row.case, row.quantity), {}).setdefault(row.candidate, []).append(row)
    return found


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
