# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Names and shapes of other projects' full-size models, as their own code gives them.

``keys/FORMAT_VARIANT.txt``: a name and its shape in each line, ``{a..b}`` for every number from a
to b. Official: github.com/fundamentalvision/Deformable-DETR at 11169a6, 91 outputs. detrex:
github.com/IDEA-Research/detrex at e244e6c, 80. mmdetection 3.3.0, 80. TAO:
github.com/NVIDIA/tao_pytorch_backend, 91.
"""

import re
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "keys"
LISTS = sorted(path.stem for path in FOLDER.glob("*.txt"))


def read_list(stem: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of one list."""
    shapes = {}
    for line in (FOLDER / f"{stem}.txt").read_text().splitlines():
        pattern, shape = line.split()
        size = () if shape == "-" else tuple(int(number) for number in shape.split(","))
        shapes.update(dict.fromkeys(_expand(pattern), size))
    return shapes


def random_state(stem: str, shares_heads: bool) -> dict[str, torch.Tensor]:
    """Random tensors of a list's names and shapes; copies of one head are equal.

    Args:
        stem: of the list.
        shares_heads: all layers have one head.
    """
    torch.manual_seed(0)
    heads: dict[str, torch.Tensor] = {}
    state = {}
    for name, shape in read_list(stem).items():
        tensor = torch.empty(shape).uniform_() if shape else torch.tensor(0)
        head = re.search(r"(class_embed|bbox_embed|cls_branches|reg_branches)\.(\d+)\.(.+)", name)
        if head:
            layer = "0" if shares_heads else head[2]
            tensor = heads.setdefault(f"{head[1]}.{layer}.{head[3]}", tensor)
        state[name] = tensor
    return state


def _expand(pattern: str) -> list[str]:
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        return [pattern]
    numbers = range(int(found[1]), int(found[2]) + 1)
    start, end = pattern[: found.start()], pattern[found.end() :]
    return [name for number in numbers for name in _expand(f"{start}{number}{end}")]
