# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Token-wise work in pieces: the same numbers, and when it is done in pieces."""

import pytest
import torch

from detrex_mammo.layers import chunks, in_chunks


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "TOKENS_PER_CHUNK", 4)


def work(seen):
    """Two tensors to one with another number of channels; notes how many tokens each call got."""

    def function(a, b):
        seen.append(a.shape[:-1].numel())
        return torch.cat((a * 2, b), dim=-1)

    return function


@pytest.mark.parametrize("batch, tokens, sizes", [(2, 5, [4, 4, 2]), (1, 8, [4, 4]), (1, 4, [4])])
def test_every_token_once_and_in_its_place(batch, tokens, sizes):
    a, b, seen = torch.randn(batch, tokens, 3), torch.randn(batch, tokens, 2), []
    with torch.no_grad():
        found = in_chunks(work(seen), a, b)
    torch.testing.assert_close(found, torch.cat((a * 2, b), dim=-1), rtol=0, atol=0)
    assert seen == sizes


def test_in_one_piece_when_gradients_are_wanted():
    a, seen = torch.randn(2, 5, 3, requires_grad=True), []
    in_chunks(work(seen), a, torch.randn(2, 5, 2)).sum().backward()
    assert seen == [10]
    torch.testing.assert_close(a.grad, torch.full_like(a, 2.0))


def test_no_tokens_and_other_dtypes():
    with torch.no_grad():
        assert in_chunks(lambda a: a, torch.randn(2, 0, 3)).shape == (2, 0, 3)
        assert in_chunks(lambda a: a.bfloat16(), torch.randn(2, 5, 3)).dtype == torch.bfloat16


def test_torch_compile_sees_one_piece():
    a, seen = torch.randn(1, 9, 3), []
    function = work(seen)
    compiled = torch.compile(lambda x: in_chunks(function, x, x), backend="eager", fullgraph=True)
    with torch.no_grad():
        compiled(a)
    assert seen == [9]
