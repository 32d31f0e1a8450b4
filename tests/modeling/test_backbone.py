# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""ResNets against torchvision, and timm models at tiny sizes with random weights."""

import re

import pytest
import torch
import torchvision
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from detrex_mammo.errors import UserError
from detrex_mammo.modeling import RESNET_DEPTHS, TimmBackbone, build_resnet
from tests.modeling.tiny_detector import make_inputs, tiny_detector


def torchvision_to_detectron2(state):
    """conv1, layer1 .. layer4 to stem.conv1, res2 .. res5; bn and downsample to norm, shortcut."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        name = re.sub(r"^conv1\.", "stem.conv1.", name)
        name = re.sub(r"^bn1\.", "stem.conv1.norm.", name)
        name = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
        name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
        name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize(("depth", "dc5"), [(18, False), (50, False), (50, True)])
def test_resnet_is_torchvisions(depth, dc5):
    """Same weights and statistics, same features: stride in the 3x3, dilation 1, 2, 2 in DC5."""
    dilation = {"replace_stride_with_dilation": [False, False, True]} if dc5 else {}
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None, **dilation).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.1), nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    ours = build_resnet(depth, ["res3", "res5"], dc5=dc5).eval()
    ours.load_state_dict(torchvision_to_detectron2(theirs.state_dict()), strict=True)
    images = torch.randn(1, 3, 70, 101)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        res3 = theirs.layer2(theirs.layer1(x))
        res5 = theirs.layer4(theirs.layer3(res3))
        found = ours(images)
    for name, expected in {"res3": res3, "res5": res5}.items():
        scale = float(expected.abs().max())  # random deep networks grow; 1e-5 of the largest value
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-5 * scale)
    assert ours.output_shape()["res5"].stride == (16 if dc5 else 32)


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at(freeze_at):
    """0 trains all; 1 freezes the stem; n the stages up to res{n}."""
    backbone = build_resnet(14, freeze_at=freeze_at, norm="BN", stem_out_channels=8,
                            res2_out_channels=16)  # fmt: skip
    for name, parameter in backbone.named_parameters():
        stage = 1 if name.startswith("stem") else int(name[3])
        assert parameter.requires_grad == (stage > freeze_at), name
    frozen = isinstance(backbone.stem.conv1.norm, FrozenBatchNorm2d)
    assert frozen == (freeze_at > 0)


@pytest.mark.parametrize("depth", RESNET_DEPTHS)
@pytest.mark.parametrize("norm", ["GN", "BN"])
def test_narrow_resnets(depth, norm):
    """Any depth from scratch, narrow, with either norm; output shapes are the true ones."""
    backbone = build_resnet(depth, freeze_at=0, norm=norm, stem_out_channels=12,
                            res2_out_channels=24)  # fmt: skip
    features = backbone(torch.randn(1, 3, 64, 40))
    for name, shape in backbone.output_shape().items():
        stride = shape.stride
        assert features[name].shape == (1, shape.channels, 64 // stride, -(-40 // stride))
    assert backbone.output_shape()["res5"].channels == 24 * 8


def test_stages_behind_the_last_feature_are_not_built():
    names = {name.split(".")[0] for name, _ in build_resnet(18, ["res3"]).named_parameters()}
    assert names == {"stem", "res2", "res3"}


def test_resnets_that_cannot_be_are_refused():
    for settings, message in (
        ({"depth": 20}, "depth of the ResNet is 20"),
        ({"freeze_at": 6}, "freeze_at is 6"),
        ({"out_features": ["res6"]}, "out_features is"),
        ({"depth": 18, "dc5": True}, "bottleneck"),
    ):
        with pytest.raises(UserError, match=message):
            build_resnet(**settings)


TIMM = {
    "resnet10t": {"out_indices": (2, 3, 4)},
    "gcvit_xxtiny": {"window_size": 4, "img_size": 128, "embed_dim": 32},
    "swin_tiny_patch4_window7_224": {
        "embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)},
    "swinv2_cr_tiny_224": {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "efficientnet_b0": {"out_indices": (2, 3, 4)},
}  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
def test_timm_backbones_detect(name):
    """A detector on it trains and predicts with two images of odd sizes; maps are (B, C, h, w)."""
    backbone = TimmBackbone(name, **TIMM[name])
    features = backbone(torch.randn(2, 3, 75, 101))
    for key, shape in backbone.output_shape().items():
        assert features[key].shape[:2] == (2, shape.channels)
        for size, cells in zip((75, 101), features[key].shape[2:]):
            assert cells in (size // shape.stride, -(-size // shape.stride))
    detector = tiny_detector(backbone=backbone, in_features=list(backbone.output_shape()))
    losses = detector(make_inputs(((75, 101), (64, 50))))
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in backbone.body.parameters() if p.dim() > 2)
    detections = detector.eval()(make_inputs(((75, 101), (64, 50))))
    assert len(detections[0]["instances"]) == 10


def test_timm_channels_last_maps_are_turned():
    """Swin's own maps are (B, h, w, C)."""
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", **TIMM["swin_tiny_patch4_window7_224"])
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        raw = backbone.eval().body(images)[0]
        found = backbone(images)["p1"]
    assert raw.shape == (1, 8, 12, 48)
    torch.testing.assert_close(found, raw.permute(0, 3, 1, 2))


def test_timm_divisibility_pads_and_cuts():
    """Padding inside the backbone is zeros at the bottom and right, and does not come out."""
    plain = TimmBackbone("convnext_atto", **TIMM["convnext_atto"]).eval()
    padded = TimmBackbone("convnext_atto", size_divisibility=64, **TIMM["convnext_atto"]).eval()
    padded.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 60, 100)
    with torch.no_grad():
        expected = plain(nn.functional.pad(images, (0, 28, 0, 4)))["p2"][..., :4, :7]
        torch.testing.assert_close(padded(images)["p2"], expected)


def test_timm_batch_norms_can_be_frozen():
    backbone = TimmBackbone("resnet10t", (4,), frozen_batch_norm=True)
    kinds = {type(module).__name__ for module in backbone.modules()}
    assert "FrozenBatchNorm2d" in kinds and not any("BatchNorm2d" == kind for kind in kinds)


def gradients(backbone, runs):
    """Of all that trains, with the norms' statistics; from one seed, two images."""
    hooks = [
        module.register_forward_hook(lambda m, *_: runs.append(m))
        for module in backbone.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    torch.manual_seed(3)
    features = backbone(torch.randn(2, 3, 96, 64))
    sum(feature.square().mean() for feature in features.values()).backward()
    for hook in hooks:
        hook.remove()
    found = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    return {**found, **dict(backbone.named_buffers())}


CHECKPOINTED = {
    **TIMM,
    "vit_tiny_patch16_224": {"embed_dim": 24, "depth": 3, "num_heads": 3, "out_indices": (1, 2)},
}


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_timm_checkpointing_changes_no_number(name):
    """Gradients and statistics to the last bit, with random depth; all but a stem runs twice."""
    settings = {"drop_path_rate": 0.3, **CHECKPOINTED[name]}
    plain = TimmBackbone(name, **settings)
    backbone = TimmBackbone(name, checkpointing=True, **settings)
    backbone.load_state_dict(plain.state_dict())
    once, twice = [], []
    expected, found = gradients(plain, once), gradients(backbone, twice)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert len(twice) > 1.7 * len(once)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "GN"])
@pytest.mark.parametrize("freeze_at", [0, 2, 3])
def test_resnet_checkpointing_changes_no_number(norm, freeze_at):
    """As above; what is frozen runs once, and every convolution of a stage that trains twice."""
    narrow = {"stem_out_channels": 8, "res2_out_channels": 16, "freeze_at": freeze_at, "norm": norm}
    plain, backbone = build_resnet(26, **narrow), build_resnet(26, **narrow, checkpointing=True)
    backbone.load_state_dict(plain.state_dict())
    runs = []
    expected, found = gradients(plain, []), gradients(backbone, runs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for module_name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            stage = 1 if module_name.startswith("stem") else int(module_name[3])
            is_again = stage > freeze_at and stage > 1
            assert runs.count(module) == 1 + is_again, module_name


def test_timm_mistakes_are_one_sentence():
    for arguments, settings, message in (
        (("resnet51_nosuch",), {}, "no such model"),
        (("resnet10t", (2, 9)), {}, "out_indices is .2, 9."),
        (("resnet10t",), {"widht": 3}, "widht"),
    ):
        with pytest.raises(UserError, match=message):
            TimmBackbone(*arguments, **settings)
    backbone = TimmBackbone("maxvit_pico_rw_256", (1, 2, 3))
    with pytest.raises(UserError, match="72x104.*size_divisibility"):
        backbone(torch.randn(1, 3, 72, 104))
