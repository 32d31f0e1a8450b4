# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Checkpoints of a run: whole files, everything in them, strict loading."""

from pathlib import Path

import pytest
import torch

from detrex_mammo.engine import checkpointer as module
from detrex_mammo.engine.checkpointer import RunCheckpointer
from detrex_mammo.engine.training import next_step
from detrex_mammo.errors import UserError
from tests.engine.tiny import TinyDetector


class Counter:
    """Something with a state."""

    def __init__(self) -> None:
        self.value = 0

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]


def test_round_trip_restores_model_and_state(tmp_path: Path) -> None:
    model, counter = TinyDetector(), Counter()
    counter.value = 5
    RunCheckpointer(model, str(tmp_path), lambda: {"config": "a: 1"}, trainer=counter).save(
        "model_0000004", iteration=4
    )
    other, fresh = TinyDetector(), Counter()
    restorer = RunCheckpointer(other, str(tmp_path), trainer=fresh)
    restorer.restore(restorer.newest())
    assert fresh.value == 5
    for one, two in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    content = torch.load(tmp_path / "model_0000004.pth", weights_only=True)
    assert (content["config"], content["iteration"]) == ("a: 1", 4)


def test_empty_folder_has_nothing_to_resume(tmp_path: Path) -> None:
    checkpointer = RunCheckpointer(TinyDetector(), str(tmp_path))
    assert checkpointer.newest() is None
    assert next_step(None, tmp_path) == 0


def test_weights_alone_are_not_resumed(tmp_path: Path) -> None:
    checkpointer = RunCheckpointer(TinyDetector(), str(tmp_path))
    checkpointer.save("model_final")
    for trainer in ({}, {"trainer": {}}, {"trainer": "text"}):
        with pytest.raises(UserError, match="no trainer state"):
            next_step({**checkpointer.newest(), **trainer}, tmp_path)


def test_kill_while_writing_leaves_the_last_whole_file(tmp_path: Path, monkeypatch) -> None:
    saver = RunCheckpointer(TinyDetector(), str(tmp_path))
    saver.save("model_final")

    def half(content, file) -> None:
        file.write(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(module.torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        saver.save("model_final")
    monkeypatch.undo()
    assert set(RunCheckpointer(TinyDetector(), str(tmp_path)).newest()) == {"model"}


def test_newest_are_kept_and_the_final_one_is_not_counted(tmp_path: Path) -> None:
    saver = RunCheckpointer(TinyDetector(), str(tmp_path))
    for name in ("model_final", "model_0000009", "model_0000019", "model_0000029"):
        saver.save(name)
    saver.keep_newest(2)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [
        "model_0000019.pth",
        "model_0000029.pth",
        "model_final.pth",
    ]
