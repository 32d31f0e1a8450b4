# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""GroupNorm for any width."""

import pytest

from detrex_mammo.layers import group_norm


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (32, 32), (48, 16), (12, 4), (7, 1)])
def test_groups(channels, groups):
    assert group_norm(channels).num_groups == groups
