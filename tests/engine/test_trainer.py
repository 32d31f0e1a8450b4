# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The training step, against the same arithmetic done by hand with torch alone."""

import copy
import itertools
import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from detrex_mammo.engine.hooks import LearningRate
from detrex_mammo.engine.schedule import MultiStepSchedule
from detrex_mammo.engine.trainer import Trainer
from detrex_mammo.errors import UserError
from tests.engine.tiny import TinyDetector, TinyMapper, tiny_dataset


def batches() -> itertools.cycle:
    items = [TinyMapper()(item) for item in tiny_dataset(6)]
    return itertools.cycle([items[:2], items[2:4], items[4:]])


def make(model: nn.Module, fused: bool = False, **settings) -> Trainer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    return Trainer(model, batches(), optimizer, **settings)


class NoDevice:
    """Stands for the event that tells when a GPU has sent the metrics."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def record(self) -> None:
        self.calls.append("record")

    def synchronize(self) -> None:
        self.calls.append("synchronize")


def make_late(model: nn.Module, **settings) -> Trainer:
    """A trainer that puts off reading its metrics, as it does on a GPU."""
    trainer = make(model, fused=True, **settings)
    trainer.copied = NoDevice()
    return trainer


@pytest.mark.parametrize("fused", [False, True])
def test_steps_equal_plain_torch_with_clipping(fused: bool) -> None:
    model = TinyDetector()
    by_hand = copy.deepcopy(model)
    make(model, fused, max_norm=0.1).train(0, 3)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-2)
    for batch in itertools.islice(batches(), 3):
        optimizer.zero_grad()
        sum(by_hand(batch).values()).backward()
        norm = math.sqrt(sum(float(p.grad.norm()) ** 2 for p in by_hand.parameters()))
        for parameter in by_hand.parameters():
            parameter.grad.mul_(min(1.0, 0.1 / (norm + 1e-6)))
        optimizer.step()
    for one, other in zip(model.parameters(), by_hand.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_metrics_of_a_step_are_recorded() -> None:
    trainer = make(TinyDetector(), max_norm=None)
    trainer.train(0, 2)
    latest = {name: value for name, (value, _) in trainer.storage.latest().items()}
    assert {"loss_bbox", "loss_class", "total_loss", "grad_norm", "data_time"} <= set(latest)
    assert latest["total_loss"] == pytest.approx(latest["loss_bbox"] + latest["loss_class"])


@pytest.mark.parametrize("fused", [False, True])
def test_nan_loss_stops_before_the_weights_change(fused: bool) -> None:
    model = TinyDetector(nan_at=2)
    two_steps = copy.deepcopy(model)
    trainer = make(model, fused)
    with pytest.raises(UserError, match=r"stopped at step 2 .* loss_bbox=nan, loss_class=nan"):
        trainer.train(0, 5)
    make(two_steps, fused).train(0, 2)
    assert trainer.iter == 2
    for one, other in zip(model.parameters(), two_steps.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("amp_dtype", [None, torch.float16])
def test_late_reading_stops_a_step_later_with_the_same_weights(amp_dtype) -> None:
    """The optimizer has left out the step with the NaN by itself, and the next one never comes."""
    model = TinyDetector(nan_at=2)
    two_steps = copy.deepcopy(model)
    trainer = make_late(model, amp_dtype=amp_dtype)
    with pytest.raises(UserError, match=r"stopped at step 2 .* loss_bbox=nan, loss_class=nan"):
        trainer.train(0, 5)
    assert trainer.iter == 3
    make(two_steps, fused=True, amp_dtype=amp_dtype).train(0, 2)
    for one, other in zip(model.parameters(), two_steps.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_late_reading_records_every_step_under_its_own_number() -> None:
    """And waits for the device only where the last step's numbers are needed at once."""
    torch.manual_seed(0)
    model = TinyDetector()
    prompt, late = make(copy.deepcopy(model), fused=True), make_late(model, log_period=2)
    prompt.train(0, 5)
    late.train(0, 5)
    for name in ("total_loss", "grad_norm", "loss_bbox"):
        expected = prompt.storage.history(name).values()
        assert late.storage.history(name).values() == expected
        assert [step for _, step in expected] == [0, 1, 2, 3, 4]
    step = ["record", "synchronize"]
    assert late.copied.calls == step * 5 and late.unread is None


def test_late_nan_is_not_saved() -> None:
    """The state of a trainer is read only after its last step has been found finite."""
    trainer = make_late(TinyDetector(nan_at=0))
    trainer.iter, trainer.max_iter = 0, 9
    with EventStorage() as trainer.storage:
        trainer.run_step()
        with pytest.raises(UserError, match="step 0"):
            trainer.state_dict()


def test_infinite_gradient_of_a_finite_loss_stops_too() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, batch: list) -> dict:
            return {"loss": self.weight.sqrt().sum()}

    with pytest.raises(UserError, match="grad_norm"):
        make(Root()).train(0, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_on_cpu_stays_near_full_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    full = TinyDetector()
    mixed = copy.deepcopy(full)
    make(full).train(0, 3)
    seen = []
    mixed.head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer = make(mixed, amp_dtype=dtype)
    trainer.train(0, 3)
    assert set(seen) == {dtype}
    assert (trainer.grad_scaler is not None) == (dtype is torch.float16)
    for one, other in zip(full.parameters(), mixed.parameters()):
        assert other.dtype is torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=0.03)  # 3 steps of at most 0.01


def test_state_moves_between_precisions() -> None:
    state = make(TinyDetector(), amp_dtype=torch.float16).state_dict()
    assert "grad_scaler" in state
    make(TinyDetector()).load_state_dict(state)
    plain = make(TinyDetector()).state_dict()
    make(TinyDetector(), amp_dtype=torch.float16).load_state_dict(plain)


def test_learning_rate_follows_the_step_even_after_a_resume() -> None:
    model = TinyDetector()
    groups = [
        {"params": list(model.backbone.parameters()), "lr": 0.2},
        {"params": list(model.head.parameters()), "lr": 1.0},
    ]
    trainer = Trainer(model, batches(), torch.optim.SGD(groups))
    trainer.register_hooks([LearningRate(trainer.optimizer, MultiStepSchedule([1]), 2)])
    for group in trainer.optimizer.param_groups:
        group["lr"] = 77.0  # what a checkpoint restores
    trainer.train(1, 3)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([0.02, 0.1])
    assert [value for value, _ in trainer.storage.history("lr").values()] == pytest.approx(
        [0.2, 0.02]
    )
