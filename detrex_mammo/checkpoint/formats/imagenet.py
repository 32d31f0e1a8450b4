# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Backbones alone, as pretrained on ImageNet: detectron2's, torchvision's, timm's, transformers'.

Caffe2's files (detectron2's ``MSRA/R-50.pkl``) are refused: their stride is in another convolution
and their images are BGR, so they would load and be wrong.
"""

import re
from collections.abc import Mapping

import torch

from detrex_mammo.checkpoint.formats.backbones import (
    COUNTERS,
    DETECTRON2,
    HUGGINGFACE,
    TORCHVISION,
    backbone_rules,
)
from detrex_mammo.checkpoint.key_table import Dropped, Entry

NAME = "backbone"
_SPELLINGS = {
    r"(backbone\.)?stem\.conv1\.weight": ("detectron2", DETECTRON2),
    r"conv1\.weight": ("torchvision", TORCHVISION),
    r"(resnet\.)?embedder\.embedder\.convolution\.weight": ("transformers", HUGGINGFACE),
}
_CAFFE2 = re.compile(r"conv1_w|res_conv1_bn_[sb]|res2_0_branch2a_w")


def spelling(state: Mapping[str, torch.Tensor]) -> tuple[str, str] | None:
    """Whose names a backbone has, and the prefix in front of them; None if it is none."""
    for pattern, (owner, _) in _SPELLINGS.items():
        for name in state:
            found = re.fullmatch(pattern, name)
            if found:
                return owner, (found[1] if found.re.groups else None) or ""
    return None


def is_caffe2(state: Mapping[str, object]) -> bool:
    """Whether names are those of Caffe2, of detectron2's MSRA models."""
    return any(_CAFFE2.fullmatch(name) for name in state)


def table(owner: str, prefix: str) -> list[Entry]:
    """Names on disk and ours."""
    names = {o: names for o, names in _SPELLINGS.values()}[owner]
    return [
        *backbone_rules(prefix, names),
        Dropped(r".*\bnum_batches_tracked", COUNTERS),
        Dropped(r"(stem\.)?fc\.(weight|bias)|classifier\.1\.(weight|bias)", "the classifier"),
    ]
