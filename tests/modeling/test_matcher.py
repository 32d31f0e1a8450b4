# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The assignment, by hand and against trying every permutation."""

import itertools
import math

import numpy as np
import pytest
import torch

from detrex_mammo.errors import UserError
from detrex_mammo.modeling import HungarianMatcher


def one_image(logits, boxes):
    return {"pred_logits": logits[None], "pred_boxes": boxes[None]}


def test_cost_by_hand():
    """p = 1/2 for the label: 2 * (1/16 - 3/16) log 2 in focal cost.

    Box (0.6, 0.5, 0.2, 0.2) against (0.5, 0.5, 0.2, 0.2): L1 0.1, GIoU 1/3.
    Total: -0.25 log 2 + 0.5 - 2/3.
    """
    cost = HungarianMatcher().cost(
        torch.tensor([[9.0, 0.0]]), torch.tensor([[0.6, 0.5, 0.2, 0.2]]),
        torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]),
    )  # fmt: skip
    expected = -0.25 * math.log(2) + 0.5 - 2 / 3
    torch.testing.assert_close(cost, torch.tensor([[expected]]), rtol=0, atol=1e-6)


def test_least_cost_of_all_permutations():
    matcher = HungarianMatcher()
    logits, boxes = torch.randn(5, 4), torch.rand(5, 4) * 0.5 + 0.2
    labels, targets = torch.tensor([1, 3, 1]), torch.rand(3, 4) * 0.5 + 0.2
    cost = matcher.cost(logits, boxes, labels, targets).numpy()
    best = min(
        sum(cost[query, target] for target, query in enumerate(queries))
        for queries in itertools.permutations(range(5), 3)
    )
    output, target = one_image(logits, boxes), {"labels": labels, "boxes": targets}
    ((queries, chosen),) = matcher([output], [[target]])[0]
    assert sorted(chosen) == [0, 1, 2] and len(set(queries)) == 3
    assert cost[queries, chosen].sum() == pytest.approx(best, abs=1e-6)


def test_images_and_outputs_are_independent():
    """A batch of three images (one empty, one with more targets than queries), two outputs."""
    matcher = HungarianMatcher()
    counts = (2, 0, 6)
    targets = [
        {"labels": torch.randint(0, 3, (n,)), "boxes": torch.rand(n, 4) * 0.4 + 0.3} for n in counts
    ]
    outputs = [
        {"pred_logits": torch.randn(3, q, 3), "pred_boxes": torch.rand(3, q, 4) * 0.4 + 0.3}
        for q in (4, 9)
    ]
    together = matcher(outputs, [targets, targets])
    for output, matching in zip(outputs, together):
        for image, target in enumerate(targets):
            single = one_image(output["pred_logits"][image], output["pred_boxes"][image])
            alone = matcher([single], [[target]])[0][0]
            np.testing.assert_array_equal(matching[image], alone)
            queries = output["pred_logits"].shape[1]
            assert len(matching[image][0]) == min(queries, counts[image])


def test_nothing_to_match():
    output = one_image(torch.randn(4, 3), torch.rand(4, 4))
    empty = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    ((queries, chosen),) = HungarianMatcher()([output], [[empty]])[0]
    assert len(queries) == len(chosen) == 0


def test_bfloat16_predictions_are_matched_in_float32():
    logits, boxes = torch.randn(6, 3).bfloat16(), (torch.rand(6, 4) * 0.5 + 0.2).bfloat16()
    labels, targets = torch.tensor([0, 2]), torch.rand(2, 4) * 0.5 + 0.2
    matcher = HungarianMatcher()
    expected = matcher.cost(logits.float(), boxes.float(), labels, targets)
    with torch.autocast("cpu", torch.bfloat16):
        found = matcher.cost(logits, boxes, labels, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pred_logits", math.nan),
        ("pred_boxes", math.nan),
        ("pred_boxes", math.inf),
        ("pred_boxes", -math.inf),
    ],
)
def test_predictions_that_are_not_finite_are_matched_last(name: str, value: float) -> None:
    """Queries 0 and 3 lie on the two targets; 2 is broken, and nobody else has changed places."""
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.5] * 4, [0.5] * 4, [0.8, 0.8, 0.1, 0.1]])
    output = one_image(torch.zeros(4, 3), boxes)
    output[name][0, 2] = value
    target = {"labels": torch.tensor([1, 0]), "boxes": boxes[[3, 0]]}
    ((queries, targets),) = HungarianMatcher()([output], [[target]])[0]
    assert dict(zip(queries.tolist(), targets.tolist())) == {0: 1, 3: 0}


def test_a_bad_pair_is_better_than_a_broken_one() -> None:
    """Query 0 lies far from the only target, at a cost above 0; query 1 is broken."""
    output = one_image(torch.zeros(2, 3), torch.tensor([[0.1] * 4, [math.nan] * 4]))
    target = {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.9, 0.9, 0.1, 0.1]])}
    assert HungarianMatcher()([output], [[target]])[0][0][0].tolist() == [0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_targets_that_are_not_finite_get_the_queries_that_are_left(value: float) -> None:
    """Also if nothing at all is finite: every target still has a query of its own."""
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.5] * 4, [0.8, 0.8, 0.1, 0.1]])
    broken = torch.tensor([0.5, 0.5, value, 0.1])
    output = one_image(torch.zeros(3, 3), boxes)
    target = {"labels": torch.tensor([1, 0]), "boxes": torch.stack([broken, boxes[0]])}
    ((queries, targets),) = HungarianMatcher()([output], [[target]])[0]
    assert dict(zip(targets.tolist(), queries.tolist()))[1] == 0 and len(queries) == 2
    nothing = one_image(torch.full((3, 3), value), torch.full((3, 4), value))
    ((queries, targets),) = HungarianMatcher()([nothing], [[target]])[0]
    assert sorted(targets.tolist()) == [0, 1] and len(set(queries.tolist())) == 2


def test_costs_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="at least one must be above 0"):
        HungarianMatcher(0, 0, 0)
    with pytest.raises(UserError, match="none may be negative"):
        HungarianMatcher(-1, 5, 2)
