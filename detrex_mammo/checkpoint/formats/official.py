# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The published code, github.com/fundamentalvision/Deformable-DETR at 11169a6.

Files of its ``main.py``: ``{"model", "optimizer", "lr_scheduler", "epoch", "args": Namespace}``.
"""

from collections.abc import Mapping
from typing import Any

from detrex_mammo.checkpoint.formats.backbones import COUNTERS, TORCHVISION, backbone_rules
from detrex_mammo.checkpoint.formats.parts import copied_heads, heads, same
from detrex_mammo.checkpoint.key_table import Dropped, Entry

NAME = "official"
MARKER = r"backbone\.0\.body\.conv1\.weight"
_ENCODER, _DECODER = "transformer.encoder.layers.{i}.", "transformer.decoder.layers.{i}."


def transformer() -> list[Entry]:
    """Names of the transformer: the published ones, which are ours."""
    return [
        *same("transformer.level_embed"),
        *same(*(_ENCODER + leaf for leaf in ("self_attn.{m}.{p}", "linear{k}.{p}", "norm{k}.{p}"))),
        *same(
            *(
                _DECODER + leaf
                for leaf in (
                    "self_attn.in_proj_{p}",
                    "self_attn.out_proj.{p}",
                    "cross_attn.{m}.{p}",
                    "linear{k}.{p}",
                    "norm{k}.{p}",
                )
            )
        ),
        *same("transformer.reference_points.{p}", "query_embed.weight", when="single_stage"),
        *same(
            *(
                f"transformer.{name}.{{p}}"
                for name in ("enc_output", "enc_output_norm", "pos_trans", "pos_trans_norm")
            ),
            when="two_stage",
        ),
    ]


def table(num_features: int, num_extra: int) -> list[Entry]:
    """Names on disk and ours."""
    return [
        *backbone_rules("backbone.0.body.", TORCHVISION),
        Dropped(r"backbone\..+\.num_batches_tracked", COUNTERS),
        *same("input_proj.{i}.0.{p}", "input_proj.{i}.1.{p}"),
        *transformer(),
        *heads(),
        *copied_heads("transformer.decoder."),
    ]


# Their argument -> our setting.
_ARGUMENTS = {
    "dilation": "dc5",
    "with_box_refine": "with_box_refine",
    "two_stage": "two_stage",
    "num_feature_levels": "num_feature_levels",
    "enc_layers": "num_encoder_layers",
    "dec_layers": "num_decoder_layers",
    "dim_feedforward": "feedforward_dim",
    "hidden_dim": "embed_dim",
    "dropout": "dropout",
    "nheads": "num_heads",
    "num_queries": "num_queries",
    "enc_n_points": "num_encoder_points",
    "dec_n_points": "num_decoder_points",
}
_FIXED = {"position_embedding": "sine", "masks": False}


def settings(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file's ``args`` tell.

    Returns:
        tuple[dict, dict]: settings of the model by our names; and what we cannot do otherwise, as
        ``name: (found, allowed)``.
    """
    arguments = content.get("args")
    arguments = vars(arguments) if hasattr(arguments, "__dict__") else arguments
    if not isinstance(arguments, Mapping):
        return {}, {}
    known = {ours: arguments[name] for name, ours in _ARGUMENTS.items() if name in arguments}
    refused = {
        f"args.{name}": (arguments[name], allowed)
        for name, allowed in _FIXED.items()
        if name in arguments and arguments[name] != allowed
    }
    return known, refused


def arguments(architecture: Any) -> dict[str, Any]:
    """Their arguments for an architecture."""
    written = {name: getattr(architecture, ours) for name, ours in _ARGUMENTS.items()}
    return {**_FIXED, **written, "backbone": f"resnet{architecture.depth}"}
