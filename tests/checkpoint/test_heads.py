# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Heads that layers share, stored once or for each layer; values are written by hand."""

import torch

from detrex_mammo.checkpoint.heads import complete, fold, layers_differ, unfold


def heads(*layers: int, value=lambda layer: float(layer)) -> dict[str, torch.Tensor]:
    """Heads of these layers, filled with a number that depends on the layer."""
    state = {"query_embed.weight": torch.full((1,), -1.0)}
    for layer in layers:
        state[f"class_embed.{layer}.bias"] = torch.full((2,), value(layer))
        for index in range(2):
            name = f"bbox_embed.{layer}.layers.{index}.weight"
            state[name] = torch.full((3,), 10 * (index + 1) + value(layer))
    return state


def values(state: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(tensor.unique()) for name, tensor in state.items()}


def test_layers_differ() -> None:
    assert not layers_differ({})
    assert not layers_differ(heads(0))
    assert not layers_differ(heads(0, 1, 2, value=lambda layer: 4.0))
    assert layers_differ(heads(0, 1, 2))
    assert layers_differ(heads(0, 1, 12, value=lambda layer: float(layer == 12)))


def test_layers_differ_in_a_single_number() -> None:
    state = heads(0, 1, value=lambda layer: 4.0)
    state["bbox_embed.1.layers.1.weight"][2] += 1e-6 * 4
    assert layers_differ(state)


def test_layers_whose_heads_have_other_shapes_differ() -> None:
    state = {"class_embed.0.bias": torch.zeros(2), "class_embed.1.bias": torch.zeros(3)}
    assert layers_differ(state)


def test_a_head_in_the_decoder_is_none_of_ours() -> None:
    state = {"class_embed.0.bias": torch.zeros(2), "x.class_embed.1.bias": torch.ones(2)}
    assert not layers_differ(state)
    assert set(complete(state, 2)) == {*state, "class_embed.1.bias"}


def test_complete_gives_every_layer_the_only_head() -> None:
    completed = complete(heads(0, value=lambda layer: 5.0), 3)
    assert values(completed) == values(heads(0, 1, 2, value=lambda layer: 5.0))


def test_complete_leaves_heads_that_are_there() -> None:
    """A published file whose layers share the class head only."""
    state = heads(0, 1, 2)
    del state["class_embed.1.bias"], state["class_embed.2.bias"]
    completed = values(complete(state, 3))
    assert completed == {
        **values(heads(0, 1, 2)),
        "class_embed.1.bias": 0.0,
        "class_embed.2.bias": 0.0,
    }


def test_complete_does_not_hide_a_layer_that_is_missing() -> None:
    """Heads 0 and 2: nobody may guess head 1."""
    assert values(complete(heads(0, 2), 3)) == values(heads(0, 2))
    assert values(complete(heads(1), 3)) == values(heads(1))


def test_fold_and_unfold() -> None:
    shared = heads(0, 1, 2, value=lambda layer: 7.0)
    assert values(fold(shared)) == values(heads(0, value=lambda layer: 7.0))
    assert values(unfold(fold(shared), 3)) == values(shared)
    assert values(unfold(shared, 2)) == values(heads(0, 1, value=lambda layer: 7.0))
    assert len(fold(heads(0, 1, 10))) == 4  # 10 is not 1
