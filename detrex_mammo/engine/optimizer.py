# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Parameter groups from rules that are plain data, and states that fit any implementation."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from detrex_mammo.config import instantiate_with
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
_RULE_KEYS = ("pattern", "lr_multiplier", "weight_decay")
_IMPLEMENTATION = ("fused", "foreach")
_KIND = "kind"  # of optimizer, in its state


def build_optimizer(node: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``optimizer`` over a model; its ``params`` node gets the model."""
    params = node.get("params")
    if not isinstance(params, DictConfig) or "_target_" not in params:
        raise UserError(
            f"optimizer.params is {params!r}, but must be a node that makes them, such as "
            "{_target_: detrex_mammo.engine.optimizer.param_groups, lr: '${..lr}'}"
        )
    groups = instantiate_with(params, "optimizer.params", model=model)
    try:
        return instantiate_with(node, "optimizer", params=groups)
    except UserError:
        raise
    except (ValueError, TypeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"the optimizer refuses its settings in the config: {reason}") from error


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
    if isinstance(rules, str) or not isinstance(rules, Sequence):
        raise UserError(f"optimizer.params.rules is {rules!r}, but must be a list of rules")
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
        raise UserError("the model has no trainable parameter: freeze less in train.freeze")
    for rule, was_used in zip(rules, used):
        if not was_used:
            logger.warning("optimizer rule %r fits no trainable parameter", rule["pattern"])
    return [{"name": "|".join(group.pop("names")), **group} for group in groups.values()]


def _checked(rule: Any) -> dict[str, Any]:
    is_rule = isinstance(rule, Mapping) and "pattern" in rule and not set(rule) - set(_RULE_KEYS)
    if not is_rule:
        raise UserError(
            f"optimizer.params.rules has {rule}: a rule is {{pattern, lr_multiplier, weight_decay}}"
        )
    rule = dict(rule)
    for name, value in rule.items():
        is_unset = name == "weight_decay" and value is None
        if name != "pattern" and not is_unset and not _is_amount(value):
            raise UserError(
                f"optimizer.params.rules: {name} of {rule['pattern']!r} is {value!r}, but must be "
                "a number, 0 or more"
            )
    try:
        re.compile(rule["pattern"])
    except (re.error, TypeError) as error:
        raise UserError(
            f"optimizer.params.rules: pattern {rule['pattern']!r} is no regular expression: {error}"
        ) from error
    return rule


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def keep_implementation(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer load the state of a run with another implementation or memory format.

    A state carries the ``fused`` of the run that wrote it, which would win over this run's own; and
    its tensors may lie in memory otherwise than the parameters, which fused steps do not look at.
    That of another optimizer is refused.
    """
    optimizer.register_state_dict_post_hook(_name_kind)
    optimizer.register_load_state_dict_pre_hook(_keep_options)
    optimizer.register_load_state_dict_post_hook(_lay_out_as_parameters)


def _name_kind(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    return {**state, _KIND: type(optimizer).__name__}


def check_kind(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Raise UserError for a state of another optimizer; an older one does not say whose it is."""
    own = type(optimizer).__name__
    kind = state.get(_KIND, own)
    if kind != own:
        raise UserError(
            f"the checkpoint was written with the optimizer {kind}, but the config's is {own}: "
            "resume with that one, or start a new run from it with train.init_checkpoint"
        )


def _keep_options(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    check_kind(optimizer, state)
    groups = [dict(group) for group in state["param_groups"]]
    for group, own in zip(groups, optimizer.param_groups):
        group.update({key: own[key] for key in _IMPLEMENTATION if key in own})
    return {**state, "param_groups": groups}


def _lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
                continue
            if value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
