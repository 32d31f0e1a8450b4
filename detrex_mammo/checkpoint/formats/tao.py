# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""NVIDIA TAO, nvidia_tao_pytorch/cv/deformable_detr: Lightning's files, ResNet-50 only.

The published names inside two wrappers. An output is a category id, as in the published code. TAO
does not mask padding in its attention, so its own predictions on padded batches differ from ours.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from detrex_mammo.checkpoint.formats import official
from detrex_mammo.checkpoint.key_table import Dropped, Entry

NAME = "tao"
PREFIX = "model.model."
MARKER = r"model\.model\.(transformer\.level_embed|backbone\.0\.body\..+)"


def table(num_features: int, num_extra: int) -> list[Entry]:
    """Names on disk and ours."""
    return [_prefixed(entry) for entry in official.table(num_features, num_extra)]


def _prefixed(entry: Entry) -> Entry:
    if isinstance(entry, Dropped):
        return replace(entry, theirs=PREFIX.replace(".", r"\.") + entry.theirs)
    return replace(entry, theirs=PREFIX + entry.theirs)


def settings(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """TAO's files hold weights and the trainer's state, not the experiment's settings."""
    return {"two_stage": False}, {}
