# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The tool: its mistakes in one sentence, what is kept of a run, and the quick run end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detrex_mammo.benchmark import main as tool
from detrex_mammo.benchmark.bars import BARS
from detrex_mammo.benchmark.main import main, resolve_device
from detrex_mammo.benchmark.results import Row, load_results
from detrex_mammo.errors import UserError
from detrex_mammo.ops import why_not
from tests.benchmark.example import fill, make_results

ROOT = Path(__file__).resolve().parents[2]


def run_tool(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/benchmark.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ([], "the following arguments are required: MODE"),
        (["opp"], "invalid choice: 'opp'"),
        (["op", "--repeat-s", "3"], "unrecognized arguments: --repeat-s 3"),
        (["op", "--repeats", "0"], "--repeats is 0; use 1 or more"),
        (["op", "--repeats", "many"], "invalid int value: 'many'"),
        (["train", "--threads", "-1"], "--threads is -1; use 1 or more"),
        (["op", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["data", "--device", "cpu"], "unrecognized arguments: --device cpu"),
    ],
)
def test_mistakes_are_one_sentence(line: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        main(line)


def test_a_gpu_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device is 'cuda', but torch finds no GPU here"):
        main(["inference", "--device", "cuda"])
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"


def test_the_tool_exits_with_2_and_one_line() -> None:
    done = run_tool("opp")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "'opp'" in line
    assert done.stdout == ""


def test_table_of_the_newest_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="holds no results of a whole run"):
        main(["table", "--output", str(tmp_path)])
    fill(make_results(tmp_path)).finish()
    make_results(tmp_path, "train").save()  # unfinished: left out
    main(["table", "--output", str(tmp_path)])
    text = capsys.readouterr().out
    assert "| operator, encoder, unfused, forward " in text
    assert "train" not in text


def start_run(monkeypatch: pytest.MonkeyPatch, ends_with: BaseException | None, *more: str):
    """Mode op, replaced by one measurement and an end."""

    def run(session) -> None:
        session.results.add(Row("encoder, fused, fp32", "forward", "c", values=[0.02]))
        if ends_with:
            raise ends_with

    monkeypatch.setitem(tool.RUN, "op", run)
    main(["op", "--device", "cpu", *more])


def test_ctrl_c_keeps_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ("--output", str(tmp_path))
    start_run(monkeypatch, None, *output)
    whole = (tmp_path / "op_cpu.json").read_text()
    with pytest.raises(KeyboardInterrupt):
        start_run(monkeypatch, KeyboardInterrupt(), *output)
    assert (tmp_path / "op_cpu.json").read_text() == whole
    kept = load_results(tmp_path / "op_cpu_unfinished.json")
    assert kept.rows == [Row("encoder, fused, fp32", "forward", "c", values=[0.02])]
    text = capsys.readouterr().out
    assert "c   20.0 ms" in text
    assert text.endswith(f"written to {tmp_path / 'op_cpu_unfinished.json'}\n")


def test_a_whole_run_leaves_a_file_and_a_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    start_run(monkeypatch, None, "--output", str(tmp_path), "--quick")
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == ["op_cpu_quick.json", "op_cpu_quick.png"]
    content = json.loads((tmp_path / files[0]).read_text())
    assert content["quick"] and content["finished"] >= content["started"]
    assert content["command"].startswith("python tools/benchmark.py op --device cpu --output")
    assert {"cpu", "cores", "threads", "gpu", "load_average_at_start"} <= set(content["machine"])
    assert {"python", "torch", "detrex_mammo", "C compiler"} <= set(content["versions"])


def test_quick_run_of_the_operator(tmp_path: Path) -> None:
    """End to end: every backend and peer, memory, starts, curves; each bar finds its rows."""
    if why_not("c"):
        pytest.skip(why_not("c"))
    line = f"op --quick --repeats 1 --threads 1 --device cpu --output {tmp_path}"
    done = run_tool(*line.split())
    assert done.returncode == 0, done.stderr
    results = load_results(tmp_path / "op_cpu_quick.json")
    failed = [(row.key, row.error) for row in results.rows if row.error or not row.values]
    assert failed == []
    assert (tmp_path / "op_cpu_quick.png").stat().st_size > 10_000
    assert "This was a quick run on small shapes" in done.stdout
    assert "encoder, fused, fp32: forward + backward" in done.stdout
    assert "[op 0:" in done.stderr
    bars = [bar for bar in BARS if (bar.mode, bar.device) == ("op", "cpu")]
    wanted = {cell for bar in bars for cell in (bar.ours, bar.theirs) if cell}
    measured = {row.key[:3] for row in results.rows}
    # A quick run weighs few candidates: a process for each takes seconds.
    assert {cell[1] for cell in wanted - measured} <= {"extra memory, forward + backward"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["inference", "train", "data"])
def test_quick_run_of_the_other_modes(tmp_path: Path, mode: str) -> None:
    done = run_tool(*f"{mode} --quick --threads 1 --output {tmp_path}".split())
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob(f"{mode}_*_quick.json")
    results = load_results(file)
    assert [(row.key, row.error) for row in results.rows if row.error or not row.values] == []
    bars = [bar for bar in BARS if (bar.mode, bar.device) == (mode, results.about["device"])]
    wanted = {cell for bar in bars for cell in (bar.ours, bar.theirs) if cell}
    assert wanted <= {row.key[:3] for row in results.rows}
