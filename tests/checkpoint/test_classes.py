# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO's 91 outputs to 80, and which class an output stands for.

COCO's ids are written by hand: the eleven numbers below 91 that no category has.
"""

import pytest
import torch

from detrex_mammo.checkpoint.architecture import Architecture
from detrex_mammo.checkpoint.classes import (
    class_table,
    coco_table,
    is_coco91,
    nearest_rows,
    reduce_coco91,
)

NOT_COCO = {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = [number for number in range(91) if number not in NOT_COCO]
EMPTY = {"names": [], "ids": []}


def architecture(two_stage: bool) -> Architecture:
    return Architecture(
        depth=14, stem_out_channels=8, res2_out_channels=16, in_features=("res4", "res5"),
        embed_dim=16, feedforward_dim=8, num_heads=2, num_encoder_layers=1, num_decoder_layers=2,
        num_feature_levels=3, num_encoder_points=1, num_decoder_points=1, num_queries=5,
        num_classes=91, with_box_refine=True, two_stage=two_stage,
    )  # fmt: skip


def heads(count: int) -> dict[str, torch.Tensor]:
    """Class heads whose rows hold their own number plus 100 x layer; and a box head."""
    state = {"bbox_embed.0.layers.0.weight": torch.arange(91.0)}
    for layer in range(count):
        rows = torch.arange(91.0) + 100 * layer
        state[f"class_embed.{layer}.bias"] = rows
        state[f"class_embed.{layer}.weight"] = rows[:, None].repeat(1, 2)
    return state


def test_coco_table() -> None:
    table = coco_table()
    assert table["ids"] == COCO_IDS and len(COCO_IDS) == len(set(table["names"])) == 80
    at = dict(zip(table["ids"], table["names"]))
    assert [at[i] for i in (1, 2, 13, 44, 90)] == [
        "person", "bicycle", "stop sign", "bottle", "toothbrush"
    ]  # fmt: skip


@pytest.mark.parametrize("two_stage", [False, True])
def test_91_outputs_become_80_and_the_proposal_head_keeps_objectness(two_stage: bool) -> None:
    state = heads(3 if two_stage else 2)
    reduced = reduce_coco91(state, architecture(two_stage))
    for layer in (0, 1):
        expected = [100.0 * layer + number for number in COCO_IDS]
        assert reduced[f"class_embed.{layer}.bias"].tolist() == expected
        assert reduced[f"class_embed.{layer}.weight"].tolist() == [[v, v] for v in expected]
    if two_stage:
        assert reduced["class_embed.2.bias"].tolist() == [200.0 + row for row in range(80)]
        assert reduced["class_embed.2.weight"][0].tolist() == [200.0, 200.0]
    assert torch.equal(reduced["bbox_embed.0.layers.0.weight"], torch.arange(91.0))
    assert set(reduced) == set(state)
    assert all(tensor.shape[0] == 91 for tensor in state.values())  # untouched


def test_the_kept_rows_are_the_predictions_of_the_classes() -> None:
    """What the model of 91 outputs says of a class, the model of 80 says of the same class."""
    state, features = heads(2), torch.rand(4, 2)
    reduced = reduce_coco91(state, architecture(False))
    before = features @ state["class_embed.1.weight"].T + state["class_embed.1.bias"]
    after = features @ reduced["class_embed.1.weight"].T + reduced["class_embed.1.bias"]
    for row, number in enumerate(coco_table()["ids"]):
        assert torch.equal(after[:, row], before[:, number])


def id2label(**changed: str) -> dict[int, str]:
    """As published: COCO's names at their ids, N/A elsewhere."""
    names = dict.fromkeys(range(91), "N/A")
    names.update(zip(coco_table()["ids"], coco_table()["names"]))
    return {**names, **{int(key[1:]): name for key, name in changed.items()}}


@pytest.mark.parametrize(
    ("outputs", "told", "expected"),
    [
        (91, {}, True),
        (80, {}, False),
        (90, {}, False),
        (92, {}, False),
        (91, {"id2label": id2label()}, True),
        (91, {"id2label": id2label(_12="background")}, True),
        (91, {"id2label": id2label(_1="mass")}, False),
        (91, {"id2label": {i: f"tumour {i}" for i in range(91)}}, False),
        (91, {"id2label": {i: f"LABEL_{i}" for i in range(91)}}, True),
        (91, {"id2label": {i: f"LABEL_{90 - i}" for i in range(91)}}, False),
        (91, {"id2label": {}}, True),
        (91, {"class_names": [f"tumour {i}" for i in range(91)]}, False),
        (91, {"class_names": list(id2label().values())}, True),
        (91, {"classes": {"names": ["a"] * 91, "ids": list(range(91))}}, False),
    ],
)
def test_is_coco91(outputs: int, told: dict, expected: bool) -> None:
    assert is_coco91(outputs, told) is expected


def test_class_table_of_names_the_file_tells() -> None:
    named = {"names": ["mass", "calcification"], "ids": [0, 1]}
    assert class_table(2, {"id2label": {1: "calcification", 0: "mass"}}) == named
    assert class_table(2, {"class_names": ["mass", "calcification"]}) == named
    own = {"names": ["mass", "calcification"], "ids": [10, 11]}
    assert class_table(2, {"classes": own, "class_names": ["x", "y"]}) == own


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        (2, {}),
        (2, {"id2label": {0: "LABEL_0", 1: "LABEL_1"}}),
        (80, {"id2label": {i: f"LABEL_{i}" for i in range(80)}}),
        (3, {"id2label": {0: "a", 1: "b"}}),  # fewer names than outputs
        (2, {"id2label": {1: "a", 2: "b"}}),
        (1, {"class_names": ["a", "b"]}),
        (3, {"classes": {"names": ["a", "b"], "ids": [0, 1]}}),
    ],
)
def test_class_table_is_empty_where_nothing_is_known(outputs: int, told: dict) -> None:
    assert class_table(outputs, told) == EMPTY


def test_80_outputs_are_cocos_with_its_ids() -> None:
    assert class_table(80, {}) == coco_table()
    assert class_table(80, {"class_names": coco_table()["names"]}) == coco_table()
    others = [f"tumour {i}" for i in range(80)]
    assert class_table(80, {"class_names": others})["names"] == others
    turned = coco_table()["names"][::-1]
    assert class_table(80, {"class_names": turned}) == {"names": turned, "ids": list(range(80))}


def test_rows_by_name() -> None:
    assert nearest_rows(["Mass", "x", "b"], ["a", "mass", "B"]) == {"Mass": 1, "b": 2}
    assert nearest_rows([], ["a"]) == nearest_rows(["a"], []) == {}
