# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Our own files: the model's names, its config, its classes."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from detrex_mammo.checkpoint.architecture import settings_of
from detrex_mammo.checkpoint.formats.backbones import COUNTERS, DETECTRON2, backbone_rules
from detrex_mammo.checkpoint.formats.official import transformer
from detrex_mammo.checkpoint.formats.parts import heads, same
from detrex_mammo.checkpoint.key_table import Dropped, Entry
from detrex_mammo.config import load_config_text

NAME = "detrex_mammo"
MARKER = r"backbone\.(stem\.conv1\.weight|body\..+)"  # detectron2's ResNet, or timm's network


def table(num_features: int, num_extra: int) -> list[Entry]:
    """Nothing changes its name."""
    return [
        *backbone_rules("backbone.", DETECTRON2),
        Dropped(r"backbone\..+\.num_batches_tracked", COUNTERS),
        Dropped(r"(denoising|hybrid)\..+", "queries that only training has"),
        *same("input_proj.{i}.0.{p}", "input_proj.{i}.1.{p}"),
        *transformer(),
        *heads(),
    ]


def normalises_by_image(content: Mapping[str, Any]) -> bool | None:
    """Whether images were normalised by their own statistics; None if the file does not tell."""
    if not isinstance(content.get("config"), str):
        return None
    model = load_config_text(content["config"], "the checkpoint's config").get("model")
    known = isinstance(model, DictConfig) and "pixel_mean" in model
    return model.pixel_mean is None if known else None


def settings(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the stored config tells; see :func:`official.settings`."""
    if not isinstance(content.get("config"), str):
        return {}, {}
    cfg = load_config_text(content["config"], "the checkpoint's config")
    known = settings_of(cfg.get("model"))
    test = OmegaConf.select(cfg, "dataloader.test")
    size = _test_size(OmegaConf.to_container(test, resolve=True)) if test else None
    return {**known, **({"test_size": size} if size else {})}, {}


def _test_size(node: Any) -> dict[str, int] | None:
    """Size of test images in transformers' words; None if the config resizes otherwise."""
    if isinstance(node, Mapping):
        step = str(node.get("_target_")).rpartition(".")[2]
        if step == "ResizeToFit":
            return {"max_height": int(node["height"]), "max_width": int(node["width"])}
        if step in _SHORT_EDGE and node.get("max_size"):
            edge = node[_SHORT_EDGE[step]]
            edge = edge if isinstance(edge, int) else max(edge)
            return {"shortest_edge": int(edge), "longest_edge": int(node["max_size"])}
    inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    return next((size for item in inner if (size := _test_size(item))), None)


# Augmentation -> its argument.
_SHORT_EDGE = {"ResizeShortEdge": "short_edges", "ResizeShortestEdge": "short_edge_length"}
