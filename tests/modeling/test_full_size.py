# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The published size: R50, two-stage, 300 queries, 800x1333."""

import pytest
import torch

from detrex_mammo.modeling import (
    DeformableDETR,
    DeformableTransformer,
    HungarianMatcher,
    SetCriterion,
    build_resnet,
)
from tests.modeling.tiny_detector import make_inputs


def full_size(**settings):
    transformer = DeformableTransformer(two_stage=settings.get("two_stage", False))
    return DeformableDETR(
        build_resnet(50), ["res3", "res4", "res5"], transformer,
        SetCriterion(91, HungarianMatcher()), 91, **settings,
    )  # fmt: skip


def test_number_of_parameters():
    """Published: 40 M for the plain form, 41 M with refinement and two-stage."""
    for settings, millions in (
        ({}, 40),
        ({"with_box_refine": True}, 41),
        ({"with_box_refine": True, "two_stage": True}, 41),
    ):
        with torch.device("meta"):
            count = sum(p.numel() for p in full_size(**settings).parameters())
        assert round(count / 1e6) == millions


@pytest.mark.slow
def test_trains_a_step_and_evaluates():
    detector = full_size(with_box_refine=True, two_stage=True)
    inputs = make_inputs(((800, 1333),), (5,))
    losses = detector(inputs)
    assert len(losses) == 21
    sum(losses.values()).backward()
    trained = [p for p in detector.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    with torch.no_grad():
        (output,) = detector.eval()(inputs)
    assert len(output["instances"]) == 300
