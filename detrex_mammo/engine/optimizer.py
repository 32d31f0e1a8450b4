# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Parameter groups from rules that are plain data."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
_RULE_KEYS = ("pattern", "lr_multiplier", "weight_decay")


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    rules: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into groups with their own learning rates.

    Args:
        model: frozen parameters (``requires_grad=False``) are left out.
        lr: learning rate of parameters that no rule names.
        weight_decay: weight decay of parameters whose rule sets none.
        rules: each ``{"pattern": regex, "lr_multiplier": 1.0, "weight_decay": None}``, the
            pattern searched for anywhere in the parameter's name; the first rule that fits wins.

    Returns:
        list[dict]: groups for a torch optimizer, each with a ``name`` for logs: "default", or
        the patterns it was made by.

    Raises:
        UserError: a rule that is not of that form, or a model with nothing to train.
    """
    rules = [_checked(rule) for rule in rules]
    used = [False] * len(rules)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        index = next((i for i, rule in enumerate(rules) if re.search(rule["pattern"], name)), None)
        rule = {} if index is None else rules[index]
        if index is not None:
            used[index] = True
        decay = rule.get("weight_decay")
        values = (lr * rule.get("lr_multiplier", 1.0), weight_decay if decay is None else decay)
        label = rule.get("pattern", "default")
        group = groups.setdefault(
            values, {"params": [], "lr": values[0], "weight_decay": values[1], "names": []}
        )
        group["params"].append(parameter)
        if label not in group["names"]:
            group["names"].append(label)
    if not groups:
        raise UserError("the model has no trainable parameter: lower freeze_at or unfreeze a part")
    for rule, was_used in zip(rules, used):
        if not was_used:
            logger.warning("optimizer rule %r fits no trainable parameter", rule["pattern"])
    return [{"name": "|".join(group.pop("names")), **group} for group in groups.values()]


def _checked(rule: Mapping[str, Any]) -> dict[str, Any]:
    rule = dict(rule)
    unknown = [key for key in rule if key not in _RULE_KEYS]
    if unknown or "pattern" not in rule:
        raise UserError(
            f"optimizer.params.rules has {rule}: a rule is {{pattern, lr_multiplier, weight_decay}}"
        )
    try:
        re.compile(rule["pattern"])
    except (re.error, TypeError) as error:
        raise UserError(
            f"optimizer.params.rules: pattern {rule['pattern']!r} is no regular expression: {error}"
        ) from error
    return rule
