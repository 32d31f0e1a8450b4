# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Folders that hold no evaluated run: one sentence each, exit code 2 of the tools, no traceback."""

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from detrex_mammo.zoo.run_folder import read_run_folder
from tests.zoo.run_folders import write_by_hand

ROOT = Path(__file__).resolve().parents[2]


def call(tool: str, *arguments: str | Path) -> int:
    """Run a tool as its command line does; returns the exit code."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr("sys.argv", [tool, *map(str, arguments)])
        runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
    return left.value.code


def missing(folder: Path) -> None:
    pass


def a_file(folder: Path) -> None:
    folder.write_text("")


def empty(folder: Path) -> None:
    folder.mkdir()


def without_metrics(folder: Path) -> None:
    (write_by_hand(folder) / "metrics.json").unlink()


def damaged_metrics(folder: Path) -> None:
    (write_by_hand(folder) / "metrics.json").write_text('{"bbox/AP": 1')


def list_for_metrics(folder: Path) -> None:
    (write_by_hand(folder) / "metrics.json").write_text("[1]\n")


def not_evaluated(folder: Path) -> None:
    (write_by_hand(folder) / "metrics.json").write_text('{"iteration": 3, "total_loss": 1.0}\n')


def damaged_record(folder: Path) -> None:
    (write_by_hand(folder) / "run.json").write_text('{"sessions": [')


def damaged_froc(folder: Path) -> None:
    (write_by_hand(folder) / "froc.json").write_text("[]")


def damaged_config(folder: Path) -> None:
    (write_by_hand(folder) / "config.yaml").write_text("a: [1")


def trial_run(folder: Path) -> None:
    path = write_by_hand(folder) / "config.yaml"
    path.write_text(path.read_text().replace("fast_dev_run: false", "fast_dev_run: true"))


def unfinished(folder: Path) -> None:
    path = write_by_hand(folder) / "metrics.json"
    path.write_text('{"iteration": 3, "total_loss": 1.0}\n{"iteration": 3, "bbox/AP": 1.0}\n')


def random_weights(folder: Path) -> None:
    path = write_by_hand(folder) / "config.yaml"
    path.write_text(path.read_text().replace("init_checkpoint: projects", "init_checkpoint: ''#"))


def lost_checkpoint(folder: Path) -> None:
    path = write_by_hand(folder) / "config.yaml"
    path.write_text(path.read_text().replace("demo_small.pth", "lost.pth"))


WRONG = {
    missing: "is not there",
    a_file: "is a file",
    empty: "holds no config.yaml",
    without_metrics: "holds no metrics.json",
    damaged_metrics: "metrics.json' is damaged",
    list_for_metrics: "metrics.json' is damaged",
    not_evaluated: "holds no evaluation",
    damaged_record: "run.json' is damaged",
    damaged_froc: "froc.json' is damaged",
    damaged_config: "is not plain YAML",
    trial_run: "is a trial run",
    unfinished: "the training has not ended",
    random_weights: "evaluated random weights",
    lost_checkpoint: "is no file here",
}


@pytest.mark.parametrize("make", WRONG, ids=lambda make: make.__name__)
def test_a_wrong_folder_is_one_sentence(
    make: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    for tool, command in (("model_zoo.py", ["--root", tmp_path, "add"]), ("model_card.py", [])):
        assert call(tool, *command, tmp_path / "run") == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ") and told.count("\n") == 1
        assert WRONG[make] in told
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written


def test_a_good_folder_is_written_by_both_tools(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_by_hand(tmp_path / "run")
    zoo = ("model_zoo.py", "--root", tmp_path)
    assert call(*zoo, "add", tmp_path / "run", "--name", "mine") == 0
    assert call(*zoo, "build", "--check") == 2
    assert "run tools/model_zoo.py build" in capsys.readouterr().err
    # The row's checkpoint does not lie below this root, so it is said not to be published.
    assert call(*zoo, "build") == 0
    assert call(*zoo, "build", "--check") == 0
    assert "not published" in (tmp_path / "model_zoo.md").read_text()
    assert call("model_card.py", tmp_path / "run") == 0
    assert call("model_card.py", tmp_path / "run") == 2
    assert "README.md' exists" in capsys.readouterr().err


def test_the_last_evaluation_counts(tmp_path: Path) -> None:
    path = write_by_hand(tmp_path / "run") / "metrics.json"
    path.write_text('{"bbox/AP": 1.0}\n\n{"bbox/AP": 2.0, "bbox/APs": null}\n{"total_loss": 3.0}\n')
    assert read_run_folder(tmp_path / "run").metrics == {"bbox/AP": 2.0, "bbox/APs": None}
