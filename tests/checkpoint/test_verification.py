# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Verification passes what is right and stops what is not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision

from detrex_mammo.checkpoint import verification
from detrex_mammo.checkpoint.conversion import convert
from detrex_mammo.checkpoint.reading import read_source
from detrex_mammo.checkpoint.verification import Verification, verify, why_not
from detrex_mammo.errors import UserError
from tests.checkpoint.live_models import live_model, write_huggingface, write_other
from tests.modeling.hf_oracle import NUM_QUERIES


def huggingface(tmp_path: Path, variant: str = "two_stage", **more):
    source = read_source(write_huggingface(live_model(variant, **more), tmp_path / "m", "folder"))
    return source, convert(source)


@pytest.mark.parametrize("variant", ["multi_scale", "two_stage"])
def test_a_folder_is_run_as_it_is_stored(variant: str, tmp_path: Path) -> None:
    result = verify(*huggingface(tmp_path, variant, num_classes=91))
    assert result.passed
    assert result.source_weights == "as stored"
    assert 0 < result.largest["logits"] < 1e-4
    assert result.to_dict()["passed"] is True


@pytest.mark.parametrize("name", ["official", "detrex"])
def test_other_weights_are_run_converted(name: str, tmp_path: Path) -> None:
    source = read_source(write_other(live_model("refine"), tmp_path / "m.pth", name))
    assume = {"num_heads": 4, "num_queries": NUM_QUERIES} if name == "detrex" else {}
    converted = convert(source, assume=assume)
    result = verify(source, converted)
    assert result.passed
    assert result.source_weights == "converted"
    assert "which ran the converted weights" in result.describe()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("transformer.decoder.layers.0.norm1.weight", "transformer.decoder.layers.0.norm2.weight"),
        ("class_embed.3.bias", "class_embed.2.bias"),
        ("backbone.res5.0.conv1.norm.bias", "backbone.res5.0.conv2.norm.bias"),
    ],
)
def test_swapped_tensors_are_found(name: str, change: str, tmp_path: Path) -> None:
    source, converted = huggingface(tmp_path)
    converted.state[name], converted.state[change] = converted.state[change], converted.state[name]
    with pytest.raises(UserError, match="is wrong: largest difference to transformers"):
        verify(source, converted)


def test_a_wrong_setting_is_found(tmp_path: Path) -> None:
    """2 heads with twice the points: equal names and shapes, another model."""
    source, converted = huggingface(tmp_path, "multi_scale")
    converted.architecture = replace(converted.architecture, num_heads=2, num_encoder_points=6,
                                     num_decoder_points=4)  # fmt: skip
    with pytest.raises(UserError, match="is wrong"):
        verify(source, converted)


def test_nan_does_not_pass(tmp_path: Path) -> None:
    source, converted = huggingface(tmp_path, "multi_scale")
    converted.state["class_embed.0.bias"] = converted.state["class_embed.0.bias"] * float("nan")
    with pytest.raises(UserError, match="logits nan"):
        verify(source, converted)
    assert not Verification("x", "as stored", {"boxes": float("nan")}, {"boxes": 1.0}).passed


def test_rounding_of_float32_is_told_from_a_mistake(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(verification, "LOGITS_BOUND", 1e-9)
    monkeypatch.setattr(verification, "BOXES_BOUND", 1e-9)
    result = verify(*huggingface(tmp_path, "multi_scale"))
    assert result.precision == "float64"
    assert result.passed


def test_backbones_are_run_by_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "r18.pth")
    source = read_source(tmp_path / "r18.pth")
    converted = convert(source)
    assert why_not(converted) == ""
    assert verify(source, converted).largest["features"] < 1e-5
    conv = "backbone.res3.0.conv2.weight"
    converted.state[conv] = converted.state["backbone.res3.1.conv1.weight"]
    with pytest.raises(UserError, match="features"):
        verify(source, converted)


def test_why_not_names_what_is_missing(tmp_path: Path, monkeypatch) -> None:
    _, converted = huggingface(tmp_path, "single_scale_dc5")
    assert why_not(converted) == ""

    def fail(name: str):
        raise ImportError(name)

    monkeypatch.setattr(verification.importlib, "import_module", fail)
    assert why_not(converted) == "transformers is not installed"
