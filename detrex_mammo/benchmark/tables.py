# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Results as text for a terminal, and as markdown for README."""

from collections.abc import Sequence

from tabulate import tabulate

from detrex_mammo.benchmark.bars import Bar, Verdict, compare, judge
from detrex_mammo.benchmark.data import worker_name
from detrex_mammo.benchmark.peers import REFERENCE, TRANSFORMERS
from detrex_mammo.benchmark.results import Results, Row, curves, sections
from detrex_mammo.benchmark.units import place_text, quantity_text, three_digits
from detrex_mammo.evaluation.hardware import machine_text

BASELINES = (REFERENCE, TRANSFORMERS, worker_name(0))


def full_report(results: Results) -> str:
    """Everything about a run, for the terminal."""
    parts = [_head(results)]
    for (case, quantity), rows in sections(results.rows).items():
        parts.append(f"{case}: {quantity}\n{_section(rows)}")
    for (case, quantity), lines in curves(results.rows).items():
        parts.append(f"{case}: {quantity}\n{_curve(lines)}")
    verdicts = judge(results)
    if verdicts:
        parts.append(f"Bars\n{_bars(verdicts)}")
    if results.about["quick"]:
        parts.append(
            "This was a quick run on small shapes: its figures show that the program runs."
        )
    if results.missing:
        reasons = (f"  {name}: {reason}" for name, reason in results.missing.items())
        parts.append("Not compared\n" + "\n".join(reasons))
    return "\n\n".join(parts)


def _head(results: Results) -> str:
    about = results.about
    machine, state = about["machine"], about["finished"] or "unfinished"
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return "\n".join(
        (
            f"{about['command']}   ({about['started']} to {state})",
            machine_text(machine) + f"; load average at start {machine['load_average_at_start']}",
            versions,
            "Half of the repeats lie between the quartiles; ratios tell how many times better "
            "(faster, smaller), the median of the rounds.",
        )
    )


def _section(rows: Sequence[Row]) -> str:
    """Candidates with median, quartiles and how many times better than each baseline."""
    baselines = [row for row in rows if row.candidate in BASELINES]
    lines = []
    for row in rows:
        found = row.spread
        line = [row.candidate, "", "", ""]
        if found:
            low, high = (quantity_text(v, row.unit) for v in (found.low, found.high))
            line = [row.candidate, quantity_text(found.median, row.unit), f"{low} - {high}"]
            line.append(str(found.count))
        ratios = [compare(row, baseline) for baseline in baselines]
        line += [f"{three_digits(ratio.median)}x" if ratio else "" for ratio in ratios]
        lines.append([*line, "; ".join(filter(None, (row.note, row.error)))])
    heads = ["", "median", "quartiles", "n", *(f"x {b.candidate}" for b in baselines), ""]
    return tabulate(lines, heads, disable_numparse=True)


def _curve(lines: dict[str, list[Row]]) -> str:
    """Medians; candidates down, places across."""
    places = sorted({row.x for rows in lines.values() for row in rows})
    table = []
    for name, rows in lines.items():
        cells = {row.x: row for row in rows}
        texts = []
        for place in places:
            row = cells.get(place)
            found = row.spread if row else None
            texts.append(quantity_text(found.median, row.unit) if found else "failed")
        table.append([name, *texts])
    return tabulate(table, ["", *(place_text(place) for place in places)], disable_numparse=True)


def ratio_text(verdict: Verdict) -> str:
    """What was measured of a bar: "31.2x (30.8 - 32.0)", "1/17.1", "0.53x", "1.2 s"."""
    bar, ratio = verdict.bar, verdict.ratio
    if bar.theirs is None:
        found = verdict.ours.spread if verdict.ours else None
        return quantity_text(found.median, verdict.ours.unit) if found else ""
    if ratio is None:
        return ""
    if bar.as_share:
        return _share(ratio.median)
    return f"{three_digits(ratio.median)}x ({three_digits(ratio.low)} - {three_digits(ratio.high)})"


def bar_text(bar: Bar) -> str:
    """What was asked for: "at least 30x, aim 50x", "at most 1/15", "at most 2 s"."""
    if bar.theirs is None:
        return f"at most {quantity_text(bar.at_least, 's')}"
    write = _share if bar.as_share else (lambda value: f"{value:.3g}x")
    text = f"{'at most' if bar.as_share else 'at least'} {write(bar.at_least)}"
    return text if bar.aim is None else f"{text}, aim {write(bar.aim)}"


def _share(times: float) -> str:
    return f"1/{times:.3g}" if times >= 5 else f"{1 / times:.2f}x"


def _bars(verdicts: Sequence[Verdict]) -> str:
    lines = [
        [v.bar.text, v.bar.theirs[2] if v.bar.theirs else "", ratio_text(v), bar_text(v.bar)]
        + [v.verdict]
        for v in verdicts
    ]
    heads = ["", "against", "measured", "bar", ""]
    return tabulate(lines, heads, disable_numparse=True)


def markdown(all_results: Sequence[Results]) -> str:
    """The table for README: every bar that was measured, a table for each device.

    Args:
        all_results: whole runs, in the order of the table.
    """
    parts = []
    for device in ("cpu", "cuda"):
        runs = [r for r in all_results if r.about["device"] == device and not r.about["quick"]]
        verdicts = [v for run in runs for v in judge(run) if v.verdict != "not measured"]
        lines = [
            (
                v.bar.text,
                _cell(v.theirs, name=True),
                _cell(v.ours),
                ratio_text(v).partition(" (")[0] if v.bar.theirs else "",
                bar_text(v.bar),
                v.verdict,
            )
            for v in verdicts
        ]
        if lines:
            heads = ("what", "against", "ours", "ratio", "bar", "")
            table = tabulate(lines, heads, tablefmt="pipe", disable_numparse=True)
            parts.append(f"{table}\n\n{_caption(runs)}")
    return "\n\n".join(parts)


def _cell(row: Row | None, name: bool = False) -> str:
    if row is None or row.spread is None:
        return ""
    text = quantity_text(row.spread.median, row.unit)
    return f"{row.candidate}: {text}" if name else text


def _caption(runs: Sequence[Results]) -> str:
    """Machine, versions, dates and commands of the runs."""
    about = runs[0].about
    versions = about["versions"]
    told = ", ".join(f"{n} {versions[n]}" for n in ("torch", "transformers") if n in versions)
    dates = sorted({run.about["started"][:10] for run in runs})
    commands = ", ".join(f"`{run.about['command']}`" for run in runs)
    return (
        f"Medians of interleaved repeats in one run, {machine_text(about['machine'])}; {told}; "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}. Made by {commands}."
    )
