# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Our own files: the model's names, its config, its classes."""

from collections.abc import Mapping
from typing import Any

from detrex_mammo.checkpoint.architecture import settings_of
from detrex_mammo.checkpoint.formats.backbones import COUNTERS, DETECTRON2, backbone_rules
from detrex_mammo.checkpoint.formats.official import transformer
from detrex_mammo.checkpoint.formats.parts import heads, same
from detrex_mammo.checkpoint.key_table import Dropped, Entry
from detrex_mammo.config import load_config_text

NAME = "detrex_mammo"
MARKER = r"backbone\.stem\.conv1\.weight"


def table(num_features: int, num_extra: int) -> list[Entry]:
    """Nothing changes its name."""
    return [
        *backbone_rules("backbone.", DETECTRON2),
        Dropped(r"backbone\..+\.num_batches_tracked", COUNTERS),
        *same("input_proj.{i}.0.{p}", "input_proj.{i}.1.{p}"),
        *transformer(),
        *heads(),
    ]


def settings(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the stored config tells; see :func:`official.settings`."""
    if not isinstance(content.get("config"), str):
        return {}, {}
    cfg = load_config_text(content["config"], "the checkpoint's config")
    return settings_of(cfg.get("model")), {}
