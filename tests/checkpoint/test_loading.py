# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Checkpoints are read without running anything in them, and loaded only if they fit."""

import argparse
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detrex_mammo.checkpoint.loading import (
    backbone_weights,
    compare,
    load_weights,
    read_checkpoint,
    weights_of,
)
from detrex_mammo.errors import UserError


def model(width: int = 3) -> nn.ModuleDict:
    return nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, width)})


def sentence(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "iteration": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_found_in_every_usual_wrapping(wrap, prefix: str, tmp_path: Path) -> None:
    source, target = model(), model()
    state = OrderedDict((prefix + name, value) for name, value in source.state_dict().items())
    torch.save(wrap(state), tmp_path / "m.pth")
    loaded = weights_of(read_checkpoint(tmp_path / "m.pth"), "m.pth")
    assert load_weights(target, loaded, "m.pth") == []
    for one, other in zip(source.parameters(), target.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_half_precision_is_raised_to_the_models(tmp_path: Path) -> None:
    source, target = model(), model()
    torch.save({"model": source.half().state_dict()}, tmp_path / "m.pth")
    load_weights(target, weights_of(read_checkpoint(tmp_path / "m.pth"), ""), "")
    assert {parameter.dtype for parameter in target.parameters()} == {torch.float32}
    torch.testing.assert_close(target["head"].weight, source["head"].weight.float())


def test_mismatch_names_everything_and_changes_nothing() -> None:
    target, state = model(), model(width=5).state_dict()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state.update(extra=torch.zeros(1))
    del state["backbone.bias"]
    message = sentence(load_weights, target, state, "m.pth")
    assert "1 missing (backbone.bias)" in message
    assert "1 unexpected (extra)" in message
    assert "2 mis-shaped (head.weight [5, 2] instead of [3, 2], head.bias [5] instead" in message
    for name, value in target.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_long_mismatch_is_counted() -> None:
    target = nn.Sequential(*[nn.Linear(1, 1) for _ in range(5)])
    message = sentence(load_weights, target, {}, "m.pth")
    assert "10 missing (0.weight, 0.bias, 1.weight, ...)" in message


def test_wrong_number_of_classes_is_said() -> None:
    def detector(classes: int) -> nn.ModuleDict:
        return nn.ModuleDict({"class_embed": nn.ModuleList([nn.Linear(2, classes)])})

    message = sentence(load_weights, detector(1), detector(80).state_dict(), "m.pth")
    assert "the file has 80 class(es) and model.num_classes is 1" in message


def test_allowed_missing_names_are_returned() -> None:
    target = model()
    state = {k: v + 1 for k, v in target.state_dict().items() if k.startswith("backbone")}
    kept = load_weights(target, state, "", lambda name: name.startswith("head"))
    assert kept == ["head.weight", "head.bias"]
    torch.testing.assert_close(target["backbone"].bias, state["backbone.bias"])


def test_compare_of_equal_is_empty() -> None:
    assert not compare(model(), model().state_dict())


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model_final.pth")
    assert "nearest there is 'model_final.pth'" in sentence(
        read_checkpoint, tmp_path / "model_finl.pth"
    )
    assert "no folder" in sentence(read_checkpoint, tmp_path / "no" / "m.pth")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_file_is_one_sentence(share: float, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save({"model": model().state_dict()}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    message = sentence(read_checkpoint, path)
    assert "cut short" in message or "is empty" in message


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"PK\x03\x04 no zip", b"\x80\x02"])
def test_file_that_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(content)
    assert "no checkpoint" in sentence(read_checkpoint, tmp_path / "m.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_python_objects_are_refused_by_name(zipped: bool, tmp_path: Path) -> None:
    content = {"model": model().state_dict(), "args": argparse.Namespace(lr=1)}
    torch.save(content, tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    message = sentence(read_checkpoint, tmp_path / "m.pth")
    assert "argparse.Namespace" in message and "not opened" in message


class Attack:
    """Unpickles to a call."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_nothing_in_a_file_is_executed(suffix: str, tmp_path: Path) -> None:
    path, victim = tmp_path / f"m{suffix}", tmp_path / "victim"
    content = {"model": {"x": Attack(str(victim))}}
    if suffix == ".pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    sentence(read_checkpoint, path)
    assert not victim.exists()


def test_detectron2_imagenet_file_fills_the_backbone(tmp_path: Path) -> None:
    """As detectron2's own conversion of torchvision's ResNet writes it."""
    arrays = {
        "stem.conv1.weight": np.ones((2, 3), dtype=np.float32),
        "stem.conv1.norm.num_batches_tracked": np.array(0),
        "res2.0.conv1.weight": np.zeros((1,), dtype=np.float32),
        "stem.fc.weight": np.zeros((4, 4), dtype=np.float32),
        "stem.fc.bias": np.zeros((4,), dtype=np.float32),
    }
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R.pkl").write_bytes(pickle.dumps(content, protocol=2))
    state = weights_of(read_checkpoint(tmp_path / "R.pkl"), "R.pkl")
    backbone = backbone_weights(state)
    assert sorted(backbone) == ["backbone.res2.0.conv1.weight", "backbone.stem.conv1.weight"]
    torch.testing.assert_close(backbone["backbone.stem.conv1.weight"], torch.ones(2, 3))


def test_whole_model_is_not_taken_for_a_backbone() -> None:
    assert backbone_weights(model().state_dict()) is None
    assert backbone_weights({}) is None


def test_file_without_weights_tells_its_keys(tmp_path: Path) -> None:
    torch.save({"results": [1, 2]}, tmp_path / "m.pth")
    assert "its keys are: results" in sentence(
        weights_of, read_checkpoint(tmp_path / "m.pth"), "m.pth"
    )
