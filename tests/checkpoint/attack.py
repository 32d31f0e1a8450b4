# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Small weights, objects that do not belong beside them, and how mistakes are told."""

import os
from pathlib import Path

import pytest
import torch

from detrex_mammo.errors import UserError

NAMES = ("a.weight", "b.weight", "b.bias")


def state() -> dict[str, torch.Tensor]:
    """Three tensors that differ."""
    return {name: torch.arange(3.0) + 10 * index for index, name in enumerate(NAMES)}


def sentence(function, *arguments, **options) -> str:
    """What a function says when it refuses: one sentence."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value) and str(caught.value)
    return str(caught.value)


class Harmless:
    """An object of a class that no reader knows."""


class Attack:
    """Unpickles to a call that leaves a file behind."""

    def __init__(self, victim: Path, function=open):
        self.victim, self.function = str(victim), function

    def __reduce__(self):
        arguments = {open: (self.victim, "w"), os.system: (f"touch {self.victim}",)}
        return self.function, arguments.get(self.function, (["touch", self.victim],))
