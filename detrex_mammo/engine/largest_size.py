# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The largest images that a mapper's augmentations make, from its config alone.

Only what resizes, crops or pads is looked at; whatever else there is keeps an image's size. A size
is (height, width) in pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig

Size = tuple[float, float]


def largest_sizes(mapper: Any, originals: Sequence[Size]) -> list[Size] | None:
    """Sizes of which every image of the network is within one.

    Args:
        mapper: its node.
        originals: sizes of the images of the data set; empty if they are not known.

    Returns:
        list: at least one, or None where the originals are needed and not known.
    """
    found: list[Size] = []
    for steps in list(_lists(mapper)) or [[]]:
        sizes: list[Size] | None = list(dict.fromkeys(originals)) or None
        for step in steps:
            rule = _RULES.get(_name(step))
            sizes = sizes if rule is None else rule(step, sizes)
        if sizes is None:
            return None
        found += sizes
    return list(dict.fromkeys(found))


def _lists(node: Any) -> Iterator[Sequence[DictConfig]]:
    """Lists of augmentations anywhere in a node: each is a way that an image may go."""
    if isinstance(node, ListConfig):
        if len(node) and all(isinstance(item, DictConfig) and "_target_" in item for item in node):
            yield node
            return
        values = list(node)
    elif isinstance(node, DictConfig):
        values = list(node.values())
    else:
        return
    for value in values:
        yield from _lists(value)


def _name(step: DictConfig) -> str:
    target = step["_target_"]
    return target.rpartition(".")[2] if isinstance(target, str) else target.__name__


def _frame(step: DictConfig, sizes: list[Size] | None, height: str, width: str) -> list[Size]:
    """Fitted into a frame, times a random scale and stretch."""
    scale = max(step.get("scale_range", (1.0,))) * (1 + step.get("aspect_jitter", 0.0))
    return [(step[height] * scale, step[width] * scale)]


def _short_edge(step: DictConfig, sizes: list[Size] | None) -> list[Size] | None:
    edges = step.get("short_edges", step.get("short_edge_length"))
    edge, limit = (edges if isinstance(edges, int) else max(edges)), step.get("max_size")
    if limit:  # detectron2's own has none at sys.maxsize
        edge = min(edge, limit)
        return [(edge, limit), (limit, edge)]
    if sizes is None:
        return None
    return [(h * edge / min(h, w), w * edge / min(h, w)) for h, w in sizes]


def _scaled(step: DictConfig, sizes: list[Size] | None) -> list[Size] | None:
    factor = max(1.0, *step.get("scale", (0.8, 1.2)))
    return sizes and [(h * factor, w * factor) for h, w in sizes]


def _cropped(size: Size, sizes: list[Size] | None) -> list[Size]:
    if sizes is None:
        return [size]
    return [(min(size[0], h), min(size[1], w)) for h, w in sizes]


def _random_crop(step: DictConfig, sizes: list[Size] | None) -> list[Size] | None:
    if str(step.crop_type).startswith("relative"):
        return sizes
    size = step.crop_size
    # A range's end holds for both sides.
    larger = (max(size), max(size)) if step.crop_type == "absolute_range" else (size[0], size[1])
    return _cropped(larger, sizes)


def _shape(step: DictConfig, sizes: list[Size] | None) -> list[Size]:
    shape = step.get("shape", step.get("crop_size"))
    return [(shape, shape)] if isinstance(shape, int) else [(shape[0], shape[1])]


_RULES: dict[str, Callable[[DictConfig, list[Size] | None], list[Size] | None]] = {
    "ResizeToFit": lambda step, sizes: _frame(step, sizes, "height", "width"),
    "ResizeToSpacing": lambda step, sizes: _frame(step, sizes, "max_height", "max_width"),
    "ResizeShortEdge": _short_edge,
    "ResizeShortestEdge": _short_edge,
    "RandomScale": _scaled,
    "LesionTile": lambda step, sizes: _cropped((step.height, step.width), sizes),
    "RandomCrop": _random_crop,
    "Resize": _shape,
    "FixedSizeCrop": _shape,
}
