# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What is printed: for the terminal, and README's table."""

from pathlib import Path

from detrex_mammo.benchmark.results import Row
from detrex_mammo.benchmark.tables import full_report, markdown
from tests.benchmark.example import fill, make_results


def cells(text: str, start: str) -> list[str]:
    """Words of the first line that starts so."""
    return next(line for line in text.splitlines() if line.startswith(start)).split()


def test_report_has_medians_quartiles_ratios_and_errors(tmp_path: Path) -> None:
    text = full_report(fill(make_results(tmp_path)))
    assert "Some CPU, 2 cores, 1 thread; load average at start 0.25" in text
    assert "python 3.11.7, torch 2.14.1, transformers 5.23.0" in text
    expected = "reference 800 ms 750 ms - 850 ms 3 1.00x".split()
    assert cells(text, "reference") == expected
    assert cells(text, "c ") == "c 20.0 ms 20.0 ms - 25.0 ms 3 35.0x hot".split()
    assert cells(text, "transformers  ") == "transformers ValueError: no".split()
    assert "deformops: its kernels need a GPU" in text
    assert "unfinished" in text.splitlines()[0]


def test_report_has_the_bars_with_what_was_measured(tmp_path: Path) -> None:
    """0.8 / 0.02, 0.7 / 0.02 and 0.9 / 0.03 are 40, 35 and 30; 1.1 GB / 55 MB is 20."""
    text = full_report(fill(make_results(tmp_path)))
    line = cells(text, "operator, encoder, unfused, forward ")
    assert " ".join(line[4:]) == "reference 35.0x (32.5 - 37.5) at least 30x, aim 50x met"
    line = cells(text, "operator, encoder, unfused, extra")
    assert " ".join(line[-9:]) == "transformers 1/20 at most 1/15, aim 1/20 aim met"
    assert cells(text, "cached start")[-2:] == ["not", "measured"]


def test_curves_are_tables_with_failures(tmp_path: Path) -> None:
    text = full_report(fill(make_results(tmp_path)))
    block = text.partition("by queries: forward\n")[2].splitlines()
    assert block[0].split() == ["10", "100"]
    assert block[2].split() == "c 2.00 ms 20.0 ms".split()
    assert block[3].split() == "reference failed 1.00 s".split()


def test_a_quick_run_says_so(tmp_path: Path) -> None:
    text = full_report(fill(make_results(tmp_path, quick=True)))
    assert "This was a quick run on small shapes" in text
    assert "aim" not in text


def test_markdown_has_one_row_for_each_bar_that_was_measured(tmp_path: Path) -> None:
    op, train = fill(make_results(tmp_path)), make_results(tmp_path, "train")
    case = "R50 two-stage, fp32"
    for name, seconds in (("transformers", 26.0), ("transformers, patched", 8.0)):
        train.add(Row(case, "training step", name, values=[seconds]))
    lines = markdown([op, train]).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:-2]]
    assert rows[0] == ["what", "against", "ours", "ratio", "bar", ""]
    assert rows[2:] == [
        ["operator, encoder, unfused, forward", "reference: 800 ms", "20.0 ms", "35.0x",
         "at least 30x, aim 50x", "met"],
        ["operator, encoder, unfused, extra memory, forward + backward", "transformers: 1.10 GB",
         "55.0 MB", "1/20", "at most 1/15, aim 1/20", "aim met"],
        ["R50 two-stage, training step: transformers, patched", "transformers: 26.0 s", "8.00 s",
         "3.25x", "at least 3x", "met"],
    ]  # fmt: skip
    assert "Some CPU, 2 cores, 1 thread; torch 2.14.1, transformers 5.23.0" in lines[-1]
    assert "`python tools/benchmark.py op`, `python tools/benchmark.py train`" in lines[-1]


def test_markdown_of_nothing_is_nothing(tmp_path: Path) -> None:
    assert markdown([]) == ""
    assert markdown([fill(make_results(tmp_path, quick=True))]) == ""
