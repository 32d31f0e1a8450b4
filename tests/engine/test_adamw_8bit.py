# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""8-bit AdamW: what it says without its library; with it, its numbers, resume and memory."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from detrex_mammo.config import get_config, load_config
from detrex_mammo.engine.adamw_8bit import _adamw_class, adamw_8bit
from detrex_mammo.engine.main import main
from detrex_mammo.engine.memory import predict_peak
from detrex_mammo.errors import UserError
from tests.engine.tiny import read_lines, write_config

TARGET = "detrex_mammo.engine.adamw_8bit.adamw_8bit"
has_library = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs detrex_mammo[8bit]"
)


def config_of(folder: Path, is_8bit: bool = True) -> str:
    """The tiny run, with AdamW in 8 or 32 bits, in a file of its own."""
    path = Path(write_config(folder))
    if is_8bit:
        text = path.read_text() + f'\noptimizer._target_ = "{TARGET}"\n'
        path = folder / "tiny_config_8bit.py"
        path.write_text(text)
    return str(path)


def test_without_the_library_it_is_one_sentence(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    _adamw_class.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'detrex_mammo\[8bit\]'") as caught:
        main(["--config-file", config_of(tmp_path)])
    assert "\n" not in str(caught.value)
    _adamw_class.cache_clear()


def test_wrong_settings_are_one_sentence() -> None:
    weight = nn.Parameter(torch.zeros(4))
    with pytest.raises(UserError, match="optimizer.fused is False"):
        adamw_8bit([weight], fused=False)
    weight.placements = ()  # as a sharded one has
    with pytest.raises(UserError, match="cannot read sharded parameters"):
        adamw_8bit([{"params": [weight]}])


def test_the_shipped_config_has_the_settings_of_the_fused_one() -> None:
    shipped = get_config("configs/common/optim.py")
    fused, small = dict(shipped.AdamW), dict(shipped.AdamW8bit)
    assert fused.pop("fused") and fused.pop("_target_") != small.pop("_target_")
    assert small == fused


def train_by_hand(optimizer_of, first: int, last: int, model: nn.Module, state=None):
    """Steps on numbers that follow from the step; returns the optimizer."""
    optimizer = optimizer_of(model.parameters())
    if state is not None:
        optimizer.load_state_dict(state)
    for number in range(first, last):
        optimizer.zero_grad()
        x = torch.randn(4, 32, 6, 6, generator=torch.Generator().manual_seed(number))
        model(x).square().mean().backward()
        optimizer.step()
    return optimizer


def network() -> nn.Module:
    """9216 numbers in 8 bits, in memory channels last; 32 in 32 bits."""
    torch.manual_seed(0)
    return nn.Conv2d(32, 32, 3).to(memory_format=torch.channels_last)


@has_library
def test_it_is_adamw_but_for_rounding() -> None:
    """Eight steps of at most lr = 0.01 each; the bias, in 32 bits, agrees to rounding."""
    ours, exact = network(), network()
    train_by_hand(lambda p: adamw_8bit(p, lr=0.01, weight_decay=0.1), 0, 8, ours)
    train_by_hand(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1), 0, 8, exact)
    moved = (exact.weight - network().weight).abs().mean()
    assert (ours.weight - exact.weight).abs().mean() < 0.1 * moved
    torch.testing.assert_close(ours.weight, exact.weight, rtol=0, atol=0.02)
    assert ours.weight.is_contiguous(memory_format=torch.channels_last)


@has_library
def test_its_state_is_plain_and_resumes_to_the_last_bit(tmp_path: Path) -> None:
    whole, part = network(), network()
    train_by_hand(adamw_8bit, 0, 6, whole)
    state = train_by_hand(adamw_8bit, 0, 3, part).state_dict()
    torch.save(state, tmp_path / "state.pth")
    loaded = torch.load(tmp_path / "state.pth", weights_only=True)
    resumed = network()
    resumed.load_state_dict(part.state_dict())
    optimizer = train_by_hand(adamw_8bit, 3, 6, resumed, loaded)
    assert torch.equal(resumed.weight, whole.weight) and torch.equal(resumed.bias, whole.bias)
    kept = optimizer.state[resumed.weight]
    assert kept["state1"].dtype == kept["state2"].dtype == torch.uint8


@has_library
@pytest.mark.parametrize("more", [["train.amp.enabled=True"], ["train.amp.enabled=True", "FP16"]])
def test_a_run_resumes_with_the_same_losses(tmp_path: Path, more: list[str]) -> None:
    """Width 1200 makes the first convolution's 32400 numbers 8-bit; clipped, averaged, bf16, fp16.

    The second start has two more epochs to go.
    """
    more = [item.replace("FP16", "train.amp.dtype=fp16") for item in more]
    common = ["model.width=1200", "train.ema.enabled=True", "train.accumulate=2", *more]
    config = config_of(tmp_path)
    main(["--config-file", config, *common, f"train.output_dir={tmp_path / 'whole'}"])
    stopped = [*common, f"train.output_dir={tmp_path / 'parts'}"]
    main(["--config-file", config, *stopped, "train.max_iter=2"])
    main(["--config-file", config, *stopped, "--resume"])
    losses = {
        n: read_lines(tmp_path / n / "metrics.json", "total_loss") for n in ("whole", "parts")
    }
    assert losses["parts"] == losses["whole"] and len(losses["whole"]) > 4


@has_library
def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    arguments = ["model.nan_at=1", "train.nan.policy=skip", "train.epochs=2"]
    main(["--config-file", config_of(tmp_path), *arguments])
    assert all(value == value for value in read_lines(tmp_path / "run/metrics.json", "total_loss"))


@has_library
@pytest.mark.parametrize("to_8bit", [True, False])
def test_a_state_of_the_other_optimizer_is_one_sentence(tmp_path: Path, to_8bit: bool) -> None:
    main(["--config-file", config_of(tmp_path, not to_8bit), "train.max_iter=1"])
    with pytest.raises(UserError, match="was written with the optimizer AdamW") as caught:
        main(["--config-file", config_of(tmp_path, to_8bit), "--resume"])
    assert "train.init_checkpoint" in str(caught.value) and "\n" not in str(caught.value)


@has_library
def test_its_memory_is_predicted() -> None:
    """Two bytes for each of nearly all parameters, and a table of 256 numbers, twice, a tensor."""
    cfg = load_config("projects/mammography/configs/demo.py")
    fused = predict_peak(cfg, (128, 96), 1)
    cfg.optimizer._target_ = TARGET
    assert predict_peak(cfg, (128, 96), 1).optimizer < 0.35 * fused.optimizer
