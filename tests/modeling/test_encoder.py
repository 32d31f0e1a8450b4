# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Reference points of the encoder, by hand."""

import torch

from detrex_mammo.modeling.encoder import encoder_reference_points


def test_reference_points_by_hand():
    """A 2x4 level of which 2x3 cells are valid, and a 1x2 level all valid.

    Cell (0, 1) of the first: its centre is 1.5 of 3 valid columns = 0.5 of the image, 0.5 of 2
    rows = 0.25. On the first level, 3/4 valid in x: (0.375, 0.25); on the second: (0.5, 0.25).
    """
    valid_ratios = torch.tensor([[[0.75, 1.0], [1.0, 1.0]]])
    points = encoder_reference_points(((2, 4), (1, 2)), valid_ratios)
    assert points.shape == (1, 10, 2, 2)
    torch.testing.assert_close(points[0, 1], torch.tensor([[0.375, 0.25], [0.5, 0.25]]))
    # Cell (0, 1) of the second level: 3/4 of the image in x, half in y
    torch.testing.assert_close(points[0, 9], torch.tensor([[0.5625, 0.5], [0.75, 0.5]]))
