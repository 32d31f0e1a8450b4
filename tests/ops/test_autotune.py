# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Which configuration a kernel is launched with, and what of the file on disk is believed."""

import json
import multiprocessing
from pathlib import Path

import pytest
import torch

from detrex_mammo.ops import autotune, c_compiler
from detrex_mammo.ops.autotune import CANDIDATES, Config

NAME = "forward_kernel"
DEFAULT, OTHER = CANDIDATES[NAME][0], CANDIDATES[NAME][3]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no memory, and a clock that finds OTHER fastest."""
    monkeypatch.setattr(c_compiler, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.delenv(autotune.AUTOTUNE_VARIABLE, raising=False)

    def measure(launch, config: Config) -> float:
        launch(config)
        return 1.0 if config == OTHER else 2.0

    monkeypatch.setattr(autotune, "_measure", measure)
    autotune._winners.cache_clear()
    yield tmp_path / autotune.FILE_NAME
    autotune._winners.cache_clear()


def run(key: str = "key", device: str = "cuda") -> list:
    """Every launch in order, and "reset"."""
    events = []
    autotune.run(NAME, key, events.append, lambda: events.append("reset"), device)
    return events


def test_times_once_and_remembers(file: Path) -> None:
    assert run() == [*CANDIDATES[NAME], "reset", OTHER]
    assert run() == [OTHER]
    assert json.loads(file.read_text()) == {"key": list(OTHER)}
    autotune._winners.cache_clear()  # the next process
    assert run() == [OTHER]
    assert run("another key")[-2:] == ["reset", OTHER]
    assert set(json.loads(file.read_text())) == {"key", "another key"}
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.stat().st_mode & 0o777 == 0o600


def test_default_where_nothing_may_be_timed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(device="cpu") == [DEFAULT]
    with monkeypatch.context() as patch:
        patch.setenv(autotune.AUTOTUNE_VARIABLE, "0")
        assert run() == [DEFAULT]
    torch.use_deterministic_algorithms(True)
    try:
        assert run() == [DEFAULT]
    finally:
        torch.use_deterministic_algorithms(False)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert run() == [DEFAULT]
    assert not file.exists()


def test_a_graph_is_captured_with_the_known_winner(file: Path, monkeypatch) -> None:
    run()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert run() == [OTHER]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100000,
        "[1, 2]",
        '"key"',
        '{"key": [1]}',
        '{"key": [1, 4, 1]}',
        '{"key": [1000, 4]}',
        '{"key": [true, 4]}',
        '{"key": [1.0, 4.0]}',
        '{"key": ["1", "4"]}',
        '{"key": {"loads": 1}}',
        '{"key": null}',
        "\udcff",
    ],
)
def test_what_is_no_configuration_is_ignored(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert run() == [*CANDIDATES[NAME], "reset", OTHER]


def test_a_configuration_of_another_kernel_is_ignored(file: Path) -> None:
    others = set(CANDIDATES["forward_kernel"]) - set(CANDIDATES["backward_kernel"])
    file.write_text(json.dumps({"key": list(others.pop())}))
    events = []
    autotune.run("backward_kernel", "key", events.append, lambda: None, "cuda")
    assert len(events) > 1


def test_a_folder_that_cannot_be_written_costs_only_time(file: Path, monkeypatch) -> None:
    monkeypatch.setattr(c_compiler, "cache_folder", lambda: file.parent / "missing")
    assert run() == [*CANDIDATES[NAME], "reset", OTHER]
    assert run() == [OTHER]


def remember(folder: Path, number: int) -> None:
    c_compiler.cache_folder = lambda: folder
    for turn in range(20):
        autotune._remember(f"{number} {turn}", OTHER)


def test_processes_write_at_once(file: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=remember, args=(file.parent, n)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = autotune._read(file)
    assert set(found.values()) == {OTHER}  # one may lose what another wrote meanwhile
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_candidates_are_known_once() -> None:
    for candidates in CANDIDATES.values():
        assert len(set(candidates)) == len(candidates)
        assert all(c.num_warps in (1, 2, 4, 8) and c.loads in (1, 2, 4) for c in candidates)
