# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The learning rate for the batch of a run, from the one of a recipe: ``train.scale_lr``.

Only the optimizer that was just built is changed. The config keeps the recipe's rate, so a run that
is resumed, or started again from its config.yaml, is scaled once.
"""

import logging
import math

import torch

from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
# "linear": https://arxiv.org/abs/1706.02677; "sqrt": https://arxiv.org/abs/1404.5997.
RULES = {"": lambda share: 1.0, "linear": lambda share: share, "sqrt": math.sqrt}


def scale_rates(
    optimizer: torch.optim.Optimizer,
    rule: str,
    reference: int,
    batch: tuple[int, int, int],
) -> float:
    """Scale the rate of every group, and state in one line which batch it is for; then the groups.

    Args:
        optimizer: just built, no state loaded.
        rule: "linear" or "sqrt" in the effective batch; "" for no scaling.
        reference: images of a step that the rates were chosen for.
        batch: images at a time over all processes, processes, and batches in a step.

    Returns:
        float: the factor.

    Raises:
        UserError: another rule, or a reference that is no number of images.
    """
    if rule not in RULES:
        raise UserError(f"train.scale_lr.rule is {rule!r}, but must be 'linear', 'sqrt' or ''")
    if type(reference) is not int or reference < 1:
        raise UserError(
            f"train.scale_lr.reference is {reference!r}, but must be a whole number of images "
            "above 0"
        )
    size, num_processes, accumulate = batch
    effective = size * accumulate
    factor = RULES[rule](effective / reference)
    largest = max(optimizer.param_groups, key=lambda group: len(group["params"]))
    base = largest["lr"]
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
    how = f"{rule} scaling from batch {reference}" if rule else "scaling is off"
    logger.info(
        "learning rate %g x %g = %g (%s) for batch %d = %g per process x %d process(es) x %d "
        "accumulated",
        *(base, factor, largest["lr"], how, effective),
        *(size / num_processes, num_processes, accumulate),
    )
    for group in optimizer.param_groups if len(optimizer.param_groups) > 1 else ():
        count = sum(parameter.numel() for parameter in group["params"])
        text = "learning rate %g, weight decay %g for %.2f M parameters: %s"
        logger.info(
            text, group["lr"], group.get("weight_decay", 0.0), count / 1e6, group.get("name", "")
        )
    return factor
