# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Learning-rate groups from rules; states between implementations and memory formats."""

import copy
import itertools
import logging
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from detrex_mammo.config import get_config, instantiate_with, load_config
from detrex_mammo.engine.main import main
from detrex_mammo.engine.optimizer import build_optimizer, keep_implementation, param_groups
from detrex_mammo.errors import UserError
from tests.engine.tiny import read_lines, write_config


def model() -> nn.ModuleDict:
    parts = nn.ModuleDict(
        {"backbone": nn.Linear(2, 2), "norm": nn.LayerNorm(2), "head": nn.Linear(2, 2)}
    )
    parts["backbone"].bias.requires_grad_(False)
    return parts


def by_name(groups: list[dict], parts: nn.Module) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in parts.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }


def test_first_rule_that_fits_wins_and_frozen_parameters_are_left_out() -> None:
    parts = model()
    rules = [
        {"pattern": "^backbone", "lr_multiplier": 0.1},
        {"pattern": "norm", "weight_decay": 0.0},
        {"pattern": "bias|backbone", "lr_multiplier": 2.0, "weight_decay": 0.5},
    ]
    assert by_name(param_groups(parts, 1.0, 0.01, rules), parts) == {
        "backbone.weight": (0.1, 0.01),
        "norm.weight": (1.0, 0.0),
        "norm.bias": (1.0, 0.0),
        "head.weight": (1.0, 0.01),
        "head.bias": (2.0, 0.5),
    }


def test_groups_of_equal_values_are_one_and_torch_takes_them() -> None:
    rules = [{"pattern": "backbone", "lr_multiplier": 0.5}, {"pattern": "h", "lr_multiplier": 0.5}]
    groups = param_groups(model(), 1.0, rules=rules)
    assert [group["name"] for group in groups] == ["backbone|h", "default"]
    assert len(torch.optim.AdamW(groups, lr=1.0).param_groups) == 2


def test_rule_that_fits_nothing_warns(caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="detrex_mammo"):
        param_groups(model(), 1.0, rules=[{"pattern": "bakbone"}])
    assert "'bakbone' fits no trainable parameter" in caplog.text


@pytest.mark.parametrize(
    "rule",
    [
        {"pattern": "x", "lr_multiplyer": 1}, {"lr_multiplier": 1}, {"pattern": "("}, "backbone",
        {"pattern": "x", "lr_multiplier": "ten"}, {"pattern": "x", "lr_multiplier": -1},
        {"pattern": "x", "weight_decay": -0.1}, {"pattern": "x", "lr_multiplier": math.inf},
    ],
)  # fmt: skip
def test_rule_of_another_form_is_refused(rule: dict) -> None:
    with pytest.raises(UserError, match="optimizer.params.rules"):
        param_groups(model(), 1.0, rules=[rule])
    with pytest.raises(UserError, match="must be a list of rules"):
        param_groups(model(), 1.0, rules="backbone")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("lr", -1, "rate: -1"), ("weight_decay", -1, "value: -1"), ("betas", 3, "'int' object"),
        ("betas", [0.9], "out of range$"),
    ],
)  # fmt: skip
def test_what_an_optimizer_refuses_is_one_sentence(name: str, value, expected: str) -> None:
    node = get_config("configs/common/optim.py").AdamW
    node[name] = value
    with pytest.raises(UserError, match=f"optimizer refuses its settings .*{expected}"):
        build_optimizer(node, model())


@pytest.mark.parametrize("value", [None, 3, "all", []])
def test_parameters_are_a_node(value) -> None:
    node = get_config("configs/common/optim.py").AdamW
    node.params = value
    with pytest.raises(UserError, match="optimizer.params is .*param_groups"):
        build_optimizer(node, model())


def test_frozen_model_is_refused() -> None:
    with pytest.raises(UserError, match="no trainable parameter"):
        param_groups(model().requires_grad_(False), 1.0)


OTHERS = {
    "SGD": "momentum=0.9, nesterov=True",
    "Adam": "",
    "AdamW": "foreach=True",
    "Adagrad": "",
    "RMSprop": "momentum=0.5",
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_optimizer_of_torch_by_config(tmp_path: Path, name: str) -> None:
    """Two steps, and two more after a resume, are the four steps of one run; weights move."""
    path = Path(write_config(tmp_path))
    text = path.read_text().replace("torch.optim.AdamW)", f"torch.optim.{name})")
    path.write_text(text.replace("    lr=1e-2,\n", f"    lr=1e-2, {OTHERS[name]}\n"))
    config, output = ["--config-file", str(path)], f"train.output_dir={tmp_path / 'whole'}"
    main([*config, "train.max_iter=4", output])
    main([*config, "train.max_iter=2"])
    main([*config, "train.max_iter=4", "--resume"])
    whole, parts = (
        torch.load(tmp_path / run / "model_final.pth", weights_only=True)
        for run in ("whole", "run")
    )
    for key, value in whole["model"].items():
        assert torch.equal(parts["model"][key], value), key
    assert parts["trainer"]["optimizer"]["kind"] == name
    losses = read_lines(tmp_path / "run/metrics.json", "total_loss")
    assert losses == read_lines(tmp_path / "whole/metrics.json", "total_loss")
    assert len(losses) == len(set(losses)) == 4


def test_another_optimizer_on_the_command_line(tmp_path: Path, caplog) -> None:
    """SGD has no betas, so those of the config go; what it does have can be set beside it."""
    path = Path(write_config(tmp_path))
    path.write_text(path.read_text().replace("lr=1e-2,", "lr=1e-2, betas=[0.9, 0.999],"))
    sgd = ["optimizer.momentum=0.9", "optimizer._target_=torch.optim.SGD"]
    with caplog.at_level(logging.WARNING, logger="detrex_mammo"):
        main(["--config-file", str(path), "train.max_iter=2", *sgd])
    assert "torch.optim.SGD takes no betas: optimizer.betas is left out" in caplog.text
    content = torch.load(tmp_path / "run/model_final.pth", weights_only=True)
    assert content["trainer"]["optimizer"]["kind"] == "SGD"
    assert content["trainer"]["optimizer"]["param_groups"][0]["momentum"] == 0.9
    again = tmp_path / "run/config.yaml"
    main(["--config-file", str(again), f"train.output_dir={tmp_path / 'again'}"])
    losses = [read_lines(tmp_path / f / "metrics.json", "total_loss") for f in ("run", "again")]
    assert losses[0] == losses[1]
    back = ["optimizer._target_=torch.optim.Adam", "optimizer.eps=1e-6"]
    last = load_config(str(path), [sgd[1], *back]).optimizer  # as a sweep appends to a list
    assert (last._target_, list(last.betas), last.eps) == ("torch.optim.Adam", [0.9, 0.999], 1e-6)
    for wrong, expected in (
        ("optimizer.betas=[0.9, 0.99]", "unknown key 'optimizer.betas'"),
        ("optimizer._target_=torch.optim.SDG", "names 'torch.optim.SDG', which does not exist"),
        ("optimizer._target_=torch.optim", "which cannot be called"),
        ("optimizer._target_=7", "is 7, which cannot be called"),
        ("optimizer._target_=torch.nn.Linear", "unknown key 'optimizer.momentum'"),
        ("optimizer.lr._target_=a", "unknown key 'optimizer.lr._target_'"),
        ("train._target_=a", "unknown key 'train._target_'"),
    ):
        with pytest.raises(UserError, match=expected):
            load_config(str(path), [*sgd, wrong])


def test_the_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    path = Path(write_config(tmp_path))
    main(["--config-file", str(path), "train.max_iter=1"])
    path.write_text(path.read_text().replace("torch.optim.AdamW)", "torch.optim.Adagrad)"))
    with pytest.raises(UserError, match="optimizer AdamW, but the config's is Adagrad") as caught:
        main(["--config-file", str(path), "--resume"])
    assert "\n" not in str(caught.value)


def test_shipped_adamw_is_fused() -> None:
    node = get_config("configs/common/optim.py").AdamW
    groups = instantiate_with(node.params, "optimizer.params", model=model())
    assert instantiate_with(node, "optimizer", params=groups).param_groups[0]["fused"] is True


def convolution(memory_format: torch.memory_format) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 3).to(memory_format=memory_format)


def steps(conv: nn.Conv2d, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for number in range(first, last):
        optimizer.zero_grad()
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(number))
        conv(x).square().mean().backward()
        optimizer.step()


FORMS = list(itertools.product([False, True], [torch.contiguous_format, torch.channels_last]))


@pytest.mark.parametrize("before", FORMS)
@pytest.mark.parametrize("after", FORMS)
def test_a_run_goes_on_in_another_implementation_and_memory_format(before, after) -> None:
    """Two steps, the state carried over, two more: as four steps without a break.

    Fused steps go through memory in its order, so a state in another order would be added to the
    wrong weights; and the run's own ``fused`` must survive the one in the state.
    """
    whole = convolution(torch.contiguous_format)
    steps(whole, torch.optim.AdamW(whole.parameters(), lr=0.1), 0, 4)
    first = convolution(before[1])
    optimizer = torch.optim.AdamW(first.parameters(), lr=0.1, fused=before[0])
    steps(first, optimizer, 0, 2)
    second = convolution(after[1])
    second.load_state_dict(first.state_dict())
    resumed = torch.optim.AdamW(second.parameters(), lr=0.1, fused=after[0])
    keep_implementation(resumed)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.param_groups[0]["fused"] is after[0]
    steps(second, resumed, 2, 4)
    torch.testing.assert_close(second.weight, whole.weight, rtol=0, atol=1e-6)
    assert not torch.allclose(first.weight, second.weight, atol=1e-2)
