# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Pretrained weights of a backbone are fetched only if nothing takes their place."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from detrex_mammo.config import load_config, without_pretrained
from detrex_mammo.errors import UserError
from tests.engine.faults import run
from tests.engine.tiny import TinyDetector, write_config


def fetched(pretrained: bool, width: int) -> nn.Module:
    """Stands for timm without network."""
    if pretrained:
        raise UserError("the network is not there")
    return nn.Conv2d(3, width, 3, padding=1)


class Fetching(TinyDetector):
    """The tiny detector with a backbone that is built by itself."""

    def __init__(self, backbone: nn.Module, width: int = 8):
        super().__init__(width)
        self.backbone = backbone


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = Path(write_config(tmp_path))
    node = 'Fetching)(backbone=L(fetched)(pretrained=True, width="${..width}"), width=8)'
    text = path.read_text().replace("TinyDetector)(width=8, nan_at=-1)", node)
    path.write_text("from tests.engine.test_pretrained import Fetching, fetched\n" + text)
    return str(path)


def test_weights_are_fetched_only_where_no_checkpoint_brings_them(
    config: str, tmp_path: Path
) -> None:
    for arguments in ((), ("--eval-only",), ("--resume",), ("--dry-run",)):
        with pytest.raises(UserError, match="network is not there"):
            run(config, *arguments)
    run(config, "model.backbone.pretrained=False", "train.max_iter=4")

    start = f"train.init_checkpoint={tmp_path / 'run/model_0000002.pth'}"
    run(config, "--eval-only", start)
    run(config, start, "optimizer.lr=0", "train.max_iter=1", f"train.output_dir={tmp_path / 'a'}")
    run(config, "--resume", "train.max_iter=5")
    for folder in ("run", "run/eval", "a"):
        text = (tmp_path / folder / "config.yaml").read_text()
        assert yaml.safe_load(text)["model"]["backbone"]["pretrained"] is True
    start, end = (
        torch.load(tmp_path / file, weights_only=True)["model"]
        for file in ("run/model_0000002.pth", "a/model_final.pth")
    )
    assert all(torch.equal(end[name], value) for name, value in start.items())


def test_the_node_that_is_given_stays_as_it_is(config: str) -> None:
    cfg = load_config(config)
    without = without_pretrained(cfg.model)
    assert without.backbone.pretrained is False and without.backbone.width == 8
    assert cfg.model.backbone.pretrained is True
    plain = {"backbone": {"pretrained": True}}
    assert without_pretrained(plain) == {"backbone": {"pretrained": False}} != plain
    assert without_pretrained({"backbone": {"depth": 50}}) == {"backbone": {"depth": 50}}
    assert without_pretrained({"a": 1}) == {"a": 1}
