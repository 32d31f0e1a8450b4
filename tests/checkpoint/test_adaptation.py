# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Each policy by hand: rows of a checkpoint's heads hold their own number, the model's -1."""

import pytest
import torch

from detrex_mammo.checkpoint.adaptation import LoadReport, Policy, adapt
from tests.checkpoint.attack import sentence

COCO = ["person", "Dog", "cat", "bus"]
OURS = ["mass", "DOG", "person"]


def weights(classes: int, layers: int = 2, two_stage: bool = False, value=None) -> dict:
    """Names of a detector with tiny tensors; class rows hold 100 x layer + row, or ``value``."""

    def fill(*shape: int, number: float = 7.0) -> torch.Tensor:
        return torch.full(shape, number if value is None else float(value))

    state = {"backbone.stem.conv1.weight": fill(10), "query_embed.weight": fill(6)}
    if two_stage:
        state["transformer.enc_output.weight"] = fill(4)
    for layer in range(layers + two_stage):
        rows = torch.arange(float(classes)) + 100 * layer
        rows = rows if value is None else torch.full_like(rows, value)
        state[f"class_embed.{layer}.bias"] = rows
        state[f"class_embed.{layer}.weight"] = rows[:, None].repeat(1, 2)
        state[f"bbox_embed.{layer}.layers.0.weight"] = fill(5, number=50.0 + layer)
    return state


def fit(classes="same", two_stage=False, names=OURS, stored=COCO, **policy):
    """Adapt a checkpoint of ``stored`` classes to a model of ``names``, which is all -1."""
    state = weights(len(stored), two_stage=two_stage)
    own = weights(len(names), two_stage=two_stage, value=-1)
    return adapt(state, own, Policy(classes, **policy), names, stored)


def rows(state: dict, layer: int) -> list[float]:
    """Rows of a class head, which weight and bias must agree on."""
    bias, weight = state[f"class_embed.{layer}.bias"], state[f"class_embed.{layer}.weight"]
    assert torch.equal(weight, bias[:, None].repeat(1, 2))
    return bias.tolist()


def assert_rest_is_the_files(state: dict, count: int, boxes: bool = True) -> None:
    assert state["backbone.stem.conv1.weight"].unique().tolist() == [7]
    assert state["query_embed.weight"].unique().tolist() == [7]
    for layer in range(count):
        expected = [50 + layer] if boxes else [-1]
        assert state[f"bbox_embed.{layer}.layers.0.weight"].unique().tolist() == expected


def test_same_keeps_everything() -> None:
    state, report = fit(names=COCO)
    assert [rows(state, layer) for layer in (0, 1)] == [[0, 1, 2, 3], [100, 101, 102, 103]]
    assert_rest_is_the_files(state, 2)
    assert report.share == 1 and report.notes == [] and report.fresh_classes == []


def test_reinitialise_keeps_no_class() -> None:
    state, report = fit("reinitialise")
    assert [rows(state, layer) for layer in (0, 1)] == [[-1, -1, -1]] * 2
    assert_rest_is_the_files(state, 2)
    assert report.notes == ["classes that start afresh: mass, DOG, person"]


def test_by_name_does_not_look_at_case() -> None:
    state, report = fit("by_name")
    assert [rows(state, layer) for layer in (0, 1)] == [[-1, 1, 0], [-1, 101, 100]]
    assert_rest_is_the_files(state, 2)
    assert report.notes == [
        "classes kept: DOG <- Dog, person <- person",
        "classes that start afresh: mass",
    ]
    assert report.fresh_classes == ["mass"]


def test_by_name_puts_the_same_classes_into_our_order() -> None:
    state, report = fit("by_name", names=COCO[::-1])
    assert rows(state, 1) == [103, 102, 101, 100]
    assert report.share == 1 and report.fresh_classes == []


def test_mapping_keeps_selected_rows() -> None:
    state, report = fit({"mass": "bus", "Person": "DOG"})
    assert [rows(state, layer) for layer in (0, 1)] == [[3, -1, 1], [103, -1, 101]]
    assert report.fresh_classes == ["DOG"]
    state, _ = fit({"mass": "bus", "person": "bus"})
    assert rows(state, 0) == [3, -1, 3]


@pytest.mark.parametrize("classes", ["reinitialise", "by_name", {"mass": "bus"}])
@pytest.mark.parametrize("objectness", [True, False])
def test_proposal_head_keeps_objectness_only(classes, objectness: bool) -> None:
    """Row 0 of the proposal head is objectness whatever class 0 is, here and there."""
    state, report = fit(classes, two_stage=True, objectness=objectness)
    assert rows(state, 2) == [200 if objectness else -1, -1, -1]
    assert rows(state, 1) == {
        "reinitialise": [-1, -1, -1],
        "by_name": [-1, 101, 100],
    }.get(str(classes), [103, -1, -1])
    assert f"objectness {'is kept' if objectness else 'starts afresh'}" in report.notes
    assert_rest_is_the_files(state, 3)


def test_last_head_of_a_model_without_proposals_is_a_layers() -> None:
    state, report = fit("by_name")
    assert rows(state, 1) == [-1, 101, 100]
    assert not any("objectness" in note for note in report.notes)


def test_boxes_start_afresh_when_asked() -> None:
    for classes in ("by_name", "reinitialise"):
        state, report = fit(classes, boxes=False)
        assert_rest_is_the_files(state, 2, boxes=False)
        assert "box heads start afresh" in report.notes
        assert report.parts["bbox_embed"] == (0, 10)
    state, report = fit(names=COCO, boxes=False)
    assert rows(state, 1) == [100, 101, 102, 103]
    assert_rest_is_the_files(state, 2, boxes=False)


def test_share_is_counted_exactly() -> None:
    """10 + 6 + 3 x 5 in the trunk and boxes; a class head has 3 rows of 3, three of them 27."""
    _, report = fit("by_name", two_stage=True)
    assert report.parts == {
        "backbone": (10, 10),
        "query_embed": (6, 6),
        "transformer": (4, 4),
        "class_embed": (2 * 6 + 3, 27),  # two classes in two layers, objectness of the third
        "bbox_embed": (15, 15),
    }
    assert report.share == pytest.approx((10 + 6 + 4 + 15 + 15) / (10 + 6 + 4 + 27 + 15))
    _, report = fit("reinitialise", two_stage=True, objectness=False, boxes=False)
    assert report.share == pytest.approx(20 / 62)
    assert report.parts["class_embed"] == (0, 27)


def test_report_is_a_line_for_each_part() -> None:
    lines = LoadReport({"backbone": (10**6, 2 * 10**6)}, ["objectness is kept"]).describe()
    assert lines.splitlines() == [
        "  backbone         1.000 of 2.000 M parameters from the file",
        "  objectness is kept",
    ]
    assert LoadReport().share == 0


def test_model_and_checkpoint_are_left_alone() -> None:
    state, own = weights(4), weights(3, value=-1)
    before = [{name: tensor.clone() for name, tensor in item.items()} for item in (state, own)]
    adapt(state, own, Policy("by_name", boxes=False), OURS, COCO)
    for item, copy in zip((state, own), before):
        assert all(torch.equal(item[name], copy[name]) for name in copy) and len(item) == len(copy)


def test_half_precision_rows_take_the_models() -> None:
    state = {name: tensor.half() for name, tensor in weights(4).items()}
    fitted, _ = adapt(state, weights(3, value=-1), Policy("by_name"), OURS, COCO)
    assert fitted["class_embed.1.bias"].dtype == torch.float32
    assert rows(fitted, 1) == [-1, 101, 100]


def test_heads_that_do_not_fit_are_left_for_the_load_report() -> None:
    state, own = weights(4), weights(3, value=-1)
    del state["class_embed.1.bias"]
    state["class_embed.0.weight"] = torch.zeros(4, 9)
    state["class_embed.1.weight"] = torch.tensor(0.0)
    fitted, _ = adapt(state, own, Policy("by_name"), OURS, COCO)
    assert "class_embed.1.bias" not in fitted
    assert fitted["class_embed.0.weight"].shape == (4, 9)
    assert fitted["class_embed.0.bias"].tolist() == [-1, 1, 0]


# Mistakes


def test_permuted_classes_are_refused_under_same() -> None:
    message = sentence(fit, names=["dog", "person", "cat", "bus"])
    assert "person, Dog, cat, bus" in message and "dog, person, cat, bus" in message
    assert "train.init.classes=by_name" in message


def test_other_names_in_the_same_number_are_noted() -> None:
    state, report = fit(names=["a", "b", "c", "d"])
    assert rows(state, 0) == [0, 1, 2, 3]
    assert report.notes == [
        "classes are taken in their order although names differ: a, b, c, d here, "
        "person, Dog, cat, bus in the checkpoint"
    ]


@pytest.mark.parametrize("unknown", [{"names": []}, {"stored": []}])
def test_order_is_not_checked_where_nobody_knows_it(unknown: dict) -> None:
    state, own = weights(4), weights(4, value=-1)
    lists = {"names": COCO[::-1], "stored": COCO, **unknown}
    _, report = adapt(state, own, Policy(), lists["names"], lists["stored"])
    assert report.notes == [] and report.share == 1


@pytest.mark.parametrize("classes", ["by_name", {"mass": "bus"}])
def test_names_must_be_known_to_choose_by_name(classes) -> None:
    state, own = weights(4), weights(3, value=-1)
    message = sentence(adapt, state, own, Policy(classes), OURS, [])
    assert "the checkpoint does not tell its classes" in message and "reinitialise" in message
    message = sentence(adapt, state, own, Policy(classes), [], COCO)
    assert "the data set does not tell its classes" in message
    fitted, _ = adapt(state, own, Policy("reinitialise"), [], [])
    assert rows(fitted, 0) == [-1, -1, -1]


@pytest.mark.parametrize("classes", [{"mass": "lesion"}, {"lesion": "bus"}, {"mass": "person "}])
def test_mapping_to_a_class_that_does_not_exist(classes: dict) -> None:
    (pair,) = classes.items()
    message = sentence(fit, {"person": "person", **classes})
    assert f"train.init.classes has '{pair[0]}: {pair[1]}'" in message
    assert "mass, DOG, person" in message and "person, Dog, cat, bus" in message


def test_by_name_without_a_common_class() -> None:
    message = sentence(fit, "by_name", names=["mass"])
    assert "no class of the data set (mass)" in message and "reinitialise" in message


def test_names_must_be_as_many_as_outputs() -> None:
    state, own = weights(4), weights(3, value=-1)
    message = sentence(adapt, state, own, Policy("by_name"), OURS, ["person", "dog"])
    assert "the checkpoint names 2 class(es) (person, dog)" in message and "4 output(s)" in message
    message = sentence(adapt, state, own, Policy(), ["mass"], COCO)
    assert "the data set names 1 class(es)" in message and "3 output(s)" in message


def test_model_without_class_heads() -> None:
    message = sentence(adapt, {}, {"head.weight": torch.ones(1)}, Policy("reinitialise"), [], [])
    assert "no class heads" in message


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"classes": "keep"}, "same, reinitialise, by_name or a mapping"),
        ({"classes": None}, "train.init.classes is None"),
        ({"classes": []}, "train.init.classes is []"),
        ({"classes": {}}, "train.init.classes is {}"),
        ({"classes": ["mass"]}, "train.init.classes is ['mass']"),
        ({"classes": {1: 2}}, "train.init.classes is {1: 2}"),
        ({"classes": {"mass": None}}, "train.init.classes is"),
        ({"objectness": "yes"}, "train.init.objectness is 'yes', but must be true or false"),
        ({"boxes": None}, "train.init.boxes is None"),
        ({"min_share": 1.1}, "train.init.min_share is 1.1"),
        ({"min_share": -0.1}, "must be in [0, 1]"),
        ({"min_share": float("nan")}, "must be in [0, 1]"),
        ({"min_share": None}, "train.init.min_share is None"),
        ({"min_share": "a"}, "train.init.min_share is 'a'"),
    ],
)
def test_policies_that_do_not_exist(settings: dict, expected: str) -> None:
    assert expected in sentence(Policy, **settings)
