# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Hugging Face transformers, ``DeformableDetrForObjectDetection``, versions 4 and 5.

A folder with ``config.json`` and ``model.safetensors`` (which leaves out the second copies of
tensors) or ``pytorch_model.bin``. Version 5 writes the names of version 4; its own names are those
of the model in memory.
"""

from collections.abc import Mapping
from typing import Any

from detrex_mammo.checkpoint.formats.backbones import (
    COUNTERS,
    HUGGINGFACE,
    RESNET_FIXED,
    TORCHVISION,
    backbone_rules,
    blocks_of,
)
from detrex_mammo.checkpoint.formats.parts import SECOND_COPY, copied_heads, heads
from detrex_mammo.checkpoint.key_table import Dropped, Entry, Rule

NAME = "huggingface"
MARKER = r"model\.level_embed|model\.encoder\.layers\.0\.self_attn\.sampling_offsets\.weight"
_MEMORY = "the name in the memory of transformers 5"
_OURS = {"encoder": "transformer.encoder.layers.{i}.", "decoder": "transformer.decoder.layers.{i}."}
_NORMS = {
    "encoder": {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2"},
    "decoder": {
        "self_attn_layer_norm": "norm2",
        "encoder_attn_layer_norm": "norm1",
        "final_layer_norm": "norm3",
    },
}


def _layers(stack: str) -> list[Rule]:
    theirs, ours = f"model.{stack}.layers.{{i}}.", _OURS[stack]
    attention = ("encoder_attn", "cross_attn") if stack == "decoder" else ("self_attn", "self_attn")
    rules = [Rule(f"{theirs}{attention[0]}.{{m}}.{{p}}", f"{ours}{attention[1]}.{{m}}.{{p}}")]
    rules += [
        Rule(f"{theirs}{name}.{{p}}", f"{ours}{norm}.{{p}}") for name, norm in _NORMS[stack].items()
    ]
    for k in (1, 2):
        target = f"{ours}linear{k}.{{p}}"
        rules.append(Rule(f"{theirs}fc{k}.{{p}}", target, optional="the name on disk"))
        rules.append(Rule(f"{theirs}mlp.fc{k}.{{p}}", target, optional=_MEMORY, written=False))
    return rules


def _self_attention() -> list[Rule]:
    theirs, ours = "model.decoder.layers.{i}.self_attn.", _OURS["decoder"] + "self_attn."
    output = f"{ours}out_proj.{{p}}"
    return [
        *(
            Rule(f"{theirs}{letter}_proj.{{p}}", f"{ours}in_proj_{{p}}", part=(index, 3))
            for index, letter in enumerate("qkv")
        ),
        Rule(f"{theirs}out_proj.{{p}}", output, optional="the name on disk"),
        Rule(f"{theirs}o_proj.{{p}}", output, optional=_MEMORY, written=False),
    ]


def _backbone(timm: bool) -> list[Rule]:
    other = "the backbone is spelled another way"
    rules = []
    for names, is_timm in ((HUGGINGFACE, False), (TORCHVISION, True)):
        for prefix in ("model.backbone.conv_encoder.model.", "model.backbone.model."):
            written = is_timm == timm and "conv_encoder" in prefix
            rules += backbone_rules(prefix, names, optional=other, written=written)
    return rules


def table(num_features: int, num_extra: int, timm: bool = False) -> list[Entry]:
    """Names on disk and ours.

    Args:
        num_features: levels that are feature maps.
        num_extra: levels behind them.
        timm: write the names of timm's ResNet rather than of transformers' own; both are read.
    """
    parts = {"single_stage": ("reference_points",)}
    parts["two_stage"] = ("enc_output", "enc_output_norm", "pos_trans", "pos_trans_norm")
    classes, boxes = heads()
    return [
        *_backbone(timm),
        Dropped(r"(model\.)?backbone\..+\.num_batches_tracked", COUNTERS),
        Rule("model.input_proj.{i}.0.{p}", "input_proj.{i}.0.{p}"),
        Rule("model.input_proj.{i}.1.{p}", "input_proj.{i}.1.{p}"),
        Rule("model.level_embed", "transformer.level_embed"),
        Rule("model.query_position_embeddings.weight", "query_embed.weight", when="single_stage"),
        *(
            Rule(f"model.{name}.{{p}}", f"transformer.{name}.{{p}}", when=when)
            for when, names in parts.items()
            for name in names
        ),
        *_layers("encoder"),
        *_layers("decoder"),
        *_self_attention(),
        Rule(classes.theirs, classes.ours, optional=SECOND_COPY),
        Rule(boxes.theirs, boxes.ours, optional=SECOND_COPY),
        *copied_heads("model.decoder."),
    ]


# Their setting -> ours.
_SETTINGS = {
    "with_box_refine": "with_box_refine",
    "two_stage": "two_stage",
    "num_feature_levels": "num_feature_levels",
    "encoder_layers": "num_encoder_layers",
    "decoder_layers": "num_decoder_layers",
    "d_model": "embed_dim",
    "dropout": "dropout",
    "encoder_attention_heads": "num_heads",
    "encoder_ffn_dim": "feedforward_dim",
    "encoder_n_points": "num_encoder_points",
    "decoder_n_points": "num_decoder_points",
}


def settings(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``config.json`` and ``preprocessor_config.json`` tell; see :func:`official.settings`."""
    config = content.get("config_json") or {}
    known = {ours: config[name] for name, ours in _SETTINGS.items() if name in config}
    queries = "two_stage_num_proposals" if config.get("two_stage") else "num_queries"
    if queries in config:
        known["num_queries"] = config[queries]
    if config:
        options = {**_mapping(config, "backbone_config"), **_mapping(config, "backbone_kwargs")}
        known["dc5"] = bool(config.get("dilation")) or options.get("output_stride") == 16
    if isinstance(config.get("id2label"), Mapping):
        known["id2label"] = {int(index): str(n) for index, n in config["id2label"].items()}
    processor = content.get("processor_json") or {}
    known.update(_normalisation(processor))
    if isinstance(processor.get("size"), Mapping) and processor.get("do_resize", True):
        known["test_size"] = dict(processor["size"])
    return known, _refused(config)


def _normalisation(processor: Mapping[str, Any]) -> dict[str, list[float]]:
    """Mean and deviation of pixels in [0, 255]; nothing where there is no processor."""
    if not processor:
        return {}
    rescales = processor.get("do_rescale", True)
    scale = 1 / float(processor.get("rescale_factor") or 1 / 255) if rescales else 1.0
    if not processor.get("do_normalize", True):
        return {"pixel_mean": [0.0] * 3, "pixel_std": [scale] * 3}
    names = {"image_mean": "pixel_mean", "image_std": "pixel_std"}
    return {
        ours: [round(scale * float(value), 6) for value in processor[name]]
        for name, ours in names.items()
        if isinstance(processor.get(name), list)
    }


def _mapping(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Settings inside settings; none where there is null."""
    inner = config.get(name) or {}
    if not isinstance(inner, Mapping):
        raise ValueError(f"{name} is {inner!r}, no mapping")
    return inner


def _refused(config: Mapping[str, Any]) -> dict[str, Any]:
    fixed = {
        "model_type": "deformable_detr",
        "position_embedding_type": "sine",
        "activation_function": "relu",
        "decoder_attention_heads": config.get("encoder_attention_heads"),
        "decoder_ffn_dim": config.get("encoder_ffn_dim"),
    }
    backbone = _mapping(config, "backbone_config")
    return {
        f"config.json's {name}": (settings[name], allowed)
        for settings, wanted in ((config, fixed), (backbone, RESNET_FIXED))
        for name, allowed in wanted.items()
        if name in settings and allowed is not None and settings[name] != allowed
    }


def config(architecture: Any, classes: Mapping[str, list]) -> dict[str, Any]:
    """``config.json`` for an architecture.

    Args:
        architecture: an :class:`detrex_mammo.checkpoint.architecture.Architecture`.
        classes: ``names`` of the outputs; numbered ones are made up where there are none.
    """
    names = classes.get("names") or [f"LABEL_{i}" for i in range(architecture.num_classes)]
    own = {theirs: getattr(architecture, ours) for theirs, ours in _SETTINGS.items()}
    return {
        **own,
        "architectures": ["DeformableDetrForObjectDetection"],
        "model_type": "deformable_detr",
        "decoder_attention_heads": architecture.num_heads,
        "decoder_ffn_dim": architecture.feedforward_dim,
        "num_queries": architecture.num_queries,
        "two_stage_num_proposals": architecture.num_queries,
        "dilation": False,  # it stands in backbone_config
        "activation_function": "relu",
        "position_embedding_type": "sine",
        "auxiliary_loss": True,
        "class_cost": 2,  # the published weights, which are not transformers' defaults
        "bbox_cost": 5,
        "giou_cost": 2,
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "backbone_config": _backbone_config(architecture),
    }


def _backbone_config(architecture: Any) -> dict[str, Any]:
    stages = [f"stage{int(name[-1]) - 1}" for name in architecture.in_features]
    if architecture.dc5:  # only timm's can be dilated
        return {
            "model_type": "timm_backbone",
            "backbone": f"resnet{architecture.depth}",
            "out_indices": [int(stage[-1]) for stage in stages],
            "output_stride": 16,
            "features_only": True,
            "use_pretrained_backbone": False,
        }
    is_bottleneck, depths = blocks_of(architecture.depth)
    width = architecture.res2_out_channels
    return {
        "model_type": "resnet",
        "layer_type": "bottleneck" if is_bottleneck else "basic",
        "depths": list(depths),
        "embedding_size": architecture.stem_out_channels,
        "hidden_sizes": [width, width * 2, width * 4, width * 8],
        "out_features": stages,
    }


PUBLISHED_SIZE = {"shortest_edge": 800, "longest_edge": 1333}


def processor(architecture: Any, size: Mapping[str, int] | None) -> dict[str, Any]:
    """``preprocessor_config.json``.

    Args:
        architecture: tells the normalisation.
        size: of test images, as transformers has it; None for the published one.
    """
    return {
        "image_processor_type": "DeformableDetrImageProcessor",
        "format": "coco_detection",
        "do_resize": True,
        "size": dict(size or PUBLISHED_SIZE),
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in architecture.pixel_mean],
        "image_std": [value / 255 for value in architecture.pixel_std],
        "do_pad": True,
    }
