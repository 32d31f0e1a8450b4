# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Batches: complete, of nearly equal sizes, within their budget, the same wherever entered."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detrex_mammo.data.batching import Batches, Plan, by_size, cut, split_to_multiple
from detrex_mammo.data.order import Order, sample_seed
from detrex_mammo.data.sampling import Sampling
from detrex_mammo.errors import UserError

SIZES = np.random.default_rng(0).integers(30, 90, (101, 2)).astype(float)


def batches(sizes=SIZES, start_iter: int = 0, total_batch_size: int = 6, **more) -> Batches:
    order = Order([{}] * len(sizes), 5, None, start_iter)
    return Batches(order, sizes, total_batch_size, **more)


def take(count: int, **more) -> list[list[tuple[int, int]]]:
    return list(islice(batches(**more), count))


def images_of(taken) -> list[int]:
    return [image for batch in taken for image, _ in batch]


def padding_of(batch: np.ndarray) -> float:
    """Share of padding in one batch of (n, 2) sizes, written out."""
    height, width = batch[:, 0].max(), batch[:, 1].max()
    return 1 - sum(h * w for h, w in batch) / (len(batch) * height * width)


@pytest.mark.parametrize("sort_window", [0, 1, 30, 256])
def test_fixed_batches_are_the_order_cut_up(sort_window: int) -> None:
    """101 images in sixes: 17 steps begin in the first epoch, the last with one image of the next.

    So 5 epochs end after 505 images: 84 steps and one image.
    """
    taken = take(84, sort_window=sort_window)
    assert {len(batch) for batch in taken} == {6}
    first = images_of(taken[:17])
    assert set(first) == set(range(101)) and len(first) == 102
    counts = np.bincount(images_of(taken), minlength=101)
    assert counts.sum() == 504 and counts.min() >= 4 and counts.max() <= 6
    found = batches(sort_window=sort_window)
    assert found.steps_per_epoch == 17 and found.mean_batch_size == 6


@pytest.mark.parametrize("more", [{}, {"token_budget": 40000.0}, {"sort_window": 0}])
@pytest.mark.parametrize("start", [0, 1, 16, 17, 18, 40, 71])
def test_entering_anywhere_gives_the_rest(more: dict, start: int) -> None:
    assert take(12, start_iter=start, **more) == take(start + 12, **more)[start:]


def test_dataset_smaller_than_a_batch() -> None:
    taken = take(9, sizes=SIZES[:4], total_batch_size=10)
    assert np.bincount(images_of(taken)).tolist() in ([23, 23, 22, 22], [22, 22, 23, 23]) or (
        sorted(np.bincount(images_of(taken))) == [22, 22, 23, 23]
    )
    assert take(3, sizes=SIZES[:4], total_batch_size=10, start_iter=6) == taken[6:]


@pytest.mark.parametrize("more", [{}, {"token_budget": 30000.0}])
@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_share_an_epoch_without_overlap(more: dict, num_processes: int) -> None:
    ranks = [batches(rank=r, num_processes=num_processes, **more) for r in range(num_processes)]
    steps = ranks[0].steps_per_epoch
    assert {rank.steps_per_epoch for rank in ranks} == {steps}
    taken = [list(islice(rank, steps)) for rank in ranks]
    images = [image for part in taken for image in images_of(part)]
    assert set(images) == set(range(101))
    # Filled up to a whole step, or to one image for each process, from the next epoch.
    assert len(images) - 101 < (6 if not more else num_processes)
    seeds = [seed for part in taken for batch in part for _, seed in batch]
    assert set(seeds) == {sample_seed(5, position) for position in range(len(images))}
    assert all(batch for part in taken for batch in part)


def test_number_of_processes_does_not_change_a_step_of_fixed_size() -> None:
    one = take(40)
    parts = [take(40, rank=rank, num_processes=3) for rank in range(3)]
    assert [sum((part[step] for part in parts), []) for step in range(40)] == one


@pytest.mark.parametrize("num_processes", [1, 2])
def test_token_budget_and_padding_are_kept(num_processes: int) -> None:
    found = batches(
        token_budget=40000.0, max_padding=0.2, total_batch_size=16, num_processes=num_processes
    )
    for epoch in range(3):
        plan = found.plan(epoch)
        assert plan.num_batches % num_processes == 0
        lengths = np.diff(plan.starts)
        assert lengths.min() >= 1 and lengths.max() <= 16 // num_processes
        for first, stop in zip(plan.starts, plan.starts[1:]):
            own = SIZES[plan.images[first:stop]]
            assert len(own) * own[:, 0].max() * own[:, 1].max() <= 40000
            assert padding_of(own) <= 0.2 + 1e-12
    assert 2 < found.mean_batch_size / num_processes < 16


def test_image_above_the_budget_is_alone() -> None:
    sizes = np.array([[10.0, 10.0]] * 7 + [[100.0, 100.0]])
    found = batches(sizes, token_budget=1000.0, total_batch_size=100)
    plan = found.plan(0)
    parts = np.split(plan.images, plan.starts[1:-1])
    assert [7] in [part.tolist() for part in parts] and max(map(len, parts)) > 1
    assert "1 images are larger than token_budget" in found.describe()


def test_cut() -> None:
    """Budget 24, padding at most 1/4, at most 3 images.

    2x4, 2x3: 2 * 8 = 16, of which 14 are image; a third 2x3 makes 24 and 20, but a fourth is one
    too many. 2x3, 2x2: 12 and 10; 1x2 would leave 12 of 18. 1x2, 1x1: 4 and 3; then 5x5 alone is
    above the budget.
    """
    sizes = np.array([[2, 4], [2, 3], [2, 3], [2, 3], [2, 2], [1, 2], [1, 1], [5, 5], [1, 1]])
    assert cut(sizes.astype(float), 24, 0.25, 3).tolist() == [0, 3, 5, 7, 8, 9]
    assert cut(np.ones((5, 2)), 1e9, 0.0, 2).tolist() == [0, 2, 4, 5]


def test_split_to_multiple() -> None:
    """Batches of 1, 5 and 2 images: halve the 5 to 3 and 2."""
    assert split_to_multiple(np.array([0, 1, 6, 8]), 4).tolist() == [0, 1, 4, 6, 8]
    assert split_to_multiple(np.array([0, 1, 6, 8]), 3).tolist() == [0, 1, 6, 8]


def test_by_size_sorts_inside_windows_and_keeps_equal_ones_in_order() -> None:
    """First by width, which varies by 1 : 4, then each half by height, which varies more there."""
    sizes = np.array([[9, 40], [1, 10], [3, 40], [1, 11], [9, 40], [3, 39], [2, 12], [2, 11]])
    sizes = sizes.astype(float)
    assert by_size(sizes, 8, 8).tolist() == list(range(8))
    assert by_size(sizes, 2, 1).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    halves = by_size(sizes, 8, 4)
    assert set(halves[:4]) == {1, 3, 6, 7}
    quarters = by_size(sizes, 8, 2).reshape(4, 2)
    assert [set(pair) for pair in quarters.tolist()] == [{1, 3}, {6, 7}, {2, 5}, {0, 4}]
    assert by_size(np.ones((9, 2)), 4, 2).tolist() == list(range(9))


@settings(deadline=None, max_examples=60)
@given(
    num_images=st.integers(1, 60),
    units=st.integers(1, 9),
    unit=st.integers(1, 7),
    seed=st.integers(0),
)
def test_by_size_moves_nothing_out_of_its_window(num_images, units, unit, seed) -> None:
    sizes = np.random.default_rng(seed).integers(1, 9, (num_images, 2)).astype(float)
    places = by_size(sizes, units * unit, unit)
    assert sorted(places) == list(range(num_images))
    assert (places // (units * unit) == np.arange(num_images) // (units * unit)).all()


def test_padding_of_a_plan() -> None:
    """Batch of 2x4 and 4x2: 16 of 32; batch of 3x3: 9 of 9. Padding 16 of 41."""
    sizes = np.array([[2.0, 4.0], [3.0, 3.0], [4.0, 2.0]])
    plan = Plan(np.array([0, 2, 1]), np.array([0, 2, 3]), 0)
    assert plan.padding(sizes) == pytest.approx(16 / 41, abs=1e-15)


def test_sorting_makes_less_padding_and_says_so() -> None:
    sizes = np.random.default_rng(1).integers(30, 90, (600, 2)).astype(float)
    found = batches(sizes, total_batch_size=4)
    plan = found.plan(0)
    shares = [padding_of(sizes[plan.images[i : i + 4]]) for i in range(0, 600, 4)]
    unsorted = batches(sizes, total_batch_size=4, sort_window=0).plan(0).padding(sizes)
    assert np.mean(shares) < 0.15 < 0.35 < unsorted
    text = found.describe()
    assert f"{plan.padding(sizes):.1%} of the pixels padding (" in text
    assert "150 steps an epoch, 4 / 4.0 / 4 images" in text


@pytest.mark.parametrize("more", [{"total_batch_size": 3}, {"token_budget": 20000.0}])
def test_other_images_come_together_in_every_epoch(more: dict) -> None:
    """Of the pairs of images that share a batch, few do so again; a whole sorted epoch repeats."""
    found = batches(**more)
    pairs = []
    for epoch in (0, 1):
        plan = found.plan(epoch)
        parts = (set(part.tolist()) for part in np.split(plan.images, plan.starts[1:-1]))
        pairs.append({(a, b) for part in parts for a in part for b in part if a < b})
    assert len(pairs[0] & pairs[1]) < 0.25 * len(pairs[0])


def test_batches_are_shuffled_not_shown_by_size() -> None:
    heights = [SIZES[[image for image, _ in batch], 0].mean() for batch in take(17)]
    assert np.abs(np.corrcoef(heights, np.arange(17))[0, 1]) < 0.6
    assert take(17) != take(34)[17:]


def test_repeated_images_count() -> None:
    records = [{"image_id": i, "annotations": [{"category_id": 0}] * (i < 10)} for i in range(40)]
    order = Order(records, 0, Sampling(negatives_per_positive=1))
    found = Batches(order, SIZES[:40], 4)
    assert found.steps_per_epoch == 5
    shown = images_of(islice(found, 5))
    assert sorted(i for i in shown if i < 10) == list(range(10))
    assert len({i for i in shown if i >= 10}) == 10


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"token_budget": 0}, "token_budget is 0"),
        ({"token_budget": "big"}, "token_budget is 'big'"),
        ({"max_padding": 1.0}, "max_padding is 1.0"),
        ({"max_padding": -0.1}, "max_padding is -0.1"),
        ({"sort_window": -1}, "sort_window is -1"),
        ({"sort_window": None}, "sort_window is None"),
        ({"token_budget": 1e6, "sizes": np.array([[4.0, 0.0], [4.0, 4.0]])}, "1 of 2 have no"),
    ],
)
def test_impossible_setting_is_one_sentence(more: dict, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        batches(**more)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_sizes_are_not_sorted_by() -> None:
    sizes = SIZES.copy()
    sizes[3] = 0
    assert take(30, sizes=sizes) == take(30, sizes=np.ones_like(SIZES))
    assert "padding" not in batches(sizes).describe()
