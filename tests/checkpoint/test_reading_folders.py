# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Hugging Face folders: which files are read, and what an index or a config may say."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from detrex_mammo.checkpoint.reading import (
    file_sha256,
    read_source,
    require_source,
    source_sha256,
)
from tests.checkpoint.attack import NAMES, Attack, sentence, state

INDEX = "model.safetensors.index.json"


def write_folder(folder: Path, suffix: str, pieces: int = 1, scale: float = 1.0) -> Path:
    """A folder as save_pretrained writes it: one file, or pieces with an index."""
    save = save_file if suffix == "safetensors" else torch.save
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "deformable_detr"}')
    stored = {name: tensor * scale for name, tensor in state().items()}
    if pieces == 1:
        save(stored, folder / f"{stem}.{suffix}")
        return folder
    weight_map = {}
    for index, name in enumerate(NAMES):
        file = f"{stem}-{index % pieces + 1:05d}-of-{pieces:05d}.{suffix}"
        weight_map[name] = file
    for file in set(weight_map.values()):
        save({n: stored[n] for n in NAMES if weight_map[n] == file}, folder / file)
    text = json.dumps({"metadata": {"total_size": 36}, "weight_map": weight_map})
    (folder / f"{stem}.{suffix}.index.json").write_text(text)
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_folder_is_read(suffix: str, pieces: int, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", suffix, pieces)
    (folder / "preprocessor_config.json").write_text('{"do_resize": true}')
    require_source(folder)
    source = read_source(folder)
    assert source.folder == folder and source.path == str(folder)
    assert {name: tensor.tolist() for name, tensor in source.state.items()} == {
        name: tensor.tolist() for name, tensor in state().items()
    }
    assert source.content == {
        "config_json": {"model_type": "deformable_detr"},
        "processor_json": {"do_resize": True},
    }
    digests = source_sha256(folder)
    assert len(digests) == pieces
    assert all(digest == file_sha256(folder / name) for name, digest in digests.items())


def test_index_of_a_single_piece_is_a_folder_too(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", "safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(NAMES, "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert read_source(folder).content == {"config_json": {"model_type": "deformable_detr"}}


def test_safetensors_is_preferred(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", "bin", scale=-1)
    write_folder(folder, "safetensors")
    assert torch.equal(read_source(folder).state["b.bias"], state()["b.bias"])
    (folder / "model.safetensors").unlink()
    assert torch.equal(read_source(folder).state["b.bias"], -state()["b.bias"])


def test_file_inside_a_folder_brings_its_config(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", "bin")
    assert read_source(folder / "pytorch_model.bin").folder == folder
    torch.save(state(), folder / "other.pth")
    assert read_source(folder / "other.pth").folder is None


@pytest.mark.parametrize("piece", ["../x.safetensors", "/etc/passwd", "sub/x.bin", "..", "", "."])
def test_index_that_points_outside_its_folder(piece: str, tmp_path: Path) -> None:
    save_file(state(), tmp_path / "x.safetensors")
    folder = write_folder(tmp_path / "f", "safetensors", pieces=2)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a.weight": piece}}))
    assert f"names {piece!r}, which is not a file of its folder" in sentence(read_source, folder)


def test_missing_piece_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", "bin", pieces=2)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    for function in (read_source, require_source):
        message = sentence(function, folder)
        assert "pytorch_model-00002-of-00002.bin' does not exist" in message


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_index_without_pieces(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text)
    assert "has no weight_map" in sentence(read_source, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", INDEX])
@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe", b"<html>", b"[" * 10**5, b"[1]"])
def test_damaged_json_is_one_sentence(name: str, content: bytes, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", "safetensors", pieces=2)
    (folder / name).write_bytes(content)
    message = sentence(read_source, folder)
    assert name in message
    assert ("holds a list, not settings" if content == b"[1]" else "as JSON") in message


def test_folder_without_weights_tells_what_it_holds(tmp_path: Path) -> None:
    assert "it holds nothing" in sentence(require_source, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    for function in (require_source, read_source):
        message = sentence(function, tmp_path)
        assert "neither model.safetensors nor pytorch_model.bin; it holds config.json" in message


@pytest.mark.parametrize("pieces", [1, 2])
def test_nothing_in_a_folder_is_executed(pieces: int, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    folder = write_folder(tmp_path / "f", "bin", pieces)
    for file in sorted(folder.glob("*.bin"))[-1:]:
        torch.save({**torch.load(file), "hook": Attack(victim)}, file)
    assert "not opened" in sentence(read_source, folder)
    assert not victim.exists()
