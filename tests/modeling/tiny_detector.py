# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A detector small enough for a test, and inputs for it."""

import torch
from detectron2.structures import Boxes, Instances

from detrex_mammo.modeling import (
    DeformableDETR,
    DeformableTransformer,
    HungarianMatcher,
    SetCriterion,
    build_resnet,
)


def tiny_detector(two_stage=False, with_box_refine=False, backbone=None, **settings):
    """32 channels, 4 heads, 1 + 2 layers, 3 levels of 2 feature maps, 3 classes, 7 queries."""
    features = settings.pop("in_features", ["res4", "res5"])
    common = {"num_queries": 7, "num_feature_levels": 3, "embed_dim": 32, "two_stage": two_stage}
    common |= {key: settings.pop(key) for key in list(settings) if key in common}
    num_classes = settings.pop("num_classes", 3)
    criterion = settings.pop("criterion", SetCriterion(num_classes, HungarianMatcher()))
    checkpointing = {key: settings.pop(key) for key in list(settings) if "checkpointing" in key}
    transformer = DeformableTransformer(
        num_heads=4, num_encoder_layers=1, num_decoder_layers=2, feedforward_dim=24, **common,
        **checkpointing,
    )  # fmt: skip
    if backbone is None:
        backbone = build_resnet(
            10, features, freeze_at=0, norm="GN", stem_out_channels=8, res2_out_channels=8
        )
    settings.setdefault("topk", 10)
    return DeformableDETR(
        backbone, features, transformer, criterion, num_classes,
        with_box_refine=with_box_refine, **common, **settings,
    )  # fmt: skip


def make_inputs(sizes=((64, 96), (80, 50)), counts=(2, 0)):
    """detectron2 dicts; boxes of 8 to 24 pixels; original sizes twice the image's."""
    inputs = []
    for (height, width), count in zip(sizes, counts):
        instances = Instances((height, width))
        corners = torch.rand(count, 2) * 20
        instances.gt_boxes = Boxes(torch.cat((corners, corners + 8 + torch.rand(count, 2) * 16), 1))
        instances.gt_classes = torch.arange(count) % 3
        image = torch.rand(3, height, width) * 255
        inputs.append(
            {"image": image, "height": 2 * height, "width": 2 * width, "instances": instances}
        )
    return inputs


def perturb(model, std=0.1):
    """Noise on every parameter: a fresh detector predicts the same box everywhere."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += std * torch.randn_like(parameter)
    return model


def watched_step(detector, module, autocast=False):
    """Losses, gradients, and how often a module ran; inputs and dropout from one seed."""
    runs = []
    hook = module.register_forward_hook(lambda *_: runs.append(1))
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = detector(make_inputs())
    sum(losses.values()).backward()
    hook.remove()
    gradients = {name: p.grad.clone() for name, p in detector.named_parameters()}
    detector.zero_grad()
    return {name: loss.detach() for name, loss in losses.items()}, gradients, len(runs)
