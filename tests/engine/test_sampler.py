# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The order of training images."""

from itertools import islice

from detrex_mammo.engine.sampler import SeededSampler


def test_every_epoch_has_every_image_in_another_order() -> None:
    order = list(islice(SeededSampler(7, seed=1), 21))
    epochs = [order[:7], order[7:14], order[14:]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order == list(islice(SeededSampler(7, seed=1), 21))
    assert order != list(islice(SeededSampler(7, seed=2), 21))


def test_entering_late_gives_the_rest_of_the_same_order() -> None:
    order = list(islice(SeededSampler(7, seed=1), 30))
    assert list(islice(SeededSampler(7, seed=1, start=11), 19)) == order[11:]
