# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
from pathlib import Path

import pytest
import torch

from detrex_mammo.checkpoint.publish import DESCRIPTION, publish_checkpoint
from detrex_mammo.errors import UserError


def save(folder: Path, weight: torch.Tensor, **more: object) -> Path:
    path = folder / "model_final.pth"
    described = {key: {"about": key} for key in DESCRIPTION}
    model = {"a.weight": weight, "a.num_batches_tracked": torch.tensor(3)}
    torch.save({"model": model, **described, "trainer": {"iteration": 9}, **more}, path)
    return path


def test_keeps_weights_and_description_only(tmp_path: Path) -> None:
    weight = torch.randn(4, 5)
    target = tmp_path / "new" / "small.pth"
    size = publish_checkpoint(save(tmp_path, weight), target)
    assert size == target.stat().st_size
    content = torch.load(target, weights_only=True)
    assert content.keys() == {"model", *DESCRIPTION}
    torch.testing.assert_close(content["model"]["a.weight"], weight, rtol=0, atol=0)


def test_half_precision_keeps_eleven_bits_and_whole_numbers(tmp_path: Path) -> None:
    weight = torch.randn(64, 64)
    target = tmp_path / "half.pth"
    publish_checkpoint(save(tmp_path, weight), target, half=True)
    stored = torch.load(target, weights_only=True)["model"]
    assert stored["a.weight"].dtype == torch.float16
    assert stored["a.num_batches_tracked"].item() == 3
    torch.testing.assert_close(stored["a.weight"].float(), weight, rtol=2**-11, atol=1e-7)


def test_mistakes_are_one_sentence_and_write_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out.pth"
    with pytest.raises(UserError, match="a.weight .* half precision"):
        publish_checkpoint(save(tmp_path, torch.tensor([1e6])), target, half=True)
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "bare.pth")
    with pytest.raises(UserError, match="lacks config, classes"):
        publish_checkpoint(tmp_path / "bare.pth", target)
    assert not target.exists()
    target.write_text("mine")
    with pytest.raises(UserError, match="exists"):
        publish_checkpoint(save(tmp_path, torch.zeros(1)), target)
    assert target.read_text() == "mine"
