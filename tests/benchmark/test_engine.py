# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Mode engine: its clock by hand, its rows against its bars, and the quick run."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from detrex_mammo.benchmark import engine
from detrex_mammo.benchmark.bars import BARS, judge
from detrex_mammo.benchmark.main import main
from detrex_mammo.benchmark.session import Session
from detrex_mammo.config import instantiate
from tests.benchmark.example import make_results


class Clock:
    """Stands still, but for what is told to take time."""

    now = 0.0

    def __call__(self) -> tuple[float, float]:
        return self.now, self.now / 2


class Model(nn.Module):
    """Its forward pass takes 3 seconds, its backward pass 4."""

    def __init__(self, clock: Clock):
        super().__init__()
        self.clock, self.weight = clock, nn.Parameter(torch.ones(2))
        self.weight.register_hook(lambda _: self.spend(4))

    def spend(self, seconds: float) -> None:
        self.clock.now += seconds

    def forward(self, batch: list) -> dict[str, torch.Tensor]:
        self.spend(3)
        return {"loss_class": self.weight.square().sum()}


def test_time_inside_and_outside(monkeypatch) -> None:
    """The loader takes 10 seconds, forward 3, backward 4, the optimizer 2: 19, of which 10 outside.

    Processors work half of the time.
    """
    clock = Clock()
    monkeypatch.setattr(engine, "_clocks", clock)
    monkeypatch.setattr(engine.TimedTrainer, "marks", [])
    model = Model(clock)

    class Optimizer(torch.optim.SGD):
        def step(self, closure=None) -> None:
            clock.now += 2

    def load():
        while True:
            clock.now += 10
            yield [{}]

    trainer = engine.TimedTrainer(model, load(), Optimizer(model.parameters(), lr=0.1))
    trainer.train(0, 3)
    starts = engine.TimedTrainer.marks
    assert starts == [(19 * i, 9.5 * i, 9 * i, 4.5 * i) for i in range(3)]
    assert torch.Tensor.backward.__module__ == "torch._tensor"  # put back


def test_every_bar_finds_what_a_run_writes(tmp_path: Path, monkeypatch) -> None:
    """A whole run whose measurements are numbers by hand: activations 3 GB and 1 GB, and so on."""

    def in_child(function, **arguments):
        if function is engine.child_accumulated:
            return 2_000_000_000 + 5_000_000 * arguments["batches"]
        if function is engine.child_checkpointed:
            size = 3e9 if arguments["name"] == engine.NONE else 1e9
            return {engine.ACTIVATIONS: size, engine.PEAK: 1e9 + size}
        seconds = 1e-3 if arguments["is_tiny"] else 0.2
        return {engine.OUTSIDE: [seconds], engine.CPU_OUTSIDE: [seconds], engine.WHOLE: [5.0]}

    monkeypatch.setattr(engine, "in_child", in_child)
    monkeypatch.setattr(engine, "our_subject", lambda *arguments: None)
    monkeypatch.setattr(engine, "TrainingStep", lambda *arguments: lambda: None)
    monkeypatch.setattr(engine, "draw_images", lambda *arguments: None)
    results = make_results(tmp_path, "engine")
    engine.run(Session("engine", "cpu", False, 1, results))
    verdicts = {v.bar.text: v.verdict for v in judge(results)}
    assert len(verdicts) == sum(bar.mode == "engine" for bar in BARS) == 5
    (time,) = (text for text in verdicts if "training step" in text)
    assert verdicts.pop(time) in ("met", "not met")  # of nothing
    accumulated, activations, tiny, whole = verdicts.values()
    assert (accumulated, activations, tiny, whole) == ("met", "met", "met", "not met")


def test_what_failed_is_told(tmp_path: Path, monkeypatch) -> None:
    def in_child(function, **arguments):
        raise engine.ChildError("killed by SIGKILL (out of memory?)")

    monkeypatch.setattr(engine, "in_child", in_child)
    results = make_results(tmp_path, "engine")
    session = Session("engine", "cpu", True, 1, results)
    engine._accumulation(session)
    engine._overhead(session)
    assert len(results.rows) == 5 and not any(row.values for row in results.rows)
    assert all("SIGKILL" in row.error for row in results.rows)


def test_switches_are_settings_that_exist() -> None:
    assert engine._switched(engine.NONE) == []
    assert len(engine._switched(engine.ALL)) == 3
    cfg = engine.load_config(engine.CONFIG, engine._switched(engine.ALL))
    assert cfg.model.transformer.encoder_checkpointing and cfg.model.backbone.checkpointing


def test_the_loader_never_ends(tmp_path: Path) -> None:
    cfg = engine._run_config(True, (64, 48), str(tmp_path / "run"))
    node = cfg.dataloader.train
    loader = engine.ready_loader(instantiate(node.dataset), None, 1, node.size)
    first, second = itertools.islice(loader, 2)
    assert first is second and first[0]["image"].shape == (3, 64, 48)


@pytest.mark.slow
def test_quick_run(tmp_path: Path) -> None:
    main(["engine", "--quick", "--repeats", "1", "--threads", "1", "--output", str(tmp_path)])
    content = json.loads((tmp_path / "engine_cpu_quick.json").read_text())
    assert len(content["rows"]) == 2 + 4 * 4 + 3
    assert all(row["values"] and not row["error"] for row in content["rows"])
    assert (tmp_path / "engine_cpu_quick.png").is_file()
