# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Activation checkpointing: what runs again, and what must not happen twice."""

import copy
import pickle

import pytest
import torch
from torch import nn

from detrex_mammo.layers import recomputation


def network(**settings):
    """A frozen part, then one that trains, which counts batches and drops at random."""
    frozen = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)).requires_grad_(False)
    norm = nn.BatchNorm2d(5, **settings)
    trained = nn.Sequential(nn.Conv2d(4, 5, 3), norm, nn.ReLU(inplace=True), nn.Dropout(0.5))
    return nn.Sequential(frozen, trained)


def step(model):
    """Loss and gradients from one seed, and how often each part ran."""
    runs, hooks = [], []
    for index, part in enumerate(model):
        hooks.append(part[0].register_forward_hook(lambda *_, index=index: runs.append(index)))
    torch.manual_seed(5)
    loss = model(torch.randn(2, 3, 12, 9)).square().sum()
    model.zero_grad()
    loss.backward()
    for hook in hooks:
        hook.remove()
    gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    return [loss.detach(), *gradients, torch.rand(3)], runs


@pytest.mark.parametrize("momentum", [0.1, None])
def test_all_numbers_are_those_without(momentum):
    """Losses, gradients, random numbers drawn afterwards and statistics, to the last bit.

    Two steps: what the frozen part computed is kept, the trained part runs forward twice in each,
    but counts each batch once.
    """
    plain = network(momentum=momentum)
    model = copy.deepcopy(plain)
    for part in model:
        recomputation.recompute(part)
    assert list(model.state_dict()) == list(plain.state_dict())
    for _ in range(2):
        expected, runs = step(plain)
        assert runs == [0, 1]
        found, runs = step(model)
        assert runs == [0, 1, 1]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert int(model[1][1].num_batches_tracked) == 2
    assert model[1][1].momentum == momentum


def test_copies_recompute_themselves():
    """A copy's ``forward`` is that of the copy: changed weights of the original do not matter."""
    model = network()
    recomputation.recompute(model[1])
    expected, _ = step(copy.deepcopy(model))
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        model[1][0].weight.zero_()
    for other in copies:
        found, runs = step(other)
        assert runs == [0, 1, 1]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_in_training_only():
    model = network().eval()
    recomputation.recompute(model[1])
    assert step(model)[1] == [0, 1]
    model.train()
    with torch.no_grad():
        output = model(torch.randn(2, 3, 12, 9))
    assert not output.requires_grad and int(model[1][1].num_batches_tracked) == 1


def test_statistics_are_counted_again_after_an_error():
    """A second pass that fails leaves the norm as it was."""
    model = network()
    recomputation.recompute(model[1])
    loss = model(torch.randn(2, 3, 12, 9)).sum()
    hook = model[1][2].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    hook.remove()
    assert model[1][1].momentum == 0.1 and int(model[1][1].num_batches_tracked) == 1
