# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Learning-rate groups from rules."""

import logging

import pytest
import torch
from torch import nn

from detrex_mammo.engine.optimizer import param_groups
from detrex_mammo.errors import UserError


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
    "rule", [{"pattern": "x", "lr_multiplyer": 1}, {"lr_multiplier": 1}, {"pattern": "("}]
)
def test_rule_of_another_form_is_refused(rule: dict) -> None:
    with pytest.raises(UserError, match="optimizer.params.rules"):
        param_groups(model(), 1.0, rules=[rule])


def test_frozen_model_is_refused() -> None:
    with pytest.raises(UserError, match="no trainable parameter"):
        param_groups(model().requires_grad_(False), 1.0)
