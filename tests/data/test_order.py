# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The row of training images: exact counts, and the same from wherever it is entered."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detrex_mammo.data.order import Order, round_to_total, sample_seed
from detrex_mammo.data.sampling import Sampling
from detrex_mammo.errors import UserError


def records(num_images: int, num_positives: int = 0) -> list[dict]:
    return [
        {"image_id": i, "annotations": [{"category_id": 0}] * (i < num_positives)}
        for i in range(num_images)
    ]


@settings(deadline=None, max_examples=200)
@given(
    repeats=st.lists(st.floats(0, 7), min_size=1, max_size=40),
    whole=st.lists(st.integers(0, 3), max_size=5),
    seed=st.integers(0, 2**32),
)
def test_counts_are_exact_to_one_and_whole_ones_exact(repeats, whole, seed) -> None:
    expected = np.array(repeats + whole, dtype=np.float64)
    total = round(float(expected.sum()))
    counts = round_to_total(expected, total, np.random.default_rng(seed))
    assert counts.sum() == total
    assert (np.abs(counts - expected) < 1).all()
    assert (counts[len(repeats) :] == whole).all()


def test_mean_count_is_the_expected_one() -> None:
    """Of 4000 epochs; the standard deviation of the mean is below sqrt(0.25 / 4000) = 0.008."""
    expected = np.array([0.1, 0.25, 0.5, 0.9, 1.25, 2.0, 0.0, 3.5, 0.5])
    rng = np.random.default_rng(5)
    mean = np.mean([round_to_total(expected, 9, rng) for _ in range(4000)], axis=0)
    np.testing.assert_allclose(mean, expected, rtol=0, atol=0.04)


def test_a_fraction_shows_other_images_together_each_time() -> None:
    """Neighbours in the dataset (views of a patient) must not always exclude each other."""
    rng = np.random.default_rng(1)
    drawn = [round_to_total(np.full(12, 0.5), 6, rng) for _ in range(50)]
    assert any(counts[0] and counts[1] for counts in drawn)
    assert len({tuple(counts) for counts in drawn}) > 40


def test_every_epoch_has_every_image_in_another_order() -> None:
    order = Order(records(50), seed=1)
    epochs = [order.epoch(number).tolist() for number in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] == Order(records(50), seed=1).epoch(0).tolist()
    assert epochs[0] != Order(records(50), seed=2).epoch(0).tolist()


def test_any_part_of_the_row_is_the_row_s() -> None:
    order = Order(records(7), seed=3)
    row = np.concatenate([order.epoch(number) for number in range(6)]).tolist()
    for first in range(20):
        for stop in range(first, 42, 3):
            assert order.images(first, stop).tolist() == row[first:stop]


def test_epochs_of_a_changing_ratio_are_equally_long() -> None:
    """Two of eight images with boxes; one to one is 4 and 4 of eight, natural 2 and 6."""
    sampling = Sampling(negatives_per_positive=1, natural_after_epochs=4)
    order = Order(records(8, num_positives=2), 0, sampling)
    shown = [(order.epoch(number) < 2).sum() for number in range(6)]
    assert [len(order.epoch(number)) for number in range(6)] == [8] * 6
    assert shown[0] == 4 and shown[4:] == [2, 2]
    assert order.epoch(5).tolist() != list(range(8)) and sorted(order.epoch(5)) == list(range(8))


def test_weights_of_the_dataset_count_unless_the_sampling_has_its_own() -> None:
    class Mixed(list):
        dataset_weights = {"a": 3, "b": 1}

    data = Mixed({"image_id": i, "dataset": "ab"[i % 2]} for i in range(8))
    assert (Order(data, 0).epoch(0) % 2 == 0).sum() == 6
    own = Sampling(dataset_weights={"a": 1, "b": 3})
    assert (Order(data, 0, own).epoch(0) % 2 == 0).sum() == 2
    assert own.dataset_weights == {"a": 1, "b": 3}


def test_plain_order_does_not_read_the_records() -> None:
    class Unread(list):
        def __getitem__(self, index):
            raise AssertionError("read")

    assert len(Order(Unread([{}] * 5), 0).epoch(0)) == 5


def test_nothing_left_is_one_sentence() -> None:
    with pytest.raises(UserError, match="leaves no image"):
        Order([], 0)


def test_seeds_of_samples_differ_by_run_and_position() -> None:
    seeds = {sample_seed(seed, position) for seed in range(20) for position in range(500)}
    assert len(seeds) > 9990 and all(0 <= seed < 2**32 for seed in seeds)
    assert sample_seed(3, 4) == sample_seed(3, 4)
