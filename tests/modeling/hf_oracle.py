# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Hugging Face transformers as the oracle: its tiny random Deformable DETR, and ours like it.

The oracle computes everything but the images' sizes and the weights: forward pass, matching and
losses are transformers' own code.
"""

import copy
import re

import torch
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    ResNetConfig,
    TimmBackboneConfig,
)
from transformers.loss.loss_deformable_detr import (
    DeformableDetrHungarianMatcher,
    DeformableDetrImageLoss,
)

from detrex_mammo.modeling import (
    DeformableDETR,
    DeformableTransformer,
    HungarianMatcher,
    SetCriterion,
    build_resnet,
)

NUM_CLASSES = 5
NUM_QUERIES = 11
VARIANTS = {
    "single_scale": {"num_feature_levels": 1},
    "single_scale_dc5": {"num_feature_levels": 1, "dc5": True},
    "multi_scale": {},
    "refine": {"with_box_refine": True},
    "two_stage": {"with_box_refine": True, "two_stage": True},
}
LOSS_WEIGHTS = {"loss_class": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}
THEIR_LOSS = {"loss_class": "loss_ce", "loss_bbox": "loss_bbox", "loss_giou": "loss_giou"}


def tiny_oracle(
    seed=0, num_feature_levels=4, with_box_refine=False, two_stage=False, dc5=False, timm=False,
    num_classes=NUM_CLASSES,
):  # fmt: skip
    """transformers' model: heads untied, every parameter and statistic perturbed, all trainable."""
    torch.manual_seed(seed)
    if dc5 or timm:  # only a timm backbone can be dilated; timm has no narrower bottleneck ResNet
        backbone = TimmBackboneConfig(
            backbone="resnet26", out_indices=[4] if num_feature_levels == 1 else [2, 3, 4],
            features_only=True, use_pretrained_backbone=False,
            **({"output_stride": 16} if dc5 else {}),
        )  # fmt: skip
    else:
        stages = ["stage2", "stage3", "stage4"] if num_feature_levels > 1 else ["stage4"]
        backbone = ResNetConfig(
            embedding_size=16, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1],
            out_features=stages,
        )  # fmt: skip
    config = DeformableDetrConfig(
        backbone_config=backbone, num_labels=num_classes, num_queries=NUM_QUERIES,
        two_stage_num_proposals=NUM_QUERIES, num_feature_levels=num_feature_levels,
        with_box_refine=with_box_refine, two_stage=two_stage, d_model=64, encoder_layers=2,
        decoder_layers=3, encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_n_points=3, decoder_n_points=2, dropout=0.0,
        auxiliary_loss=True, class_cost=2, bbox_cost=5, giou_cost=2, attn_implementation="eager",
    )  # fmt: skip
    model = DeformableDetrForObjectDetection(config).eval()
    if with_box_refine:
        untie_heads(model)
    perturb(model, seed)
    return model.requires_grad_(True)


def untie_heads(model) -> None:
    """A fresh refinement model shares one class head among its layers, unlike the published one."""
    model.class_embed = torch.nn.ModuleList(copy.deepcopy(head) for head in model.class_embed)
    model.bbox_embed = torch.nn.ModuleList(copy.deepcopy(head) for head in model.bbox_embed)
    model.model.decoder.bbox_embed = model.bbox_embed
    if model.config.two_stage:
        model.model.decoder.class_embed = model.class_embed


def perturb(model, seed, std=0.1) -> None:
    """Add noise to every parameter and statistic: fresh norms are all ones and hide swaps."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                tensor += std * torch.randn(tensor.shape, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.abs_().add_(0.5)
        # Offsets of several cells, and boxes of all sizes
        for name, parameter in model.named_parameters():
            if name.endswith("sampling_offsets.bias"):
                parameter += torch.randn(parameter.shape, generator=generator)


def tiny_ours(num_feature_levels=4, with_box_refine=False, two_stage=False, dc5=False):
    """Our model of the same sizes, with other random weights."""
    features = ["res3", "res4", "res5"] if num_feature_levels > 1 else ["res5"]
    widths = {} if dc5 else {"stem_out_channels": 16, "res2_out_channels": 32}
    backbone = build_resnet(
        26 if dc5 else 14, out_features=features, freeze_at=0, dc5=dc5, **widths
    )
    transformer = DeformableTransformer(
        embed_dim=64, num_heads=4, num_encoder_layers=2, num_decoder_layers=3, feedforward_dim=48,
        dropout=0.0, num_feature_levels=num_feature_levels, num_encoder_points=3,
        num_decoder_points=2, two_stage=two_stage, num_queries=NUM_QUERIES,
    )  # fmt: skip
    return DeformableDETR(
        backbone, features, transformer, SetCriterion(NUM_CLASSES, HungarianMatcher()),
        num_classes=NUM_CLASSES, num_queries=NUM_QUERIES, num_feature_levels=num_feature_levels,
        embed_dim=64, with_box_refine=with_box_refine, two_stage=two_stage, topk=20,
    )  # fmt: skip


# transformers' names in memory -> ours; a third entry (part, parts) marks slices of a fused matrix.
_ENCODER, _DECODER = "transformer.encoder.layers.", "transformer.decoder.layers."
_NAMES = [
    (r"model\.level_embed", "transformer.level_embed"),
    (r"model\.input_proj\.(.+)", r"input_proj.\1"),
    (r"model\.query_position_embeddings\.weight", "query_embed.weight"),
    (r"model\.(reference_points|enc_output|enc_output_norm|pos_trans|pos_trans_norm)\.(\w+)",
     r"transformer.\1.\2"),
    (r"model\.encoder\.layers\.(\d+)\.self_attn\.(.+)", _ENCODER + r"\1.self_attn.\2"),
    (r"model\.encoder\.layers\.(\d+)\.self_attn_layer_norm\.(\w+)", _ENCODER + r"\1.norm1.\2"),
    (r"model\.encoder\.layers\.(\d+)\.final_layer_norm\.(\w+)", _ENCODER + r"\1.norm2.\2"),
    (r"model\.encoder\.layers\.(\d+)\.mlp\.fc(\d)\.(\w+)", _ENCODER + r"\1.linear\2.\3"),
    (r"model\.decoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)",
     _DECODER + r"\1.self_attn.in_proj_\2", 0),
    (r"model\.decoder\.layers\.(\d+)\.self_attn\.k_proj\.(\w+)",
     _DECODER + r"\1.self_attn.in_proj_\2", 1),
    (r"model\.decoder\.layers\.(\d+)\.self_attn\.v_proj\.(\w+)",
     _DECODER + r"\1.self_attn.in_proj_\2", 2),
    (r"model\.decoder\.layers\.(\d+)\.self_attn\.o_proj\.(\w+)",
     _DECODER + r"\1.self_attn.out_proj.\2"),
    (r"model\.decoder\.layers\.(\d+)\.encoder_attn\.(.+)", _DECODER + r"\1.cross_attn.\2"),
    (r"model\.decoder\.layers\.(\d+)\.encoder_attn_layer_norm\.(\w+)", _DECODER + r"\1.norm1.\2"),
    (r"model\.decoder\.layers\.(\d+)\.self_attn_layer_norm\.(\w+)", _DECODER + r"\1.norm2.\2"),
    (r"model\.decoder\.layers\.(\d+)\.final_layer_norm\.(\w+)", _DECODER + r"\1.norm3.\2"),
    (r"model\.decoder\.layers\.(\d+)\.mlp\.fc(\d)\.(\w+)", _DECODER + r"\1.linear\2.\3"),
    (r"(?:model\.decoder\.)?((?:class|bbox)_embed\..+)", r"\1"),
    (r"model\.backbone\.model\.embedder\.embedder\.convolution\.weight",
     "backbone.stem.conv1.weight"),
    (r"model\.backbone\.model\.embedder\.embedder\.normalization\.(\w+)",
     r"backbone.stem.conv1.norm.\1"),
    (r"model\.backbone\.model\.conv1\.weight", "backbone.stem.conv1.weight"),
    (r"model\.backbone\.model\.bn1\.(\w+)", r"backbone.stem.conv1.norm.\1"),
]  # fmt: skip


def _backbone_name(name: str) -> str | None:
    """Names that count stages and convolutions from another number than ours."""
    body = r"model\.backbone\.model\."
    native = re.fullmatch(
        body + r"encoder\.stages\.(\d)\.layers\.(\d+)\.(shortcut|layer\.\d)\.(\w+)\.(\w+)", name
    )
    if native:
        stage, block, part, kind, leaf = native.groups()
        part = part if part == "shortcut" else f"conv{int(part[-1]) + 1}"
        middle = "norm." if kind == "normalization" else ""
        return f"backbone.res{int(stage) + 2}.{block}.{part}.{middle}{leaf}"
    timm = re.fullmatch(body + r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)", name)
    if timm:
        stage, block, kind, index, leaf = timm.groups()
        is_norm = kind == "bn" or (kind, index) == ("downsample.", "1")
        part = "shortcut" if kind == "downsample." else f"conv{index}"
        return f"backbone.res{int(stage) + 1}.{block}.{part}.{'norm.' if is_norm else ''}{leaf}"
    return None


def to_our_names(tensors: dict[str, torch.Tensor], shares_heads: bool) -> dict[str, torch.Tensor]:
    """Rename transformers' tensors (weights, or their gradients) and fuse q, k, v."""
    renamed, parts = {}, {}
    for name, tensor in tensors.items():
        ours, part = _backbone_name(name), None
        if ours is None:
            hits = [
                (m.expand(to), *rest) for rx, to, *rest in _NAMES if (m := re.fullmatch(rx, name))
            ]
            assert len(hits) == 1, (name, hits)
            ours, *part = hits[0]
        if shares_heads:
            ours = re.sub(r"^(class|bbox)_embed\.\d+", r"\1_embed.0", ours)
        if part:
            parts.setdefault(ours, {})[part[0]] = tensor
        else:
            assert ours not in renamed or torch.equal(renamed[ours], tensor), name
            renamed[ours] = tensor
    for name, pieces in parts.items():
        renamed[name] = torch.cat([pieces[index] for index in range(3)])
    return renamed


def copy_weights(theirs, ours) -> None:
    """Strict: every tensor of either model is used."""
    state = to_our_names(theirs.state_dict(), not theirs.config.with_box_refine)
    ours.load_state_dict(state, strict=True)


def oracle_losses(outputs, targets, two_stage: bool) -> dict[str, torch.Tensor]:
    """Weighted losses by transformers' loss module, under our names.

    Args:
        outputs: of the oracle, called with labels (for its auxiliary outputs).
        targets: B dicts ``labels``, ``boxes`` (cxcywh, normalised by the unpadded size).
        two_stage: adds the encoder's loss, which transformers lacks: every label 0.
    """
    matcher = DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    module = DeformableDetrImageLoss(matcher, NUM_CLASSES, 0.25, ["labels", "boxes"])
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
    found = module(
        {
            "logits": outputs.logits,
            "pred_boxes": outputs.pred_boxes,
            "auxiliary_outputs": outputs.auxiliary_outputs,
        },
        labels,
    )
    if two_stage:
        binary = [{**label, "class_labels": label["class_labels"] * 0} for label in labels]
        proposals = {
            "logits": outputs.enc_outputs_class,
            "pred_boxes": outputs.enc_outputs_coord_logits.sigmoid(),
        }
        found |= {f"{name}_enc": loss for name, loss in module(proposals, binary).items()}
    their_name = re.compile(r"(loss_[a-z]+)(_\d+|_enc)?")
    ours = {theirs: name for name, theirs in THEIR_LOSS.items()}
    losses = {}
    for key, value in found.items():
        name, suffix = their_name.fullmatch(key).groups()
        losses[ours[name] + (suffix or "")] = LOSS_WEIGHTS[ours[name]] * value
    return losses
