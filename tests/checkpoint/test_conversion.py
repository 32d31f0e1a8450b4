# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Models of transformers, live and perturbed, in every spelling, predict the same after conversion.

``live_models`` and ``other_names`` write the files; they share nothing with the key tables.
"""

import json
from pathlib import Path

import pytest
import torch

from detrex_mammo.checkpoint.conversion import convert, detect_format
from detrex_mammo.checkpoint.reading import Source, read_source
from detrex_mammo.checkpoint.verification import build
from detrex_mammo.errors import UserError
from tests.checkpoint.key_lists import random_state
from tests.checkpoint.live_models import (
    assert_equal,
    live_model,
    write_huggingface,
    write_other,
)
from tests.modeling.hf_oracle import NUM_QUERIES, VARIANTS

# What files cannot tell: a file alone has no config.json, detrex's and TAO's never say.
SIZES = {"num_heads": 4, "num_queries": NUM_QUERIES}
CASES = [(variant, "folder", False) for variant in VARIANTS]
CASES += [("multi_scale", form, False) for form in ("bin", "memory", "sharded", "file")]
CASES += [("two_stage", form, False) for form in ("bin", "memory", "sharded", "file")]
CASES += [("refine", "bin", False), ("refine", "memory", False), ("single_scale", "memory", False)]
CASES += [("refine", "folder", True), ("two_stage", "memory", True), ("single_scale", "bin", True)]
CASES += [("single_scale_dc5", "memory", False)]


@pytest.mark.parametrize(("variant", "form", "timm"), CASES)
def test_huggingface(variant: str, form: str, timm: bool, tmp_path: Path) -> None:
    theirs = live_model(variant, **({"timm": True} if timm else {}))
    path = write_huggingface(theirs, tmp_path / "model", form)
    told = (path if path.is_dir() else path.parent) / "config.json"
    assume = {} if told.is_file() and form != "memory" else dict(SIZES)
    assume |= {"dc5": True} if variant == "single_scale_dc5" and assume else {}
    converted = convert(read_source(path), assume=assume)
    assert converted.format == "huggingface"
    assert_equal(theirs, build(converted))


@pytest.mark.parametrize("variant", ["single_scale", "multi_scale", "refine", "two_stage"])
@pytest.mark.parametrize("name", ["official", "detrex", "mmdetection", "tao"])
def test_other_projects(name: str, variant: str, tmp_path: Path) -> None:
    if variant == "single_scale" and name in ("detrex", "mmdetection"):
        pytest.skip("its neck was published for several levels only")
    if variant == "two_stage" and name == "tao":
        pytest.skip("TAO has no two-stage model")
    theirs = live_model(variant)
    source = read_source(write_other(theirs, tmp_path / "model.pth", name))
    assert detect_format(source) == name
    # Their weights ran with 1e-5 here, as transformers does.
    assume = {"inverse_sigmoid_eps": 1e-5}
    assume |= SIZES if name in ("detrex", "tao") else {}
    assert_equal(theirs, build(convert(source, assume=assume)))


def test_fresh_refinement_of_transformers_shares_its_class_head(tmp_path: Path) -> None:
    """transformers 5 ties the class heads of a new refinement model and stores one."""
    theirs = live_model("refine")
    theirs.class_embed = torch.nn.ModuleList([theirs.class_embed[0]] * 3)
    theirs.save_pretrained(tmp_path / "model")
    converted = convert(read_source(tmp_path / "model"))
    assert converted.architecture.with_box_refine
    assert_equal(theirs, build(converted))


def test_coco_outputs_are_reduced(tmp_path: Path) -> None:
    theirs = live_model("two_stage", num_classes=91)
    source = read_source(write_other(theirs, tmp_path / "model.pth", "official"))
    converted = convert(source)
    assert converted.architecture.num_classes == 80
    assert converted.classes["names"][:2] == ["person", "bicycle"]
    assert converted.classes["ids"][-1] == 90
    assert_equal(theirs, build(converted), rows=converted.class_rows)
    assert convert(source, class_policy="keep").architecture.num_classes == 91


def test_objectness_by_cocos_rows_would_be_wrong(tmp_path: Path) -> None:
    """The well-known silent error changes the predictions, so the test above would see it."""
    theirs = live_model("two_stage", num_classes=91)
    converted = convert(read_source(write_other(theirs, tmp_path / "m.pth", "official")))
    for leaf in ("weight", "bias"):
        stored = getattr(theirs.class_embed[3], leaf).detach()
        converted.state[f"class_embed.3.{leaf}"] = stored[converted.class_rows]
    with pytest.raises(AssertionError):
        assert_equal(theirs, build(converted), rows=converted.class_rows)


def test_names_of_classes_come_along(tmp_path: Path) -> None:
    theirs = live_model("multi_scale")
    theirs.config.id2label = dict(enumerate(["mass", "calc", "asym", "dist", "node"]))
    theirs.save_pretrained(tmp_path / "model")
    converted = convert(read_source(tmp_path / "model"))
    assert converted.classes == {"names": ["mass", "calc", "asym", "dist", "node"],
                                 "ids": [0, 1, 2, 3, 4]}  # fmt: skip


def huggingface_with(tmp_path: Path, **changes) -> Source:
    live_model("multi_scale").save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return read_source(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"two_stage": True, "with_box_refine": True}, "two_stage True but has two_stage False"),
        ({"encoder_layers": 6}, "num_encoder_layers 6 but has num_encoder_layers 2"),
        ({"encoder_attention_heads": 7, "decoder_attention_heads": 7}, "num_heads=N"),
        ({"position_embedding_type": "learned"}, "only 'sine' is supported"),
        ({"activation_function": "gelu"}, "only 'relu' is supported"),
        ({"decoder_ffn_dim": 99}, "only 48 is supported"),
        ({"model_type": "deta"}, "only 'deformable_detr' is supported"),
        ({"encoder_attention_heads": None}, "num_heads of"),
        (
            {"encoder_attention_heads": "4", "decoder_attention_heads": "4"},
            "must be a whole number from 1",
        ),
        ({"num_queries": [1]}, "must be a whole number from 1"),
        ({"num_queries": True}, "must be a whole number from 1"),
        ({"dropout": 2.0}, "must be a number in [0, 1]"),
        ({"with_box_refine": "yes"}, "must be True or False"),
        ({"backbone_config": [1]}, "cannot be read"),
        ({"backbone_config": {"downsample_in_bottleneck": True}}, "only False is supported"),
        ({"id2label": {"mass": 0}}, "cannot be read"),
    ],
)
def test_a_config_of_another_model_is_refused(changes, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        convert(huggingface_with(tmp_path, **changes))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_normalisation_of_their_own_comes_along(tmp_path: Path) -> None:
    live_model("multi_scale").save_pretrained(tmp_path / "model")
    processor = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(processor))
    architecture = convert(read_source(tmp_path / "model")).architecture
    assert architecture.pixel_mean == (127.5, 127.5, 127.5)
    assert architecture.pixel_std == (63.75, 63.75, 63.75)


def test_what_is_assumed_is_said() -> None:
    source = Source("model.pth", random_state("official_single_scale", shares_heads=True))
    notes = " ".join(convert(source).notes)
    assert "num_heads is taken to be 8" in notes
    assert "dc5 is taken to be False" in notes


def test_images_that_are_not_normalised(tmp_path: Path) -> None:
    live_model("multi_scale").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"do_normalize": false}')
    architecture = convert(read_source(tmp_path / "model")).architecture
    assert architecture.pixel_mean == (0.0, 0.0, 0.0)
    assert architecture.pixel_std == (255.0, 255.0, 255.0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_weights_are_numbers_with_a_point(dtype, tmp_path: Path) -> None:
    source = read_source(write_other(live_model("refine"), tmp_path / "m.pth", "official"))
    source.state["transformer.level_embed"] = source.state["transformer.level_embed"].to(dtype)
    with pytest.raises(UserError, match="weights are floating-point numbers"):
        convert(source)
    source.state["transformer.level_embed"] = torch.empty(4, 64, device="meta")
    with pytest.raises(UserError, match="meta"):
        convert(source)


def test_layers_by_the_million_are_not_built(tmp_path: Path) -> None:
    source = read_source(write_other(live_model("refine"), tmp_path / "m.pth", "tao"))
    prefix = "model.model.transformer.decoder.layers."
    for number in ("999999999", "9" * 5000):
        source.state[f"{prefix}{number}.linear1.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match="2 unexpected"):
        convert(source, assume=SIZES)


def test_wrong_format_setting_and_file(tmp_path: Path) -> None:
    source = read_source(write_other(live_model("refine"), tmp_path / "m.pth", "official"))
    with pytest.raises(UserError, match="format is 'tensorflow', but must be one of official"):
        convert(source, "tensorflow")
    with pytest.raises(UserError, match="has the names of the official format, not detrex"):
        convert(source, "detrex")
    with pytest.raises(UserError, match="'heads' is no setting of a model"):
        convert(Source("x", {}), "official", {"heads": 8})
    with pytest.raises(UserError, match="of no known format"):
        detect_format(Source("x.pth", {"a.weight": torch.zeros(1), "b.bias": torch.zeros(1)}))
    with pytest.raises(UserError, match="not a whole model"):
        convert(Source("x.pth", {"backbone.0.body.conv1.weight": torch.zeros(1)}), "official")


@pytest.mark.parametrize(
    "name",
    [
        "transformer.level_embed",
        "input_proj.0.0.weight",
        "backbone.0.body.conv1.weight",
        "transformer.encoder.layers.0.self_attn.attention_weights.bias",
    ],
)
def test_a_tensor_of_another_kind_is_told(name: str, tmp_path: Path) -> None:
    source = read_source(write_other(live_model("refine"), tmp_path / "m.pth", "official"))
    source.state[name] = torch.zeros(2, 2, 2)
    with pytest.raises(UserError) as caught:
        convert(source)
    assert "[2, 2, 2]" in str(caught.value)


@pytest.mark.parametrize("table", ["x", {"names": ["a"]}, {"names": 3, "ids": [1]}, {"names": [1]}])
def test_a_class_table_that_is_none_is_left_alone(table, tmp_path: Path) -> None:
    source = read_source(write_other(live_model("refine"), tmp_path / "m.pth", "official"))
    source.content["classes"] = table
    assert convert(source).classes == {"names": [], "ids": []}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("mmdetection", "encoder.", "bbox_head.transformer.encoder."),  # mmdetection 2
        ("tao", "backbone.0.body.layer", "backbone.0.body.levels."),  # TAO's GCViT
    ],
)
def test_relatives_are_refused(name: str, old: str, new: str, tmp_path: Path) -> None:
    source = read_source(write_other(live_model("refine"), tmp_path / "m.pth", name))
    source.state = {key.replace(old, new): value for key, value in source.state.items()}
    with pytest.raises(UserError) as caught:
        convert(source, assume={"num_heads": 4})
    assert "\n" not in str(caught.value)
    assert caught.value.report.count(new) > 10


def test_a_file_without_its_encoder_is_no_model_of_zero_layers(tmp_path: Path) -> None:
    source = read_source(write_other(live_model("refine"), tmp_path / "m.pth", "tao"))
    source.state = {key: value for key, value in source.state.items() if ".encoder." not in key}
    with pytest.raises(UserError, match="no encoder layers"):
        convert(source, assume=SIZES)
