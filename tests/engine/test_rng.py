# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Random generators: a stopped and resumed run draws what an uninterrupted one does."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from detrex_mammo.engine import rng
from detrex_mammo.engine.main import main
from tests.engine.tiny import read_lines, write_config


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_state_is_a_whole_one_and_survives_a_file(tmp_path: Path) -> None:
    """Also in the middle of NumPy's and Python's pairs of normal numbers."""
    random.gauss(0, 1), np.random.normal()
    torch.save(rng.gather_states(), tmp_path / "state.pth")
    first = draw(), random.gauss(0, 1), np.random.normal()
    rng.restore(torch.load(tmp_path / "state.pth", weights_only=True), 5)
    assert (draw(), random.gauss(0, 1), np.random.normal()) == first


def test_nothing_is_drawn_inside() -> None:
    state = rng.get_state()
    expected = draw()
    rng.set_state(state)
    with pytest.raises(RuntimeError), rng.undisturbed():
        draw()
        raise RuntimeError
    assert draw() == expected


def test_another_number_of_processes_draws_anew(caplog) -> None:
    """From the run's seed and the step, so that it can be repeated, but nothing is drawn twice."""
    torch.manual_seed(3)
    states = rng.gather_states() * 2
    before = draw()
    rng.restore(states, 7)
    after = draw()
    torch.manual_seed(3)
    rng.restore(None, 7)
    assert draw() == after != before


def test_stream_goes_on_inside_and_stays_outside() -> None:
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    stream = rng.TorchStream()
    inside, outside = [], []
    for _ in range(4):
        with stream:
            inside.append(torch.rand(()))
        outside.append(torch.rand(()))
    assert torch.equal(torch.stack(inside), expected)
    assert torch.equal(torch.stack(outside), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_has_the_losses_of_an_uninterrupted_one(workers: int, tmp_path: Path) -> None:
    """Dropout and random augmentation; an evaluation after step 3 is made in one run only."""
    config = write_config(tmp_path)
    common = [
        "model.dropout=0.1",
        "dataloader.train.mapper.noise=0.5",
        f"dataloader.train.num_workers={workers}",
    ]

    def losses(name: str, *arguments: str) -> list[float]:
        output = f"train.output_dir={tmp_path / name}"
        main(["--config-file", config, output, *common, *arguments])
        return read_lines(tmp_path / name / "metrics.json", "total_loss")

    whole = losses("whole", "train.max_iter=6")
    losses("stopped", "train.max_iter=3", "dataloader.evaluator=null")
    assert losses("stopped", "train.max_iter=6", "--resume") == whole
    assert len(set(whole)) == 6


@pytest.mark.slow
def test_every_process_goes_on_with_its_own_state(tmp_path: Path) -> None:
    config = write_config(tmp_path)

    def losses(name: str, *arguments: str) -> list[float]:
        output = f"train.output_dir={tmp_path / name}"
        main(["--config-file", config, output, "--num-gpus", "2", "model.dropout=0.1", *arguments])
        return read_lines(tmp_path / name / "metrics.json", "total_loss")

    whole = losses("whole", "train.max_iter=6")
    losses("stopped", "train.max_iter=3")
    states = torch.load(tmp_path / "stopped/model_final.pth", weights_only=True)["trainer"]["rng"]
    assert len(states) == 2 and not torch.equal(states[0]["torch"], states[1]["torch"])
    assert losses("stopped", "train.max_iter=6", "--resume") == whole
