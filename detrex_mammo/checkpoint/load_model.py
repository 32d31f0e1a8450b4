# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A model from a checkpoint alone, whatever project wrote it."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from detrex_mammo.checkpoint.classes import stored_table
from detrex_mammo.checkpoint.conversion import OURS, convert, detect_format
from detrex_mammo.checkpoint.formats import imagenet
from detrex_mammo.checkpoint.loading import load_weights
from detrex_mammo.checkpoint.reading import Source, read_source
from detrex_mammo.checkpoint.verification import build
from detrex_mammo.config import instantiate, load_config_text
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
# What the config inside a stranger's file may build: whole names, as any other may run code.
_MAY_BUILD = {
    f"detrex_mammo.modeling.{name}"
    for name in (
        "backbone.TimmBackbone",
        "backbone.build_resnet",
        "criterion.SetCriterion",
        "detector.DeformableDETR",
        "matcher.HungarianMatcher",
        "transformer.DeformableTransformer",
    )
}


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
    node = cfg.get("model")
    if not isinstance(node, DictConfig):
        raise UserError(f"the config of checkpoint {source.path!r} has no model")
    for target in _targets(OmegaConf.to_container(node, resolve=False)):
        if target not in _MAY_BUILD:
            raise UserError(
                f"the config of checkpoint {source.path!r} builds {target!r}, which is not run "
                "because a stranger's file could run anything: build the model from your own config"
            )
    if "pretrained" in node.get("backbone", {}):
        node.backbone.pretrained = False  # its weights are in the file
    model = instantiate(node)
    load_weights(model, source.state, source.path)
    return model


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield str(value["_target_"])
        for item in value.values():
            yield from _targets(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _targets(item)
