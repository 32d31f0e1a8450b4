# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""mmdetection 3.x, its models detectors/deformable_detr and dense_heads/deformable_detr_head.

``norms`` stand in the order of execution; its neck's convolutions have no bias.
"""

from collections.abc import Mapping
from typing import Any

from detrex_mammo.checkpoint.formats.backbones import COUNTERS, TORCHVISION, backbone_rules
from detrex_mammo.checkpoint.formats.detrex import layers, neck
from detrex_mammo.checkpoint.formats.parts import heads
from detrex_mammo.checkpoint.formats.python_config import find, read_python_config
from detrex_mammo.checkpoint.key_table import Dropped, Entry, Rule, Zeros

NAME = "mmdetection"
MARKER = r"bbox_head\.cls_branches\.0\.weight"


def table(num_features: int, num_extra: int) -> list[Entry]:
    """Names on disk and ours."""
    classes, boxes = (rule.ours for rule in heads())
    two_stage = {
        "memory_trans_fc": "enc_output",
        "memory_trans_norm": "enc_output_norm",
        "pos_trans_fc": "pos_trans",
        "pos_trans_norm": "pos_trans_norm",
    }
    return [
        *backbone_rules("backbone.", TORCHVISION),
        Dropped(r"backbone\..+\.num_batches_tracked", COUNTERS),
        Dropped(r"backbone\.fc\.(weight|bias)", "the classifier of ImageNet"),
        *neck(num_features, num_extra, norm="gn"),
        Zeros("input_proj.{i}.0.bias", "input_proj.{i}.0.weight", "a norm follows: no bias"),
        Rule("level_embed", "transformer.level_embed"),
        Rule("query_embedding.weight", "query_embed.weight", when="single_stage"),
        Rule("reference_points_fc.{p}", "transformer.reference_points.{p}", when="single_stage"),
        *(
            Rule(f"{theirs}.{{p}}", f"transformer.{ours}.{{p}}", when="two_stage")
            for theirs, ours in two_stage.items()
        ),
        *layers(
            "encoder.layers.{i}.", "decoder.layers.{i}.", "cross_attn", "self_attn", "self_attn"
        ),
        Rule("bbox_head.cls_branches.{l}.{p}", classes),
        # A list of linear layers with activations between them: 0, 2, 4.
        *(
            Rule(f"bbox_head.reg_branches.{{l}}.{2 * k}.{{p}}", boxes.replace("{k}", str(k)))
            for k in range(3)
        ),
    ]


# Their setting -> ours, below ``model``.
_SETTINGS = {
    "with_box_refine": "with_box_refine",
    "as_two_stage": "two_stage",
    "num_feature_levels": "num_feature_levels",
    "num_queries": "num_queries",
    "encoder.num_layers": "num_encoder_layers",
    "decoder.num_layers": "num_decoder_layers",
    "encoder.layer_cfg.self_attn_cfg.num_heads": "num_heads",
    "encoder.layer_cfg.self_attn_cfg.num_points": "num_encoder_points",
    "decoder.layer_cfg.cross_attn_cfg.num_points": "num_decoder_points",
    "data_preprocessor.mean": "pixel_mean",
    "data_preprocessor.std": "pixel_std",
}
_FIXED = {
    "type": "DeformableDETR",
    "backbone.style": "pytorch",
    "positional_encoding.offset": -0.5,
    "positional_encoding.normalize": True,
    "data_preprocessor.bgr_to_rgb": True,
}


def settings(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``meta`` tells: the config as text, and class names; see :func:`official.settings`."""
    meta = content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    data, text = meta.get("dataset_meta"), meta.get("cfg")
    model = read_python_config(text).get("model") if isinstance(text, str) else None
    known = {ours: find(model, name) for name, ours in _SETTINGS.items()}
    known = {name: value for name, value in known.items() if value is not None}
    names = data.get("classes", data.get("CLASSES")) if isinstance(data, Mapping) else None
    if names:
        known["class_names"] = [str(name) for name in names]
    refused = {
        f"model.{name}": (found, allowed)
        for name, allowed in _FIXED.items()
        if (found := find(model, name)) is not None and found != allowed
    }
    return known, refused
