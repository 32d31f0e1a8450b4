# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Heads of the decoder's layers: shared or their own.

Published files hold a class head and a box head for each layer, even where all layers share one;
here a shared head is stored once.
"""

import re
from collections.abc import Mapping

import torch

State = dict[str, torch.Tensor]
HEAD = re.compile(r"(class_embed|bbox_embed)\.(\d+)\.(.+)")


def layers_differ(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether some layer's head is not the first one's."""
    for name, tensor in state.items():
        found = HEAD.fullmatch(name)
        first = found and state.get(f"{found[1]}.0.{found[3]}")
        if first is not None and not torch.equal(first, tensor):
            return True
    return False


def complete(state: Mapping[str, torch.Tensor], count: int) -> State:
    """Give every layer its heads where a file keeps one copy of what all share.

    Args:
        state: our names.
        count: pairs of heads that the model has.

    Returns:
        dict[str, Tensor]: the same, with heads 1 .. count - 1 equal to head 0 wherever only head
        0 is there.
    """
    result = dict(state)
    for kind in ("class_embed", "bbox_embed"):
        mine = {n: t for n, t in state.items() if (m := HEAD.fullmatch(n)) and m[1] == kind}
        if mine and all(name.startswith(f"{kind}.0.") for name in mine):
            for name, tensor in mine.items():
                leaf = name.removeprefix(f"{kind}.0.")
                result.update({f"{kind}.{layer}.{leaf}": tensor for layer in range(1, count)})
    return result


def fold(state: Mapping[str, torch.Tensor]) -> State:
    """Keep one of the heads that all layers share; to be used without refinement."""
    return {n: t for n, t in state.items() if not (m := HEAD.fullmatch(n)) or m[2] == "0"}


def unfold(state: Mapping[str, torch.Tensor], count: int) -> State:
    """The opposite of :func:`fold`: a head for each layer, as published files have."""
    return complete(fold(state), count)
