# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""One large batch as several small ones: their losses as sums, divided by what all of them hold.

A detection loss is a sum over the boxes of a batch, divided by their number. That number is known
only when the last small batch has been read; so each of them leaves its sum, and the gradients are
divided once, at the end. No batch waits for another in memory.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from detrex_mammo.modeling.criterion import SetCriterion, global_num_boxes


@contextmanager
def summed_losses(model: nn.Module, enabled: bool = True) -> Iterator[bool]:
    """Let a model's criterion return sums over boxes, not divided by their number.

    Yields:
        bool: whether it does. A model without a :class:`SetCriterion` is taken to return means over
        its images.
    """
    criteria = [m for m in model.modules() if isinstance(m, SetCriterion)] if enabled else []
    for criterion in criteria:
        criterion.num_boxes = 1.0
    try:
        yield bool(criteria)
    finally:
        for criterion in criteria:
            criterion.num_boxes = None


def count_boxes(batch: Sequence[dict[str, Any]]) -> int:
    """Target boxes of a batch of this process."""
    return sum(len(item["instances"]) for item in batch)


@dataclass(frozen=True)
class Kept:
    """A small batch as the model got it, to look into it if the step fails.

    Attributes:
        items: what the loader gave.
        rng: states of torch's generators before it, by device type.
    """

    items: Sequence[dict[str, Any]]
    rng: dict[str, Tensor]


@dataclass
class LargeBatch:
    """What the small batches of one step have left so far, in this process.

    Attributes:
        count: small batches of a step.
        has_sums: their losses are sums over boxes; else means over images.
        losses: of each, detached, divided by ``count``.
        totals: (), the sum of the losses of each; finite where that batch was.
        images: the names of each one's images.
        kept: those of them that may be the reason if the step is not finite.
        num_boxes: of all of them; counted only where losses are sums.
        data_time: seconds that they were waited for.
    """

    count: int
    has_sums: bool
    losses: list[dict[str, Tensor]] = field(default_factory=list)
    totals: list[Tensor] = field(default_factory=list)
    images: list[list[str]] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    num_boxes: int = 0
    data_time: float = 0.0

    def add(self, batch: Sequence[dict[str, Any]], losses: dict[str, Tensor]) -> Tensor:
        """Take in one small batch.

        Returns:
            Tensor: (), what its backward pass starts from.
        """
        self.images.append([str(item.get("file_name", item.get("image_id"))) for item in batch])
        if self.has_sums:
            self.num_boxes += count_boxes(batch)
        if self.count > 1:
            losses = {name: value / self.count for name, value in losses.items()}
        self.losses.append({name: value.detach().float() for name, value in losses.items()})
        total = sum(losses.values())
        self.totals.append(total.detach().float())
        return total

    def normalise(self, parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
        """Make the added-up gradients, and the losses, those of one batch of all images.

        Args:
            parameters: their gradients are changed in place; averaged over processes already.

        Returns:
            dict[str, Tensor]: losses of this process; their mean over processes is that of all.
        """
        losses = {name: sum(part[name] for part in self.losses) for name in self.losses[0]}
        if not self.has_sums:
            return losses
        device = next(iter(losses.values())).device
        factor = self.count / global_num_boxes(self.num_boxes, device)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        return {name: value * factor for name, value in losses.items()}

    def suspects(self, totals: Sequence[float]) -> list[str]:
        """Images of those small batches whose total, here given as a number, is not finite."""
        bad = (images for total, images in zip(totals, self.images) if not math.isfinite(total))
        return [image for images in bad for image in images]
