# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""train.compile: the same losses and names, one compilation for all sizes, one sentence if not."""

import copy
import pickle

import pytest
import torch
from torch import nn

from detrex_mammo.engine.compilation import compile_parts
from detrex_mammo.errors import UserError
from tests.modeling.tiny_detector import make_inputs, perturb, tiny_detector


def quiet(detector: nn.Module) -> nn.Module:
    """Without dropout, whose random numbers a compiler draws otherwise."""
    for module in detector.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return detector


def step(detector: nn.Module, inputs: list[dict]) -> tuple[dict, dict]:
    detector.zero_grad()
    losses = detector(inputs)
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in detector.named_parameters()}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_give_the_same_losses(checkpointing: bool) -> None:
    """Images of several sizes, padded: equal to 1e-4, no graph break, no graph but the first ones.

    These are the trial, the encoder layer, and the decoder layer with the first layer's strides and
    with those of the others.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    settings = {"with_box_refine": True, "two_stage": True}
    detector = quiet(perturb(tiny_detector(encoder_checkpointing=checkpointing, **settings), 0.05))
    plain = copy.deepcopy(detector)
    compile_parts(detector, "cpu")
    assert list(detector.state_dict()) == list(plain.state_dict())
    for sizes in ((64, 96), (80, 50)), ((70, 101), (90, 64)), ((128, 60), (61, 77)):
        inputs = make_inputs(sizes, (2, 1))
        found, expected = step(detector, inputs), step(plain, inputs)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 4
    for other in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert list(other.state_dict()) == list(plain.state_dict())


def test_a_model_without_parts_is_refused() -> None:
    with pytest.raises(UserError, match="train.compile is True, but Linear"):
        compile_parts(nn.Linear(2, 2), "cpu")


def test_a_missing_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_, **__):
        raise RuntimeError("No working C++ compiler found in cpp.cxx: (None, 'g++')\nmore lines")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    with pytest.raises(UserError) as error:
        compile_parts(tiny_detector(), "cpu")
    assert "No working C++ compiler" in str(error.value) and "\n" not in str(error.value)
    assert "set train.compile=False" in str(error.value)
