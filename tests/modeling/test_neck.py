# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Levels from feature maps."""

import pytest
import torch

from detrex_mammo.errors import UserError
from detrex_mammo.modeling.neck import InputProjection


def test_names_and_shapes():
    neck = InputProjection([8, 16], 32, 4)
    shapes = {name: tuple(p.shape) for name, p in neck.named_parameters() if name.endswith("t")}
    assert shapes == {
        "0.0.weight": (32, 8, 1, 1), "0.1.weight": (32,),
        "1.0.weight": (32, 16, 1, 1), "1.1.weight": (32,),
        "2.0.weight": (32, 16, 3, 3), "2.1.weight": (32,),
        "3.0.weight": (32, 32, 3, 3), "3.1.weight": (32,),
    }  # fmt: skip
    levels = neck([torch.rand(2, 8, 9, 14), torch.rand(2, 16, 5, 7)])
    assert [tuple(level.shape) for level in levels] == [
        (2, 32, 9, 14), (2, 32, 5, 7), (2, 32, 3, 4), (2, 32, 2, 2),
    ]  # fmt: skip


def test_first_extra_level_reads_the_feature_map():
    neck = InputProjection([8], 32, 3)
    feature = torch.rand(1, 8, 6, 6)
    levels = neck([feature])
    torch.testing.assert_close(levels[1], neck[1](feature))
    torch.testing.assert_close(levels[2], neck[2](levels[1]))


def test_published_start():
    neck = InputProjection([8], 32, 1)
    limit = (6 / 40) ** 0.5
    assert 0.9 * limit < float(neck[0][0].weight.detach().abs().max()) <= limit
    assert not neck[0][0].bias.any()


def test_too_few_levels_are_refused():
    with pytest.raises(UserError, match="num_feature_levels is 1.*names 2"):
        InputProjection([8, 16], 32, 1)
