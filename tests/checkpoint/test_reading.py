# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Files and folders are read without running anything in them; damage is one sentence."""

import argparse
import os
import pickle
import struct
import subprocess
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from detrex_mammo.checkpoint.reading import (
    WEIGHTS_KEYS,
    file_sha256,
    local_path,
    read_source,
    source_sha256,
    weights_of,
)
from detrex_mammo.errors import UserError
from tests.checkpoint.attack import Attack, Harmless, sentence, state


def assert_equal(found, expected) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


# Wrappings


@pytest.mark.parametrize("key", [*WEIGHTS_KEYS, None])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_found_in_every_usual_wrapping(key, prefix, zipped, tmp_path: Path) -> None:
    stored = OrderedDict((prefix + name, tensor) for name, tensor in state().items())
    content = stored if key is None else {key: stored, "epoch": 3, "optimizer": {"lr": 1}}
    torch.save(content, tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    source = read_source(tmp_path / "m.pth")
    assert_equal(source.state, state())
    assert source.content == ({} if key is None else {"epoch": 3})
    assert source.folder is None


def test_a_prefix_that_only_some_names_have_stays() -> None:
    stored = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert list(weights_of(stored, "")) == ["module.a", "b"]


def test_a_key_that_holds_something_else_does_not_hide_the_weights() -> None:
    assert_equal(weights_of({"model": {"name": "detr"}, "state_dict": state()}, ""), state())


def test_parameters_are_taken_without_their_gradients(tmp_path: Path) -> None:
    torch.save({"model": dict(torch.nn.Linear(2, 2).named_parameters())}, tmp_path / "m.pth")
    found = read_source(tmp_path / "m.pth").state
    assert list(found) == ["weight", "bias"]
    assert not any(tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize(
    "content",
    [{"results": [1, 2]}, {}, {"model": {}}, {1: torch.zeros(1)}, {"model": {"a": 1.0}}],
)
def test_file_without_weights_tells_its_keys(content, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "m.pth")
    keys = ", ".join(map(str, content)) or "none"
    assert f"holds no weights; its keys are: {keys}" in sentence(read_source, tmp_path / "m.pth")


def test_file_of_another_kind_is_told(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "m.pth")
    assert "holds a Tensor, not weights" in sentence(read_source, tmp_path / "m.pth")


def test_arrays_of_a_pickle_become_tensors(tmp_path: Path) -> None:
    arrays = {
        "half": np.ones((2, 3), dtype=np.float16),
        "swapped": np.array([1, 2], dtype=">f4"),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "count": np.array(7),
    }
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "R.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        source = read_source(tmp_path / "R.pkl")
        assert source.content == {"__author__": "torchvision", "matching_heuristics": True}
        assert source.state["half"].dtype == torch.float16
        assert source.state["swapped"].tolist() == [1, 2]
        assert source.state["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
        assert source.state["count"].item() == 7


# Objects


def save_as(content, path: Path, kind: str) -> Path:
    """Store content as the kind of file that its name says."""
    path = path / {"zip": "m.pth", "legacy": "m.pth", "pickle": "m.pkl", "bin": "m.bin"}[kind]
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    return path


@pytest.mark.parametrize("kind", ["zip", "legacy", "bin"])
def test_namespace_is_read(kind, tmp_path: Path) -> None:
    args = argparse.Namespace(lr=1e-4, two_stage=True, lr_backbone_names=["backbone.0"])
    path = save_as({"model": state(), "args": args, "epoch": 49}, tmp_path, kind)
    source = read_source(path)
    assert_equal(source.state, state())
    assert source.content == {"args": args, "epoch": 49}


def hide(place: str, item: object) -> dict:
    """A checkpoint with an object somewhere in it."""
    return {
        "beside": lambda: {"model": state(), "hook": item},
        "among": lambda: {"model": {**state(), "c": item}},
        "namespace": lambda: {"model": state(), "args": argparse.Namespace(lr=item)},
        "key": lambda: {"model": state(), item: 1},
        "nested": lambda: {"model": state(), "args": argparse.Namespace(a=[{"b": (item,)}])},
    }[place]()


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "bin"])
@pytest.mark.parametrize("place", ["beside", "among", "namespace", "key", "nested"])
@pytest.mark.parametrize("function", [open, os.system, subprocess.check_call])
def test_nothing_in_a_file_is_executed(kind, place, function, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    path = save_as(hide(place, Attack(victim, function)), tmp_path, kind)
    message = sentence(read_source, path)
    assert "not opened" in message and str(path) in message
    assert not victim.exists()


def test_the_attack_is_one(tmp_path: Path) -> None:
    """Read as pickles are usually read, the same files leave a file behind."""
    for number, function in enumerate([open, os.system, subprocess.check_call]):
        victim = tmp_path / f"victim_{number}"
        path = save_as(hide("namespace", Attack(victim, function)), tmp_path, "zip")
        torch.load(path, weights_only=False)
        assert victim.exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "bin"])
def test_an_object_that_does_nothing_is_refused_by_its_name(kind, tmp_path: Path) -> None:
    message = sentence(read_source, save_as(hide("namespace", Harmless()), tmp_path, kind))
    assert "not opened" in message
    assert kind == "pickle" or "tests.checkpoint.attack.Harmless" in message


def test_a_pickle_of_arrays_may_hold_nothing_else(tmp_path: Path) -> None:
    content = {"model": {"x": np.zeros(1)}, "args": argparse.Namespace(lr=1)}
    message = sentence(read_source, save_as(content, tmp_path, "pickle"))
    assert "it holds argparse.Namespace, which is not a numpy array" in message


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pth")
    assert "torch.nn.modules.linear.Linear" in sentence(read_source, tmp_path / "m.pth")


@pytest.mark.parametrize("call", [b"cargparse\nNamespace\n(K\x01tR.", b"(cposix\nsystem\nK\x01o."])
def test_a_pickle_made_by_hand_is_one_sentence(call: bytes, tmp_path: Path) -> None:
    """Calls with wrong arguments, which raise whatever they like."""
    for name in ("m.pkl", "m.pth"):
        (tmp_path / name).write_bytes(b"\x80\x02" + call)
        message = sentence(read_source, tmp_path / name)
        assert "cut short" in message or "not opened" in message


# Damage


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.5, 0.9, 0.98, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "bin"])
def test_truncated_file_is_one_sentence(share: float, kind: str, tmp_path: Path) -> None:
    values = {"x": np.arange(99.0)} if kind == "pickle" else {"x": torch.arange(99.0)}
    path = save_as({"model": values}, tmp_path, kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    message = sentence(read_source, path)
    # Without a zip's index, a cut through the name of a class looks like another class.
    allowed = ("cut short", "is empty", *["torch.Floa)"] * (kind == "legacy"))
    assert any(words in message for words in allowed)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.99])
def test_truncated_safetensors_is_one_sentence(share: float, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(state(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    message = sentence(read_source, path)
    assert "cut short" in message or "is empty" in message


@pytest.mark.parametrize("header", [b"{", b"[]", b'{"a": 1}', b'{"a":{"dtype":"F9"}}', b"\xff"])
@pytest.mark.parametrize("length", [None, 0, 2**63, 10**6])
def test_safetensors_with_a_damaged_header(header: bytes, length, tmp_path: Path) -> None:
    said = len(header) if length is None else length
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", said) + header + bytes(36))
    assert "cut short" in sentence(read_source, path)


NO_CHECKPOINTS = {
    "page": b"<!DOCTYPE html><html>404 not found</html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "zip": b"PK\x03\x04 no zip",
    "pickle": b"\x80\x02",
    "zeros": bytes(500),
    "text": "Gewichte fürs Modell".encode("latin1"),
}


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".bin", ".safetensors", ""])
@pytest.mark.parametrize("content", NO_CHECKPOINTS)
def test_file_that_is_no_checkpoint(content: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(NO_CHECKPOINTS[content])
    assert "no checkpoint" in sentence(read_source, path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_flipped_bytes_never_end_in_a_traceback(kind: str, tmp_path: Path) -> None:
    values = {"x": np.arange(9.0)} if kind == "pickle" else {"x": torch.arange(9.0)}
    path = save_as({"model": values, "args": {"lr": 1}}, tmp_path, kind)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.choice(min(len(content), 400), 60, replace=False):
        damaged = bytearray(content)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(damaged))
        try:
            read_source(path)
        except UserError:
            refused += 1
    assert refused > 10


# Names and places


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model_final.pth")
    for suffix in (".pth", ".pkl"):
        message = sentence(read_source, tmp_path / f"model_finl{suffix}")
        assert "nearest there is 'model_final.pth'" in message
    assert "holds model_final.pth" in sentence(read_source, tmp_path / "xyz")
    assert "no folder" in sentence(read_source, tmp_path / "no" / "m.pth")
    (tmp_path / "deformable-detr").mkdir()
    (tmp_path / "deformable-detr/config.json").write_text("{}")
    assert "nearest there is 'deformable-detr'" in sentence(
        read_source, tmp_path / "deformble-detr"
    )


def test_home_is_expanded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(state(), tmp_path / "m.pth")
    assert_equal(read_source("~/m.pth").state, state())
    assert source_sha256("~/m.pth") == file_sha256(tmp_path / "m.pth")


def test_url_that_cannot_be_fetched_is_one_sentence() -> None:
    for function in (read_source, local_path):
        message = sentence(function, "http://127.0.0.1:9/model.pth")
        assert "cannot be fetched" in message and "http://127.0.0.1:9/model.pth" in message


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert file_sha256(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert source_sha256(tmp_path / "none") is None
