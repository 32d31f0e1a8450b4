# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Write a report: index.html with everything inside it, and a CSV file for each table.

What strangers named (patients, files, classes) reaches the page as JSON only, and from there as
text, never as HTML.
"""

import base64
import csv
import html
import json
import math
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.files import whole_file
from detrex_mammo.evaluation.report.content import INTERVAL, Card, Number, Report, Table, View
from detrex_mammo.progress import counted

Picture = Callable[[View], bytes | None]


def write_report(folder: str | Path, report: Report, picture: Picture | None = None) -> Path:
    """Write the page and its tables.

    Args:
        folder: made if need be; files of an earlier report there are replaced.
        report: what to show.
        picture: JPEG of a view, of any size but the frame's shape; None for one that cannot be
            read. Without it the gallery has boxes only.

    Returns:
        Path: the page.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    tables = [headline_table(report.numbers, report.interval), *report.tables]
    try:
        (folder / "tables").mkdir(parents=True, exist_ok=True)
        for table in tables:
            write_csv(folder / "tables" / f"{table.key}.csv", table)
        page = folder / "index.html"
        with whole_file(page) as path, open(path, "w", encoding="utf-8", errors="replace") as file:
            _write_page(file.write, report, tables, picture)
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {str(folder)!r} ({error.strerror or error}): give "
            "another folder"
        ) from error
    return page


def headline_table(numbers: Sequence[Number], interval: str = INTERVAL) -> Table:
    """The headline as a table, its intervals as text."""
    rows = [[n.name, _value_text(n), _interval_text(n), n.rule, n.denominator] for n in numbers]
    columns = ["figure", "value", interval, "rule", "out of"]
    return Table("headline", "Headline", "", columns, rows)


def _write_page(write, report: Report, tables: list[Table], picture: Picture | None) -> None:
    assets = resources.files("detrex_mammo.evaluation.report") / "assets"
    pieces = {
        "title": html.escape(report.title),
        "style": (assets / "style.css").read_text(encoding="utf-8"),
        "script": (assets / "script.js").read_text(encoding="utf-8"),
        "plots": "\n".join(_figure(plot) for plot in report.plots),
        "data": _json(_data(report, tables)),
    }
    template = (assets / "page.html").read_text(encoding="utf-8")
    before, after = template.split("{{pictures}}")
    for part in (before, None, after):
        if part is None:
            _write_pictures(write, report.cards, picture)
            continue
        # Split once, so that nothing inside a piece is taken for a place.
        chunks = part.split("{{")
        write(chunks[0])
        for chunk in chunks[1:]:
            name, rest = chunk.split("}}", 1)
            write(pieces[name])
            write(rest)


def _write_pictures(write, cards: list[Card], picture: Picture | None) -> None:
    """Each picture in an element of its own, which costs nothing until it is looked at."""
    if picture is None:
        return
    views = [view for card in cards for view in card.views]
    for number, view in enumerate(counted(views, "report", unit="picture")):
        data = picture(view)
        if data:
            text = base64.b64encode(data).decode("ascii")
            write(f'<script type="text/plain" id="picture{number}">{text}</script>\n')


def _figure(plot) -> str:
    return (
        f'<figure id="plot-{html.escape(plot.key, quote=True)}"><h3>{html.escape(plot.title)}</h3>'
        f"{plot.draw()}<figcaption>{html.escape(plot.caption)}</figcaption></figure>"
    )


def _data(report: Report, tables: list[Table]) -> dict[str, Any]:
    """What the script reads."""
    number = 0
    cards = []
    for card in report.cards:
        views = []
        for view in card.views:
            views.append(
                {
                    "picture": number,
                    "title": view.title,
                    "size": [view.frame[2] - view.frame[0], view.frame[3] - view.frame[1]],
                    "lesions": [[*_rounded(x.box), x.name, x.score] for x in view.lesions],
                    "marks": [[*_rounded(m.box), m.name, m.score, m.outcome] for m in view.marks],
                }
            )
            number += 1
        cards.append({"title": card.title, "words": card.words, "views": views})
    return {
        "facts": [list(fact) for fact in report.facts],
        "note": report.note,
        "gallery_note": report.gallery_note,
        "tables": [
            {"key": t.key, "title": t.title, "note": t.note, "columns": t.columns, "rows": t.rows}
            for t in tables
        ],
        "counter": None if report.counter is None else {**vars(report.counter)},
        "cards": cards,
    }


def _rounded(box) -> list[float]:
    return [round(float(value), 1) for value in box]


def _json(data: Any) -> str:
    """JSON that can stand inside a script element; NaN and infinities become null."""
    text = json.dumps(_finite(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's
        return _finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_csv(path: Path, table: Table) -> None:
    """A table as CSV, in which a stranger's name is never a spreadsheet's formula.

    Raises:
        OSError: the file cannot be written.
    """
    with open(path, "w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([[_cell(value) for value in row] for row in (table.columns, *table.rows)])


def _cell(value: Any) -> Any:
    """What a spreadsheet would run as a formula becomes text."""
    value = _finite(value)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") and len(value) > 1:
        return f"'{value}"
    return "" if value is None else value


def _value_text(number: Number) -> str:
    value = _finite(number.value)
    if value is None:
        return "not defined"
    return f"{100 * value:.1f} %" if number.percent else f"{value:.3f}"


def _interval_text(number: Number) -> str:
    low, high = _finite(number.low), _finite(number.high)
    if low is None or high is None:
        return ""
    return (
        f"{100 * low:.1f} to {100 * high:.1f} %" if number.percent else f"{low:.3f} to {high:.3f}"
    )
