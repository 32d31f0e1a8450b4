# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The order of training images, as detectron2's loader takes it."""

from itertools import islice

import pytest
from detectron2.data import build_detection_train_loader
from detectron2.utils import comm

from detrex_mammo.data.sampling import Sampling
from detrex_mammo.engine.sampler import SeededSampler

SEVEN = [{"image_id": number} for number in range(7)]


def test_every_epoch_has_every_image_in_another_order() -> None:
    order = list(islice(SeededSampler(SEVEN, seed=1), 21))
    epochs = [order[:7], order[7:14], order[14:]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order == list(islice(SeededSampler(SEVEN, seed=1), 21))
    assert order != list(islice(SeededSampler(SEVEN, seed=2), 21))
    assert {type(index) for index in order} == {int}


@pytest.mark.parametrize("start_iter", [0, 1, 2, 3, 9])
def test_entering_late_gives_the_rest_of_the_same_order(start_iter: int) -> None:
    order = list(islice(SeededSampler(SEVEN, seed=1), 60))
    late = SeededSampler(SEVEN, seed=1, start_iter=start_iter, total_batch_size=3)
    assert list(islice(late, 19)) == order[3 * start_iter :][:19]


def test_processes_share_the_order_without_overlap(monkeypatch) -> None:
    whole = list(islice(SeededSampler(SEVEN, 1, start_iter=2, total_batch_size=3), 30))
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(list(islice(SeededSampler(SEVEN, 1, start_iter=2, total_batch_size=3), 10)))
    assert [image for step in zip(*parts) for image in step] == whole


def test_repeats_are_those_of_the_sampling() -> None:
    """Two of seven with boxes; one negative for each makes epochs of four."""
    records = [{"annotations": [{"category_id": 0}] * (i < 2)} for i in range(7)]
    order = list(islice(SeededSampler(records, 0, Sampling(negatives_per_positive=1)), 8))
    for epoch in (order[:4], order[4:]):
        assert len(set(epoch)) == 4 and {0, 1} <= set(epoch)


def test_detectron2_s_own_loader_takes_it() -> None:
    sampler = SeededSampler(SEVEN, seed=1, start_iter=1, total_batch_size=2)
    loader = build_detection_train_loader(
        SEVEN, mapper=lambda record: record, sampler=sampler, total_batch_size=2,
        aspect_ratio_grouping=False,
    )  # fmt: skip
    found = [record["image_id"] for batch in islice(loader, 4) for record in batch]
    assert found == list(islice(SeededSampler(SEVEN, seed=1), 10))[2:]
