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
# our layer and norm: the number of the norm where norms are counted as they are run
_NORM_NUMBERS = {
    "encoder": {1: 0, 2: 1},
    "decoder": {2: 0, 1: 1, 3: 2},
}
_TWO_STAGE = {
    "enc_output_norm": "memory_trans_norm",
    "enc_output": "memory_trans_fc",
    "pos_trans": "pos_trans_fc",
    "pos_trans_norm": "pos_trans_norm",
    "reference_points": "reference_points_fc",
}


def _of_openmmlab(feed_forward: str, norm: str) -> list[tuple[str, str]]:
    """What detrex and mmdetection have in common: numbered norms, two-part neck, queries."""
    return [
        *(
            (rf"{part}\.layers\.(\d+)\.norm{ours}\.", rf"{part}.layers.\1.norms.{theirs}.")
            for part, numbers in _NORM_NUMBERS.items()
            for ours, theirs in numbers.items()
        ),
        (r"\.linear1\.", f".{feed_forward}.layers.0.0."),
        (r"\.linear2\.", f".{feed_forward}.layers.1."),
        *(
            (rf"^input_proj\.{level}\.{index}\.", f"neck.{convs}.{kind}.")
            for level, convs in enumerate(("convs.0", "convs.1", "convs.2", "extra_convs.0"))
            for index, kind in enumerate(("conv", norm))
        ),
        (r"^query_embed\.", "query_embedding."),
    ]


_DETREX = [
    *_of_openmmlab("ffns.0", "norm"),
    (r"(encoder\.layers\.\d+)\.self_attn\.", r"\1.attentions.0."),
    (r"(decoder\.layers\.\d+)\.self_attn\.", r"\1.attentions.0.attn."),
    (r"(decoder\.layers\.\d+)\.cross_attn\.", r"\1.attentions.1."),
    (r"level_embed$", "level_embeds"),
]
_MMDETECTION = [
    *_BACKBONE,
    (r"^BACKBONE", "backbone"),
    *_of_openmmlab("ffn", "gn"),
    (r"(decoder\.layers\.\d+)\.self_attn\.", r"\1.self_attn.attn."),
    (r"^class_embed\.", "bbox_head.cls_branches."),
    # an activation without weights stands between two layers
    *(
        (rf"^bbox_embed\.(\d)\.layers\.{n}\.", rf"bbox_head.reg_branches.\1.{2 * n}.")
        for n in range(3)
    ),
    *((rf"transformer\.{ours}\.", f"{theirs}.") for ours, theirs in _TWO_STAGE.items()),
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
