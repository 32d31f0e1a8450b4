# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Parameters and multiply-adds of a model, counted without running it.

One multiply-add is what papers on detectors call one "FLOP": Deformable DETR's own 173 GFLOPs are
173 G multiply-adds. Counted are convolutions, matrix products and deformable attention; not
counted is what works on single elements (norms, activations, softmax, sines).

B batch, Q queries, C channels, L levels, P points.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detrex_mammo.checkpoint.trusted import build_model
from detrex_mammo.layers import MultiScaleDeformableAttention

logger = logging.getLogger(__name__)
# Of a sampled channel: four for the bilinear interpolation, one for the attention weight.
# Appendix A.1 of https://arxiv.org/abs/2010.04159.
PER_SAMPLE = 5


@dataclass(frozen=True)
class Complexity:
    """Size of a model.

    Attributes:
        parameters: all of them, frozen ones too, each once.
        multiply_adds: of one image of ``input_size``; None if they could not be counted.
        input_size: (height, width) of the network's input.
    """

    parameters: int
    multiply_adds: int | None
    input_size: tuple[int, int] | None


@dataclass(frozen=True)
class Part:
    """A direct child of the model, or one of a child's children.

    Attributes:
        name: dotted.
        trainable: parameters with a gradient.
        frozen: parameters without.
    """

    name: str
    trainable: int
    frozen: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.trainable + self.frozen


def count_parts(model: nn.Module) -> list[Part]:
    """Every part that has parameters, largest first, then the whole as ``total``.

    A parameter that two parts share is counted in both, and once in the whole.

    Args:
        model: whatever device it is on.
    """
    parts = [_count(name, child) for name, child in model.named_children()]
    own = list(model.parameters(recurse=False))
    if own:
        trainable = sum(p.numel() for p in own if p.requires_grad)
        parts.append(Part("(own)", trainable, sum(p.numel() for p in own) - trainable))
    parts = sorted((part for part in parts if part.total), key=lambda part: -part.total)
    return [*parts, _count("total", model)]


def _count(name: str, module: nn.Module) -> Part:
    parameters = list(module.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return Part(name, trainable, sum(p.numel() for p in parameters) - trainable)


def measure(config: Mapping[str, Any]) -> Complexity:
    """Count a run's model at the largest size that its test loader makes.

    Args:
        config: resolved config of a run.
    """
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = build_model(config, "the run")
    model.requires_grad_(False)  # the counter cannot follow views of what needs a gradient
    size = largest_input(config)
    counted = None
    if size is not None:
        try:
            counted = count_multiply_adds(model, size)
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            logger.warning("multiply-adds are not counted: %s", " ".join(str(error).split())[:200])
    return Complexity(sum(p.numel() for p in model.parameters()), counted, size)


def count_multiply_adds(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-adds of one prediction.

    Args:
        model: a detector, called with detectron2's input dicts, whose parameters need no
            gradient; on the meta device nothing is computed.
        size: (height, width) of the image.
    """
    height, width = size
    device = next(model.parameters()).device
    image = torch.zeros(3, height, width, device=device)
    sampled = 0

    def add(module: MultiScaleDeformableAttention, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal sampled
        samples = output.numel() * module.num_levels * module.num_points  # B * Q * C * L * P
        sampled += PER_SAMPLE * samples

    handles = [
        module.register_forward_hook(add)
        for module in model.modules()
        if isinstance(module, MultiScaleDeformableAttention)
    ]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()([{"image": image, "height": height, "width": width}])
    finally:
        for handle in handles:
            handle.remove()
    # torch counts a multiply-add as two.
    return counter.get_total_flops() // 2 + sampled


def largest_input(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Largest (height, width) that the test loader's resizing makes; None if it has none."""
    for node in _nodes(config.get("dataloader", {}).get("test")):
        name = str(node.get("_target_", "")).rpartition(".")[2]
        if name == "ResizeToFit":
            return int(node["height"]), int(node["width"])
        if name == "ResizeToSpacing":
            return int(node["max_height"]), int(node["max_width"])
        if name in ("ResizeShortEdge", "ResizeShortestEdge"):
            edge, longest = node.get("short_edges", node.get("short_edge_length")), node["max_size"]
            edge = max(edge) if isinstance(edge, list) else edge
            return (int(edge), int(longest)) if edge and longest else None
    return None


def _nodes(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
    children = value.values() if isinstance(value, Mapping) else value
    if isinstance(children, str) or not hasattr(children, "__iter__"):
        return
    for child in children:
        yield from _nodes(child)
