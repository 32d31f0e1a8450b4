# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The losses of training over a test loader: without gradient, in evaluation mode."""

import copy
from typing import Any

import torch
from detectron2.evaluation import inference_context
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from detrex_mammo.config_check import call_arguments, resolve_target
from detrex_mammo.engine.accumulation import count_boxes, summed_losses


def with_targets(node: DictConfig) -> DictConfig:
    """A test loader's node whose mapper also gives ``instances``, as it does in training.

    Its augmentations stay those of the test. A mapper without ``is_train`` stays as it is.
    """
    node = copy.deepcopy(node)
    mapper = node.get("mapper")
    if isinstance(mapper, DictConfig) and "_target_" in mapper:
        target = resolve_target(mapper, "dataloader.test.mapper", "the config")
        if "is_train" in call_arguments(target)[0]:
            mapper.is_train = True
    return node


def validation_losses(model: nn.Module, loader: Any) -> dict[str, float]:
    """Losses as if the whole loader, of all processes, were one batch.

    A criterion's sums are divided by the boxes of all images; another model's means are weighted
    by the number of images. So the size of a batch does not matter, but for its padding.

    Args:
        model: bare; its mode is left as it was.
        loader: of this process's share; its items have targets.

    Returns:
        dict[str, float]: ``loss``, the sum, then each loss; the same in every process.
    """
    sums: dict[str, torch.Tensor] = {}
    count = 0
    with inference_context(model), torch.no_grad(), summed_losses(model) as has_sums:
        # Only the model itself is asked for losses; its parts (dropout, norms) do not train.
        model.training = True
        for batch in loader:
            weight = 1 if has_sums else len(batch)
            count += count_boxes(batch) if has_sums else len(batch)
            for name, value in model(batch).items():
                sums[name] = sums.get(name, 0.0) + weight * value.double()
    shares = comm.all_gather(({name: float(value) for name, value in sums.items()}, count))
    # A process without any image does not know the names.
    names = list(dict.fromkeys(name for share, _ in shares for name in share))
    whole = max(sum(number for _, number in shares), 1)
    losses = {name: sum(share.get(name, 0.0) for share, _ in shares) / whole for name in names}
    return {"loss": sum(losses.values()), **losses}
