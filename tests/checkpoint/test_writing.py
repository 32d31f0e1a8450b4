# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What is written back loads in transformers without a word, and is what was read, bit by bit."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, DeformableDetrForObjectDetection

from detrex_mammo.checkpoint.conversion import Converted, convert
from detrex_mammo.checkpoint.reading import read_source
from detrex_mammo.checkpoint.verification import build
from detrex_mammo.checkpoint.writing import save
from detrex_mammo.config import find_shipped
from detrex_mammo.errors import UserError
from tests.checkpoint.live_models import assert_equal, live_model, write_huggingface, write_other
from tests.modeling.hf_oracle import NUM_QUERIES, VARIANTS

NOTHING = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def converted(variant: str, folder: Path, **more) -> Converted:
    theirs = live_model(variant, **more)
    return convert(read_source(write_huggingface(theirs, folder / "source", "folder")))


@pytest.mark.parametrize("variant", VARIANTS)
def test_huggingface_loads_without_a_missing_or_unexpected_key(variant, tmp_path: Path) -> None:
    source = converted(variant, tmp_path)
    folder = save(source, tmp_path / "target", "huggingface", {"source": "here"})
    theirs, told = DeformableDetrForObjectDetection.from_pretrained(
        folder, output_loading_info=True
    )
    assert {name: list(told[name]) for name in NOTHING} == {name: [] for name in NOTHING}
    assert_equal(theirs.eval(), build(source))
    # The same file that transformers wrote, bit by bit
    before, after = (
        load_file(tmp_path / name / "model.safetensors") for name in ("source", "target")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((folder / "provenance.json").read_text()) == {"source": "here"}


def test_huggingface_keeps_names_of_classes_and_normalisation(tmp_path: Path) -> None:
    source = converted("two_stage", tmp_path)
    source.classes = {"names": ["a", "b", "c", "d", "e"], "ids": [1, 2, 3, 4, 5]}
    folder = save(source, tmp_path / "target", "huggingface", {})
    theirs = DeformableDetrForObjectDetection.from_pretrained(folder)
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d", 4: "e"}
    processor = AutoImageProcessor.from_pretrained(folder)
    assert processor.image_mean == pytest.approx([0.485, 0.456, 0.406])
    assert processor.image_std == pytest.approx([0.229, 0.224, 0.225])
    assert processor.size["shortest_edge"] == 800
    assert processor.size["longest_edge"] == 1333


def test_images_get_the_size_of_training(tmp_path: Path) -> None:
    """The demo's test images are made to fit into 384x224, not 800 to 1333."""
    source = convert(read_source(find_shipped("projects/mammography/checkpoints/demo_small.pth")))
    folder = save(source, tmp_path / "target", "huggingface", {})
    processor = AutoImageProcessor.from_pretrained(folder)
    image = np.zeros((3, 1000, 500), dtype=np.uint8)
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == (384, 192)


def test_cocos_91_outputs_keep_their_names(tmp_path: Path) -> None:
    path = write_other(live_model("two_stage", num_classes=91), tmp_path / "m.pth", "official")
    source = convert(read_source(path), class_policy="keep")
    folder = save(source, tmp_path / "target", "huggingface", {})
    names = DeformableDetrForObjectDetection.from_pretrained(folder).config.id2label
    assert (names[0], names[1], names[12], names[90]) == ("N/A", "person", "N/A", "toothbrush")
    again = convert(read_source(folder))
    assert again.architecture.num_classes == 80  # still known as COCO's


@pytest.mark.parametrize("variant", ["single_scale", "single_scale_dc5", "multi_scale", "refine"])
@pytest.mark.parametrize("target", ["detrex_mammo", "official", "detrex"])
def test_round_trips_are_exact(variant: str, target: str, tmp_path: Path) -> None:
    check_round_trip(converted(variant, tmp_path), tmp_path / "file.pth", target)


@pytest.mark.parametrize("target", ["detrex_mammo", "official", "detrex"])
@pytest.mark.parametrize("num_classes", [5, 91])
def test_round_trips_of_two_stage_are_exact(target, num_classes, tmp_path: Path) -> None:
    source = converted("two_stage", tmp_path, num_classes=num_classes)
    check_round_trip(source, tmp_path / "file.pth", target)


def check_round_trip(source: Converted, file: Path, target: str) -> None:
    again = convert(read_source(save(source, file, target, {})))
    assert again.format == target
    assert again.architecture == source.architecture
    assert again.classes == source.classes
    assert again.state.keys() == source.state.keys()
    assert all(torch.equal(again.state[name], source.state[name]) for name in source.state)


@pytest.mark.parametrize("name", ["official", "detrex"])
@pytest.mark.parametrize("variant", ["multi_scale", "refine", "two_stage"])
def test_their_own_file_comes_back_bit_by_bit(name: str, variant: str, tmp_path: Path) -> None:
    """The file as written by hand in other_names, not as written from here."""
    path = write_other(live_model(variant), tmp_path / "theirs.pth", name)
    assume = {"num_heads": 4, "num_queries": NUM_QUERIES} if name == "detrex" else {}
    source = convert(read_source(path), assume=assume)
    save(source, tmp_path / "back.pth", name, {})
    with torch.serialization.safe_globals([argparse.Namespace]):
        before, after = (
            torch.load(tmp_path / file, weights_only=True) for file in ("theirs.pth", "back.pth")
        )
    assert before["model"].keys() == after["model"].keys()
    assert all(torch.equal(before["model"][k], after["model"][k]) for k in before["model"])
    if name == "official":
        stored = vars(before["args"])
        own = {k: v for k, v in vars(after["args"]).items() if k in stored and k != "backbone"}
        assert own == {name: stored[name] for name in own}
        assert len(own) > 12


def test_detrex_weights_do_not_become_huggingfaces(tmp_path: Path) -> None:
    path = write_other(live_model("multi_scale"), tmp_path / "theirs.pth", "detrex")
    source = convert(read_source(path), assume={"num_heads": 4})
    with pytest.raises(UserError, match="inverse_sigmoid_eps 0.001, and transformers always"):
        save(source, tmp_path / "target", "huggingface", {})
    assert sorted(item.name for item in tmp_path.iterdir()) == ["theirs.pth"]


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path: Path, monkeypatch) -> None:
    source = converted("multi_scale", tmp_path)
    (tmp_path / "there.pth").write_text("mine")
    with pytest.raises(UserError, match="exists: remove it"):
        save(source, tmp_path / "there.pth", "official", {})
    assert (tmp_path / "there.pth").read_text() == "mine"
    with pytest.raises(UserError, match="--to is 'onnx', but must be one of"):
        save(source, tmp_path / "new", "onnx", {})

    def full(*args, **more):
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        save(source, tmp_path / "new" / "file.pth", "official", {})
    assert list((tmp_path / "new").iterdir()) == []
