# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Weights are loaded only if they fit, and a mismatch names everything."""

import pytest
import torch
from torch import nn

from detrex_mammo.checkpoint.loading import Mismatch, compare, load_weights
from tests.checkpoint.attack import sentence


def model(width: int = 3) -> nn.ModuleDict:
    return nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, width)})


def test_weights_that_fit_are_loaded_bit_by_bit() -> None:
    source, target = model(), model()
    assert load_weights(target, source.state_dict(), "m.pth") == []
    for one, other in zip(source.parameters(), target.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precision_becomes_the_models(dtype: torch.dtype) -> None:
    source, target = model().to(dtype), model()
    load_weights(target, source.state_dict(), "")
    assert {parameter.dtype for parameter in target.parameters()} == {torch.float32}
    torch.testing.assert_close(target["head"].weight, source["head"].weight.float())


def test_mismatch_names_everything_and_changes_nothing() -> None:
    target, state = model(), model(width=5).state_dict()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state.update(extra=torch.zeros(1))
    del state["backbone.bias"]
    message = sentence(load_weights, target, state, "m.pth")
    assert "'m.pth' does not fit this model of 4 tensors" in message
    assert "1 missing (backbone.bias)" in message
    assert "1 unexpected (extra)" in message
    assert "2 mis-shaped (head.weight [5, 2] instead of [3, 2], head.bias [5] instead" in message
    for name, value in target.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_long_mismatch_is_counted() -> None:
    target = nn.Sequential(*[nn.Linear(1, 1) for _ in range(5)])
    message = sentence(load_weights, target, {}, "m.pth")
    assert "10 missing (0.weight, 0.bias, 1.weight, ...)" in message


def test_wrong_number_of_classes_is_said_with_the_way_out() -> None:
    def detector(classes: int) -> nn.ModuleDict:
        return nn.ModuleDict({"class_embed": nn.ModuleList([nn.Linear(2, classes)])})

    message = sentence(load_weights, detector(1), detector(80).state_dict(), "m.pth")
    assert "the file has 80 class(es) and model.num_classes is 1" in message
    assert "train.init.classes" in message


def test_allowed_missing_names_are_returned() -> None:
    target = model()
    state = {k: v + 1 for k, v in target.state_dict().items() if k.startswith("backbone")}
    head = target["head"].weight.clone()
    kept = load_weights(target, state, "", lambda name: name.startswith("head"))
    assert kept == ["head.weight", "head.bias"]
    torch.testing.assert_close(target["backbone"].bias, state["backbone.bias"])
    torch.testing.assert_close(target["head"].weight, head, rtol=0, atol=0)


def test_names_that_may_be_missing_may_not_be_mis_shaped() -> None:
    state = model(width=5).state_dict()
    assert "2 mis-shaped" in sentence(load_weights, model(), state, "", lambda name: True)


def test_compare() -> None:
    assert not compare(model(), model().state_dict())
    assert compare(model(), model(4).state_dict()) == Mismatch(
        mis_shaped={"head.weight": ((4, 2), (3, 2)), "head.bias": ((4,), (3,))}
    )
    assert compare(nn.Linear(1, 1), {"bias": torch.zeros(1), "x": torch.zeros(1)}) == Mismatch(
        missing=["weight"], unexpected=["x"]
    )


def test_queries_of_training_start_afresh_where_the_file_has_others() -> None:
    def detector(labels: int) -> nn.ModuleDict:
        parts = {"denoising": nn.Embedding(labels, 2)} if labels else {}
        return nn.ModuleDict({**parts, **model()})

    source = detector(3)
    for labels in (0, 3, 5):
        target = detector(labels)
        before = {name: value.clone() for name, value in target.state_dict().items()}
        kept = load_weights(target, source.state_dict(), "m.pth")
        assert kept == (["denoising.weight"] if labels == 5 else [])
        for name, value in target.state_dict().items():
            expected = before[name] if name in kept else source.state_dict()[name]
            torch.testing.assert_close(value, expected, rtol=0, atol=0)
    plain = model().state_dict()
    assert load_weights(detector(4), plain, "m.pth") == ["denoising.weight"]
