# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Losses and gradients that are not finite: skipped, scaled or stopped, and run again."""

import copy
import importlib.util
import itertools
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from detrex_mammo.config import find_shipped
from detrex_mammo.engine.nan_dump import pack, unpack
from detrex_mammo.engine.replay import Replay
from detrex_mammo.engine.trainer import Trainer
from detrex_mammo.errors import UserError, run_tool
from tests.engine.faults import FaultyDetector, faulty_config, run
from tests.engine.test_trainer import NoDevice, batches, make
from tests.engine.tiny import TinyDetector, TinyMapper, read_lines, tiny_dataset


class LogDetector(TinyDetector):
    """Takes a logarithm of its head, which ``shift`` may make that of a negative number."""

    def __init__(self, shift: float = 0.0):
        super().__init__()
        self.logarithm = Logarithm(shift)

    def forward(self, batch: list[dict]):
        losses = super().forward(batch)
        if isinstance(losses, dict):
            losses["loss_log"] = self.logarithm(self.head.weight.sum())
        return losses


class Logarithm(nn.Module):
    def __init__(self, shift: float):
        super().__init__()
        self.shift = shift

    def forward(self, value):
        return (value**2 + 1 - self.shift).log()


def train(late: bool, steps: int = 5, **settings):
    """A run whose step 2 is NaN; ``late`` reads its numbers a step later, as on a GPU."""
    torch.manual_seed(0)
    model = TinyDetector(nan_at=2)
    trainer = make(model, fused=late, **settings)
    if late:
        trainer.copied = NoDevice()
    trainer.train(0, steps)
    return trainer


@pytest.mark.parametrize("late", [False, True])
def test_skipped_step_leaves_weights_and_optimizer_as_they_were(late: bool) -> None:
    """Steps 0, 1, 3 and 4 are those of plain torch on the batches 0, 1, 0 and 1 of three."""
    trainer = train(late, nan_policy="skip", max_norm=None)
    torch.manual_seed(0)
    model = TinyDetector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    source = batches()
    for step in range(5):
        batch = next(source)
        if step != 2:
            optimizer.zero_grad()
            sum(model(batch).values()).backward()
            optimizer.step()
    for one, other in zip(trainer.model.parameters(), model.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {4}
    steps = [step for _, step in trainer.storage.history("total_loss").values()]
    assert steps == [0, 1, 3, 4]
    assert (trainer.nan.in_row, trainer.nan.skipped) == (0, 1)


@pytest.mark.parametrize("late", [False, True])
def test_more_in_a_row_than_the_limit_stop(late: bool) -> None:
    model = FaultyDetector()
    model.forward = lambda batch: {"loss": model.head.weight.sum() * math.nan}
    trainer = make(model, fused=late, nan_policy="skip", nan_limit=3)
    if late:
        trainer.copied = NoDevice()
    with pytest.raises(UserError, match="stopped at step 3 .* in the 4th step in a row"):
        trainer.train(0, 9)
    assert all(p.isfinite().all() for p in model.parameters())


def test_counts_go_on_after_a_resume() -> None:
    trainer = train(False, steps=3, nan_policy="skip")
    other = make(TinyDetector(), nan_policy="skip")
    other.load_state_dict(trainer.state_dict())
    assert (other.nan.in_row, other.nan.skipped) == (1, 1)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("policy", "scale"), [("skip", 65536.0), ("halve_scale", 32768.0)])
def test_fp16_step_with_a_nan_loss_but_finite_gradients_changes_nothing(
    fused: bool, policy: str, scale: float
) -> None:
    """The scaler itself looks at the gradients only."""
    model = FaultyDetector(nan_at=0, gradient_is_finite=True)
    before = copy.deepcopy(model.state_dict())
    trainer = make(model, fused, amp_dtype=torch.float16, nan_policy=policy)
    trainer.train(0, 1)
    assert trainer.nan.skipped == 1
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert trainer.grad_scaler.get_scale() == scale


def test_fp16_overflow_halves_the_scale_once_and_is_no_nan() -> None:
    """Gradients of 1 times 65536 overflow in float16; then 32768 fits."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, batch: list) -> dict:
            return {"loss": self.weight.half().sum().float()}

    trainer = make(Half(), amp_dtype=torch.float16)
    trainer.train(0, 2)
    assert trainer.grad_scaler.get_scale() == 32768
    assert (trainer.nan.skipped, trainer.nan.overflows) == (0, 0)
    assert trainer.model.weight.item() != 0


def test_overflow_that_never_ends_stops() -> None:
    class Endless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, batch: list) -> dict:
            return {"loss": self.weight.sqrt().sum()}

    with pytest.raises(UserError, match="stopped at step 40: in fp16 .* 41 steps in a row"):
        make(Endless(), amp_dtype=torch.float16).train(0, 99)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("train.nan.policy=ignore", "train.nan.policy is 'ignore'"),
        ("train.nan.policy=halve_scale", "only fp16 has a scale"),
        ("train.nan.limit=0", "train.nan.limit is 0"),
    ],
)
def test_wrong_policy_is_one_sentence(argument: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected):
        run(faulty_config(tmp_path), argument)


def test_batch_survives_a_file(tmp_path: Path) -> None:
    instances = Instances((4, 6))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    instances.gt_classes = torch.tensor([1])
    item = {"image": torch.rand(3, 4, 6), "file_name": "a.png", "instances": instances, "more": [1]}
    torch.save(pack([item]), tmp_path / "batch.pth")
    (found,) = unpack(torch.load(tmp_path / "batch.pth", weights_only=True))
    assert torch.equal(found["image"], item["image"]) and found["more"] == [1]
    assert found["instances"].image_size == (4, 6)
    assert torch.equal(found["instances"].gt_boxes.tensor, instances.gt_boxes.tensor)
    assert torch.equal(found["instances"].gt_classes, instances.gt_classes)


def log_config(folder: Path) -> str:
    path = Path(faulty_config(folder))
    text = path.read_text().replace("L(FaultyDetector)(width=8, nan_at=-1)", "L(LogDetector)()")
    path.write_text("from tests.engine.test_nonfinite import LogDetector\n" + text)
    return str(path)


def own(folder: Path) -> Replay:
    """With a model that is not of this package."""
    return Replay(folder, config_file=str(folder / "config.yaml"))


def replay(*arguments: str) -> int:
    """The tool's exit code."""
    spec = importlib.util.spec_from_file_location(
        "replay_batch", find_shipped("tools/replay_batch.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["replay_batch.py", *arguments])
        run_tool(module.main)
    return ended.value.code


def test_stopped_run_leaves_all_to_find_the_module(tmp_path: Path, capsys) -> None:
    """The logarithm of a negative number is in the module ``logarithm`` and nowhere before."""
    config = log_config(tmp_path)
    with pytest.raises(UserError, match=r"tools/replay_batch.py .+nan_step_0'? tells"):
        run(config, "model.shift=1e6")
    folder = tmp_path / "run/nan_step_0"
    facts = json.loads((folder / "step.json").read_text())
    assert facts["step"] == 0 and "loss_log" in facts["not_finite"]
    assert (folder / "config.yaml").read_text() == (tmp_path / "run/config.yaml").read_text()
    capsys.readouterr()
    assert replay(str(folder), "--config-file", str(folder / "config.yaml")) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "process 0, batch 0: begins in module    logarithm: 1 of 1 numbers"
    assert any("loss_log = nan" in line for line in out)
    assert not any("gradient" in line for line in out)  # 1 / x is finite where log x is not


def test_replay_is_the_step_itself_with_its_dropout_and_batch(tmp_path: Path) -> None:
    """Loss and gradient of the replay are those of the trainer's own step 4, to the last digit."""
    config = faulty_config(tmp_path)
    common = ["model.dropout=0.5", "dataloader.train.mapper.noise=0.5"]
    run(config, *common, "train.max_iter=5", "train.clip_grad.enabled=False")
    expected = read_lines(tmp_path / "run/metrics.json", "loss_class")[4]
    with pytest.raises(UserError, match="nan_step_4"):
        run(config, *common, "model.nan_at=4", f"train.output_dir={tmp_path / 'nan'}",
            "train.clip_grad.enabled=False")  # fmt: skip
    again = own(tmp_path / "nan/nan_step_4")
    seen = []
    again.model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    (found,) = again.run(0)
    assert found.is_finite  # it was a counter that made it NaN, not the numbers
    assert float(seen[0]["loss_class"].detach()) == expected
    folder = tmp_path / "nan/nan_step_4"
    assert replay(str(folder), "--config-file", str(folder / "config.yaml")) == 1


def test_broken_image_and_broken_weight_are_where_it_begins(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nan_step_4"):
        run(faulty_config(tmp_path), "model.nan_at=4")
    again = own(tmp_path / "run/nan_step_4")
    batch = [TinyMapper()(item) for item in tiny_dataset(2)]
    batch[1]["image"][0, 0, 0] = math.inf
    found = again._step(batch)
    assert found.describe().startswith("begins in input     image of 1: 1 numbers")
    again.model.head.weight.data[0, 0] = math.nan
    found = again._step([batch[0]])
    assert found.describe().startswith("begins in weight    head.weight")


def test_replay_of_no_dump_is_one_sentence(tmp_path: Path, capsys) -> None:
    assert replay(str(tmp_path)) == 2
    assert "is not a folder nan_step_N" in capsys.readouterr().err


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    with pytest.raises(UserError, match="nan_step_2"):
        run(faulty_config(tmp_path), "model.nan_at=2")
    return tmp_path / "run/nan_step_2"


def test_stranger_s_dump_runs_nothing(dump: Path, tmp_path: Path, capsys) -> None:
    """Not even a class of one's own, unless the config is named."""
    assert replay(str(dump)) == 2
    error = capsys.readouterr().err
    assert "FaultyDetector', which is not run" in error and "--config-file" in error
    text = f"model: {{_target_: os.mkdir, path: {tmp_path / 'made'}}}\n"
    (dump / "config.yaml").write_text(text)
    assert replay(str(dump)) == 2
    assert "os.mkdir', which is not run" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("step.json", b"{}", "not a folder nan_step_N .*KeyError"),
        ("step.json", b"[1]", "not a folder nan_step_N .*TypeError"),
        ("step.json", b'{"amp": "load", "processes": 1}', "not a folder nan_step_N .*load"),
        ("state.pth", b"PK", "cut short"),
        ("batch_0.pth", b"PK", "cut short"),
        ("batch_0.pth", None, "holds none of the batches of its run, batch_0.pth"),
        ("batch_0.pth", {"batches": [{"items": []}]}, "holds no batches of a step"),
        ("batch_0.pth", {"batches": [{"items": [], "rng": {"cpu": 1}}]}, "holds no batches"),
    ],
)
def test_replay_of_a_damaged_dump_is_one_sentence(name, content, expected, dump, capsys) -> None:
    (dump / name).unlink()
    if isinstance(content, dict):
        torch.save(content, dump / name)
    elif content is not None:
        (dump / name).write_bytes(content)
    assert replay(str(dump), "--config-file", str(dump / "config.yaml")) == 2
    assert re.search(f"^error: .*{expected}", capsys.readouterr().err, re.MULTILINE)


class NormDetector(TinyDetector):
    """With a batch norm that learns."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = self.norm  # takes the features before the head


@pytest.mark.parametrize("late", [False, True])
def test_step_that_is_left_out_leaves_batch_norms_as_they_were(late: bool, monkeypatch) -> None:
    """An image with NaN goes through the norm before any loss is known."""
    trainers = []
    for bad in (2, -1):
        torch.manual_seed(0)
        rows = itertools.islice(batches(), 5)
        rows = [copy.deepcopy(row) for row in rows]
        if bad < 0:
            del rows[2]
        else:
            rows[2][0]["image"][:] = math.nan
        trainer = make(NormDetector(), fused=late, nan_policy="skip")
        trainer._data_loader_iter = iter(rows)
        trainer.copied = NoDevice() if late else None
        trainer.train(0, len(rows))
        trainers.append(trainer)
    one, other = (trainer.model.state_dict() for trainer in trainers)
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=0, atol=0, msg=name)
    assert trainers[0].nan.skipped == 1


def test_step_that_cannot_be_read_takes_back_what_batch_norms_have_seen(tmp_path: Path) -> None:
    """Its first small batch has gone through them when the second one fails; see that a resumed
    run does both again, once."""
    path = Path(faulty_config(tmp_path))
    text = path.read_text().replace("L(FaultyDetector)(width=8, nan_at=-1)", "L(NormDetector)()")
    path.write_text("from tests.engine.test_nonfinite import NormDetector\n" + text)
    settings = ["train.accumulate=3", "train.checkpointer.period_epochs=0"]
    run(str(path), *settings, f"train.output_dir={tmp_path / 'whole'}")
    whole = torch.load(tmp_path / "whole/model_final.pth", weights_only=True)["model"]
    numbers, load = itertools.count(1), TinyMapper.__call__

    def damaged(mapper: TinyMapper, item: dict) -> dict:
        if next(numbers) == 12 + 5 + 9:  # images of the first epoch and its test, then the third
            raise UserError("image is damaged")
        return load(mapper, item)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="is damaged"):
        patch.setattr(TinyMapper, "__call__", damaged)
        run(str(path), *settings)
    run(str(path), *settings, "--resume")
    found = torch.load(tmp_path / "run/model_final.pth", weights_only=True)["model"]
    assert int(found["norm.num_batches_tracked"]) == int(whole["norm.num_batches_tracked"]) == 9
    for name, value in whole.items():
        assert torch.equal(found[name], value), name


def test_weights_that_an_update_made_infinite_are_not_saved(tmp_path: Path, monkeypatch) -> None:
    """Neither where it is time nor when the next step stops the run, which goes on from before."""
    config, update = faulty_config(tmp_path), Trainer._update

    def overflow(trainer: Trainer, *arguments) -> None:
        update(trainer, *arguments)
        if trainer.iter == 3:
            trainer.model.head.bias.data.fill_(math.inf)

    often = "train.checkpointer.period_epochs=0.34"
    for settings, expected in (([often], "weights after step 3 are not finite"), ([], "at step 4")):
        with monkeypatch.context() as patch, pytest.raises(UserError, match=expected):
            patch.setattr(Trainer, "_update", overflow)
            run(config, "--resume", *settings)
        assert not (tmp_path / "run/model_0000003.pth").exists()
    assert "step 3 is not saved: the weights" in (tmp_path / "run/log.txt").read_text()
    run(config, "--resume")
    assert (tmp_path / "run/model_final.pth").exists()
