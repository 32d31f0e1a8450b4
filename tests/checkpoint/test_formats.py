# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Other projects' names and shapes at full size: every one fits, and comes back bit by bit."""

import pytest
import torch

from detrex_mammo.checkpoint.conversion import convert, detect_format
from detrex_mammo.checkpoint.reading import Source
from detrex_mammo.checkpoint.writing import names_of
from detrex_mammo.errors import UserError
from tests.checkpoint.key_lists import LISTS, random_state, read_list

FORMAT = {"mmdet": "mmdetection"}
VARIANT = {
    "single_scale": "single-scale",
    "multi_scale": "multi-scale",
    "refine": "iterative box refinement",
    "refine_5levels": "iterative box refinement",
    "two_stage": "two-stage",
}
# Counted by the projects' own code.
NUM_NAMES = {"official_single_scale": 549, "official_two_stage": 630, "detrex_two_stage": 630}


def make_source(stem: str) -> Source:
    shares_heads = "refine" not in stem and "two_stage" not in stem
    return Source(f"{stem}.pth", random_state(stem, shares_heads))


def test_the_lists_are_whole() -> None:
    assert len(LISTS) == 13
    for stem, count in NUM_NAMES.items():
        assert len(read_list(stem)) == count


@pytest.mark.parametrize("stem", LISTS)
def test_every_name_of_a_full_size_model_fits(stem: str) -> None:
    source = make_source(stem)
    name, variant = stem.split("_", 1)
    assert detect_format(source) == FORMAT.get(name, name)
    converted = convert(source, class_policy="keep")
    assert converted.architecture.variant == VARIANT[variant]
    assert converted.architecture.depth == 50
    assert converted.architecture.num_head_pairs == (7 if variant == "two_stage" else 6)
    if name in ("official", "detrex"):
        back = names_of(converted, name)
        assert back.keys() == source.state.keys()
        assert all(torch.equal(back[key], source.state[key]) for key in back)


@pytest.mark.parametrize("stem", ["official_two_stage", "detrex_multi_scale", "mmdet_refine"])
def test_a_name_too_many_one_missing_one_mis_shaped(stem: str) -> None:
    source = make_source(stem)
    norm = next(name for name in source.state if name.endswith(("norm1.weight", "norms.0.weight")))
    value = next(n for n in source.state if n.endswith("value_proj.bias"))
    source.state["somebody.elses"] = torch.zeros(1)
    source.state[norm] = torch.zeros(7)
    del source.state[value]
    with pytest.raises(UserError) as caught:
        convert(source)
    message, report = str(caught.value), caught.value.report
    assert "\n" not in message
    assert "1 missing" in message
    assert "1 unexpected" in message
    assert "1 mis-shaped" in message
    assert "somebody.elses" in report
    assert "[7] instead of [256]" in report
    assert "value_proj.bias" in report


def test_copies_that_differ_are_told() -> None:
    source = make_source("official_refine")
    copy = "transformer.decoder.bbox_embed.3.layers.0.bias"
    source.state[copy] = source.state[copy] + 1
    with pytest.raises(UserError, match="stored twice with different values"):
        convert(source)


def test_detrex_runs_with_the_eps_it_was_trained_with() -> None:
    converted = convert(make_source("detrex_multi_scale"))
    assert converted.architecture.inverse_sigmoid_eps == 1e-3
    assert convert(make_source("official_multi_scale")).architecture.inverse_sigmoid_eps == 1e-5
