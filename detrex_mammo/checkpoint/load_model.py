# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A model from a checkpoint alone, whatever project wrote it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from detrex_mammo.checkpoint.classes import stored_table
from detrex_mammo.checkpoint.conversion import OURS, convert, detect_format
from detrex_mammo.checkpoint.formats import imagenet
from detrex_mammo.checkpoint.loading import load_weights
from detrex_mammo.checkpoint.reading import Source, read_source
from detrex_mammo.checkpoint.trusted import build_model
from detrex_mammo.checkpoint.verification import build
from detrex_mammo.config import load_config_text
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)


def load_model(
    path: str | Path,
    device: str = "cpu",
    assume: Mapping[str, Any] | None = None,
    class_policy: str = "auto",
) -> nn.Module:
    """Build and load the model of a checkpoint.

    Args:
        path: a file, a Hugging Face folder, or a URL; official, Hugging Face, detrex, mmdetection,
            TAO, or our own.
        device: where to put it.
        assume: settings that the file does not tell, such as ``{"dc5": True}``.
        class_policy: "auto" makes COCO's 91 outputs 80; "keep" leaves the heads as they are.

    Returns:
        nn.Module: a detectron2 model in eval mode: ``model([{"image": (3, H, W) float32 RGB in
        [0, 255], "height": ..., "width": ...}])`` gives ``[{"instances": Instances}]``. Its
        ``checkpoint_classes`` are the ``names`` and ``ids`` of ``pred_classes``.

    Raises:
        UserError: the file is missing, damaged, unknown, or does not fit.
    """
    source = read_source(path)
    name = detect_format(source)
    if name == imagenet.NAME:
        raise UserError(
            f"checkpoint {str(path)!r} holds a backbone only: give the weights of a whole model"
        )
    if name == OURS and isinstance(source.content.get("config"), str) and not assume:
        model = _build_own(source)
        table = stored_table(source.content)
    else:
        converted = convert(source, name, assume, class_policy)
        for note in converted.notes:
            logger.info("%s: %s", path, note)
        model, table = build(converted), converted.classes
    model.checkpoint_classes = table
    return model.eval().to(device)


def _build_own(source: Source) -> nn.Module:
    cfg = load_config_text(source.content["config"], f"the config of {source.path}")
    model = build_model(cfg, f"checkpoint {source.path}")
    load_weights(model, source.state, source.path)
    return model
