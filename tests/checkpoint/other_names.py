# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A live transformers model under the names of other projects, by replacements written by hand.

They know nothing of the package's key tables. The facts: an official decoder's ``norm2`` follows
its self-attention and ``norm1`` its cross-attention; detrex and mmdetection number norms in the
order of execution; official ``linear1`` is ``fc1``.
"""

import argparse
import re

import torch

from tests.modeling.hf_oracle import to_our_names

_BACKBONE = [
    (r"^backbone\.stem\.conv1\.norm\.", "BACKBONE.bn1."),
    (r"^backbone\.stem\.conv1\.", "BACKBONE.conv1."),
    (r"^backbone\.res(\d)\.(\d+)\.conv(\d)\.norm\.", r"BACKBONE.layer<\1>.\2.bn\3."),
    (r"^backbone\.res(\d)\.(\d+)\.conv(\d)\.", r"BACKBONE.layer<\1>.\2.conv\3."),
    (r"^backbone\.res(\d)\.(\d+)\.shortcut\.norm\.", r"BACKBONE.layer<\1>.\2.downsample.1."),
    (r"^backbone\.res(\d)\.(\d+)\.shortcut\.", r"BACKBONE.layer<\1>.\2.downsample.0."),
]
_NUMBERED = [
    (r"encoder\.layers\.(\d+)\.norm1\.", r"encoder.layers.\1.norms.0."),
    (r"encoder\.layers\.(\d+)\.norm2\.", r"encoder.layers.\1.norms.1."),
    (r"decoder\.layers\.(\d+)\.norm2\.", r"decoder.layers.\1.norms.0."),
    (r"decoder\.layers\.(\d+)\.norm1\.", r"decoder.layers.\1.norms.1."),
    (r"decoder\.layers\.(\d+)\.norm3\.", r"decoder.layers.\1.norms.2."),
]
_DETREX = [
    *_NUMBERED,
    (r"\.linear1\.", ".ffns.0.layers.0.0."),
    (r"\.linear2\.", ".ffns.0.layers.1."),
    (r"(encoder\.layers\.\d+)\.self_attn\.", r"\1.attentions.0."),
    (r"(decoder\.layers\.\d+)\.self_attn\.", r"\1.attentions.0.attn."),
    (r"(decoder\.layers\.\d+)\.cross_attn\.", r"\1.attentions.1."),
    (r"^input_proj\.([012])\.0\.", r"neck.convs.\1.conv."),
    (r"^input_proj\.([012])\.1\.", r"neck.convs.\1.norm."),
    (r"^input_proj\.3\.0\.", "neck.extra_convs.0.conv."),
    (r"^input_proj\.3\.1\.", "neck.extra_convs.0.norm."),
    (r"level_embed$", "level_embeds"),
    (r"^query_embed\.", "query_embedding."),
]
_MMDETECTION = [
    *_BACKBONE,
    (r"^BACKBONE", "backbone"),
    *_NUMBERED,
    (r"\.linear1\.", ".ffn.layers.0.0."),
    (r"\.linear2\.", ".ffn.layers.1."),
    (r"(decoder\.layers\.\d+)\.self_attn\.", r"\1.self_attn.attn."),
    (r"^input_proj\.([012])\.0\.", r"neck.convs.\1.conv."),
    (r"^input_proj\.([012])\.1\.", r"neck.convs.\1.gn."),
    (r"^input_proj\.3\.0\.", "neck.extra_convs.0.conv."),
    (r"^input_proj\.3\.1\.", "neck.extra_convs.0.gn."),
    (r"^query_embed\.", "query_embedding."),
    (r"^class_embed\.", "bbox_head.cls_branches."),
    (r"^bbox_embed\.(\d)\.layers\.0\.", r"bbox_head.reg_branches.\1.0."),
    (r"^bbox_embed\.(\d)\.layers\.1\.", r"bbox_head.reg_branches.\1.2."),
    (r"^bbox_embed\.(\d)\.layers\.2\.", r"bbox_head.reg_branches.\1.4."),
    (r"transformer\.enc_output_norm\.", "memory_trans_norm."),
    (r"transformer\.enc_output\.", "memory_trans_fc."),
    (r"transformer\.pos_trans\.", "pos_trans_fc."),
    (r"transformer\.pos_trans_norm\.", "pos_trans_norm."),
    (r"transformer\.reference_points\.", "reference_points_fc."),
    (r"^transformer\.", ""),
]
_OFFICIAL = [*_BACKBONE, (r"^BACKBONE", "backbone.0.body")]
_TAO = [*_OFFICIAL, (r"^", "model.model.")]
RENAMINGS = {"official": _OFFICIAL, "detrex": _DETREX, "mmdetection": _MMDETECTION, "tao": _TAO}


def published_names(theirs) -> dict[str, torch.Tensor]:
    """Our names with a head for each layer and both copies of what refinement uses."""
    state = to_our_names(theirs.state_dict(), False)
    copied = ["bbox_embed"] * theirs.config.with_box_refine + ["class_embed"] * (
        theirs.config.two_stage
    )
    copies = {
        f"transformer.decoder.{name}": tensor
        for name, tensor in state.items()
        if name.split(".")[0] in copied
    }
    return {**state, **copies}


def rename(theirs, format_name: str) -> dict[str, torch.Tensor]:
    """State dict of a transformers model in another project's names."""
    renamed = {}
    for name, tensor in published_names(theirs).items():
        if format_name == "mmdetection" and name.startswith("transformer.decoder."):
            if "embed." in name:
                continue  # it has no second copies
        for pattern, to in RENAMINGS[format_name]:
            name = re.sub(pattern, to, name)
        name = re.sub(r"<(\d)>", lambda found: str(int(found[1]) - 1), name)
        renamed[name] = tensor
    return renamed


def arguments(theirs) -> argparse.Namespace:
    """``args`` as the published ``main.py`` stores them beside the weights."""
    config = theirs.config
    return argparse.Namespace(
        lr=2e-4, backbone="resnet50", dilation=False, position_embedding="sine", masks=False,
        num_feature_levels=config.num_feature_levels, enc_layers=config.encoder_layers,
        dec_layers=config.decoder_layers, dim_feedforward=config.encoder_ffn_dim,
        hidden_dim=config.d_model, dropout=0.0, nheads=config.encoder_attention_heads,
        num_queries=config.num_queries, dec_n_points=config.decoder_n_points,
        enc_n_points=config.encoder_n_points, with_box_refine=config.with_box_refine,
        two_stage=config.two_stage, dataset_file="coco", device="cuda",
    )  # fmt: skip
