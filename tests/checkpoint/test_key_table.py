# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Tables of names: the language by hand, and every format's table there and back, bit by bit."""

from dataclasses import replace

import pytest
import torch

from detrex_mammo.checkpoint import heads
from detrex_mammo.checkpoint.architecture import Architecture
from detrex_mammo.checkpoint.conversion import DETECTORS, model_shapes
from detrex_mammo.checkpoint.key_table import (
    Dropped,
    Pattern,
    Rule,
    Zeros,
    holds,
    read,
    write,
)

# The language


@pytest.mark.parametrize(
    ("pattern", "name", "values"),
    [
        ("a.b", "a.b", {}),
        ("a.b", "axb", None),
        ("a.b", "a.b.c", None),
        ("a.b", "z.a.b", None),
        ("l.{i}.w", "l.12.w", {"i": 12}),
        ("l.{i}.w", "l.x.w", None),
        ("l.{i}.w", "l..w", None),
        ("l.{i}.{b}", "l.3.4", {"i": 3, "b": 4}),
        ("l{i+1}", "l4", {"i": 3}),
        ("l{i+1}", "l0", None),  # number -1 does not exist
        ("l{i-2}", "l0", {"i": 2}),
        ("{p}", "weight", {"p": "weight"}),
        ("{p}", "bias", {"p": "bias"}),
        ("{p}", "running_mean", None),
        ("{n}", "running_var", {"n": "running_var"}),
        ("{n}", "num_batches_tracked", None),
        ("a.{m}.{p}", "a.value_proj.bias", {"m": "value_proj", "p": "bias"}),
        ("a.{m}.{p}", "a.out_proj.bias", None),
    ],
)
def test_patterns(pattern: str, name: str, values: dict | None) -> None:
    assert Pattern(pattern).match(name) == values
    if values is not None:
        assert Pattern(pattern).format(values) == name


def test_a_number_moves_between_the_two_names() -> None:
    rule = Rule("layer{s}.{b}.{p}", "res{s+1}.{b}.{p}")
    state = {"layer1.0.weight": torch.tensor(1.0), "layer4.12.bias": torch.tensor(2.0)}
    renamed = read(state, [rule])
    assert renamed.tensors == {"res2.0.weight": 1.0, "res5.12.bias": 2.0}
    assert write(renamed.tensors, [rule], None) == state


PARTS = [Rule(f"{letter}.{{p}}", "fused_{p}", part=(i, 3)) for i, letter in enumerate("qkv")]


def test_parts_are_rows_in_their_order() -> None:
    """Whatever the order in the file: query, key, value from top to bottom."""
    pieces = {f"{c}.weight": torch.full((2, 2), float(i)) for i, c in enumerate("qkv")}
    pieces = {name: pieces[name] for name in ("v.weight", "q.weight", "k.weight")}
    fused = read(pieces, PARTS).tensors["fused_weight"]
    assert fused[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    back = write({"fused_weight": fused}, PARTS, None)
    assert {name: tensor.tolist() for name, tensor in back.items()} == {
        name: tensor.tolist() for name, tensor in pieces.items()
    }
    back["q.weight"].zero_().add_(9)
    assert fused[0, 0] == 0  # slices are copies


@pytest.mark.parametrize("lost", ["q", "k", "v"])
def test_a_part_that_is_missing_is_told(lost: str) -> None:
    pieces = {f"{letter}.bias": torch.zeros(2) for letter in "qkv" if letter != lost}
    renamed = read(pieces, PARTS)
    assert (renamed.incomplete, renamed.tensors) == (["fused_bias"], {})


@pytest.mark.parametrize("shapes", [[(2, 2), (2, 3), (2, 2)], [(3, 2), (1, 2), (2, 2)]])
def test_parts_of_different_shapes_are_told(shapes) -> None:
    """Also where the rows of all three together are as many as they should be."""
    pieces = {f"{letter}.weight": torch.zeros(shape) for letter, shape in zip("qkv", shapes)}
    renamed = read(pieces, PARTS)
    assert (renamed.incomplete, renamed.tensors) == (["fused_weight"], {})


COPIES = [Rule("a.{p}", "x.{p}"), Rule("b.{p}", "x.{p}", optional="a second copy")]


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.0], [1.0, 2.0000002], False),
        ([1.0, 2.0], [1.0], False),
        ([1.0], [[1.0]], False),
        ([float("nan"), 2.0], [float("nan"), 2.0], True),
        ([float("nan"), 2.0], [1.0, 2.0], False),
        ([float("nan"), 2.0], [0.5, 2.0], False),
        ([float("inf"), 2.0], [torch.finfo(torch.float32).max, 2.0], False),
    ],
)
def test_copies_must_agree(one, other, agree: bool) -> None:
    renamed = read({"a.bias": torch.tensor(one), "b.bias": torch.tensor(other)}, COPIES)
    assert renamed.disagreeing == ([] if agree else ["x.bias"])
    assert list(renamed.tensors) == (["x.bias"] if agree else [])


def test_either_copy_will_do() -> None:
    for name, rule in zip("ab", COPIES):
        renamed = read({f"{name}.bias": torch.ones(1)}, COPIES)
        assert renamed.tensors == {"x.bias": 1.0} and renamed.used == {rule}


def test_every_copy_is_written_unless_told_otherwise() -> None:
    state = {"x.bias": torch.ones(1)}
    assert set(write(state, COPIES, None)) == {"a.bias", "b.bias"}
    silent = [COPIES[0], replace(COPIES[1], written=False)]
    assert set(write(state, silent, None)) == {"a.bias"}


def test_a_name_that_two_rules_claim_is_a_mistake_of_the_table() -> None:
    with pytest.raises(AssertionError, match=r"a\.1 matches \['a\.\{i\}', 'a\.1'\]"):
        read({"a.1": torch.zeros(1)}, [Rule("a.{i}", "x.{i}"), Rule("a.1", "y")])


def test_names_that_no_rule_knows_are_told_and_dropped_ones_are_not() -> None:
    table = [Rule("a", "x"), Dropped(r"b\..+", "not needed")]
    names = ("a", "b.c", "b", "ab.c", "A")
    renamed = read({name: torch.zeros(1) for name in names}, table)
    assert renamed.unexpected == ["b", "ab.c", "A"]
    assert list(renamed.tensors) == ["x"]


def test_a_tensor_without_a_name_cannot_be_written() -> None:
    with pytest.raises(AssertionError, match="no rule writes y"):
        write({"x": torch.zeros(1), "y": torch.zeros(1)}, [Rule("a", "x")], None)


def test_zeros_fill_what_a_format_leaves_out() -> None:
    table = [Rule("c.{i}.{p}", "proj.{i}.{p}"), Zeros("proj.{i}.bias", "proj.{i}.weight", "a norm")]
    state = {
        "c.0.weight": torch.ones(3, 2),
        "c.1.weight": torch.ones(4, 2),
        "c.1.bias": torch.ones(4),
    }
    filled = read(state, table).tensors
    assert filled["proj.0.bias"].tolist() == [0, 0, 0]
    assert filled["proj.1.bias"].tolist() == [1, 1, 1, 1]
    half = read({"c.0.weight": torch.ones(3, 2).half()}, table).tensors
    assert half["proj.0.bias"].dtype == torch.float16


def test_rules_that_only_some_models_have() -> None:
    rule = Rule("a", "x", when="two_stage")
    for variant, expected in (("two_stage", True), ("refine", False)):
        assert holds(rule, architecture(variant)) is expected
    with pytest.raises(AssertionError, match="no rule writes x"):
        write({"x": torch.zeros(1)}, [rule], architecture("refine"))


# The tables

VARIANTS = {
    "single_scale": {"num_feature_levels": 1, "in_features": ("res5",)},
    "dc5": {"num_feature_levels": 1, "in_features": ("res5",), "dc5": True},
    "multi_scale": {},
    "refine": {"with_box_refine": True},
    "two_stage": {"with_box_refine": True, "two_stage": True},
}


def architecture(variant: str, **settings) -> Architecture:
    tiny = dict(
        depth=14, stem_out_channels=4, res2_out_channels=8, in_features=("res3", "res4", "res5"),
        embed_dim=32, feedforward_dim=12, num_heads=2, num_encoder_layers=2, num_decoder_layers=3,
        num_feature_levels=4, num_encoder_points=3, num_decoder_points=2, num_queries=7,
        num_classes=5, with_box_refine=False, two_stage=False,
    )  # fmt: skip
    return Architecture(**{**tiny, **VARIANTS[variant], **settings})


def random_state(model: Architecture, format_name: str = "") -> dict[str, torch.Tensor]:
    """Random tensors under our names, a head for each layer as published files have."""
    state = {name: torch.randn(shape) for name, shape in model_shapes(model).items()}
    if not model.with_box_refine:
        state = heads.unfold(state, model.num_head_pairs)
    if format_name == "mmdetection":  # its projections have no bias
        for level in range(model.num_feature_levels):
            del state[f"input_proj.{level}.0.bias"]
    return state


def table_of(name: str, model: Architecture, **options):
    return DETECTORS[name].table(len(model.in_features), model.num_extra_levels, **options)


OPTIONS = [(name, {}) for name in DETECTORS] + [("huggingface", {"timm": True})]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("name", "options"), OPTIONS)
@pytest.mark.parametrize("depth", [14, 18])
def test_there_and_back_is_bit_exact(name: str, options: dict, variant: str, depth: int) -> None:
    if (variant, depth) == ("dc5", 18):
        variant = "single_scale"  # basic blocks cannot be dilated
    model = architecture(variant, depth=depth)
    table, state = table_of(name, model, **options), random_state(model, name)
    renamed = read(write(state, table, model), table)
    assert not renamed.unexpected and not renamed.disagreeing and not renamed.incomplete
    for key, tensor in renamed.tensors.items():
        if key in state:
            assert torch.equal(tensor, state[key]), key
        else:
            assert name == "mmdetection" and not tensor.any() and tensor.shape == (32,)
    assert set(state) <= set(renamed.tensors)
    assert set(renamed.tensors) == set(random_state(model))
    must = {r for r in table if isinstance(r, Rule) and holds(r, model) and not r.optional}
    assert must <= renamed.used


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", DETECTORS)
def test_no_two_tensors_share_a_name(name: str, variant: str) -> None:
    """As many names as tensors, parts and copies: nothing is overwritten."""
    model = architecture(variant)
    table, state = table_of(name, model), random_state(model, name)
    rules = [r for r in table if isinstance(r, Rule) and r.written and holds(r, model)]
    expected = sum(r.patterns[1].match(n) is not None for n in state for r in rules)
    assert len(write(state, table, model)) == expected >= len(state)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_file_of_one_format_is_not_read_by_another(name: str) -> None:
    model = architecture("two_stage")
    stored = write(random_state(model), table_of("official", model), model)
    unexpected = read(stored, table_of(name, model)).unexpected
    assert bool(unexpected) == (name != "official")


@pytest.mark.parametrize("name", DETECTORS)
def test_counters_of_batches_are_dropped(name: str) -> None:
    model = architecture("refine")
    table = table_of(name, model)
    stored = write(random_state(model, name), table, model)
    mean = next(key for key in stored if key.endswith(".running_mean"))
    stored[mean.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    assert read(stored, table).unexpected == []
