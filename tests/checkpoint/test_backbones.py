# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Live ResNets of torchvision, timm and transformers, as files: ours has the same features."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from transformers import (
    ResNetBackbone,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
)

from detrex_mammo.checkpoint.conversion import convert, detect_format
from detrex_mammo.checkpoint.formats.backbones import DEPTHS, blocks_of
from detrex_mammo.checkpoint.reading import Source, read_source
from detrex_mammo.modeling import RESNET_DEPTHS, build_resnet
from tests.checkpoint.attack import sentence

STAGES = ["res2", "res3", "res4", "res5"]


def perturb(model: nn.Module) -> nn.Module:
    """Statistics and weights of norms that are not all 0 or 1; evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.1)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked += 9
    return model.eval()


def features_of_torchvision(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Also timm's: the same attributes, but another name for the first activation."""
    x = model.maxpool(torch.relu(model.bn1(model.conv1(images))))
    features = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = stage(x)
        features.append(x)
    return features


def features_of_transformers(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    return list(model(images, output_hidden_states=True).hidden_states[1:])


def assert_same_features(path: Path, expected: list[torch.Tensor], images, **resnet) -> None:
    """Read a file, load it strictly into our ResNet, and compare every stage."""
    source = read_source(path)
    assert detect_format(source) == "backbone"
    converted = convert(source)
    assert converted.architecture is None
    assert all(name.startswith("backbone.") for name in converted.state)
    state = {name.removeprefix("backbone."): value for name, value in converted.state.items()}
    ours = build_resnet(out_features=STAGES, **resnet).eval()
    ours.load_state_dict(state, strict=True)
    with torch.no_grad():
        found = ours(images)
    for stage, feature in zip(STAGES, expected, strict=True):
        scale = float(feature.abs().max())  # random deep networks grow
        torch.testing.assert_close(found[stage], feature, rtol=0, atol=1e-5 * scale)


def to_detectron2(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """As detectron2's conversion of torchvision's weights names and stores them."""
    renamed = {}
    for name, tensor in state.items():
        name = name if name.startswith("layer") else f"stem.{name}"
        name = re.sub(r"layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
        name = re.sub(r"bn(\d)", r"conv\1.norm", name)
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[name] = tensor.numpy()
    return renamed


def write(state: dict, folder: Path, form: str) -> Path:
    """Store a state dict as people hold it."""
    path = folder / {"R-50.pkl": "R-50.pkl", "safetensors": "model.safetensors"}.get(form, "m.pth")
    if form == "R-50.pkl":
        content = {"model": to_detectron2(state), "__author__": "torchvision"}
        path.write_bytes(pickle.dumps({**content, "matching_heuristics": True}, protocol=2))
    elif form == "safetensors":
        save_file(state, path)
    elif form == "parallel":
        torch.save({"state_dict": {f"module.{n}": v for n, v in state.items()}, "epoch": 9}, path)
    else:
        torch.save({form: state} if form else state, path)
    return path


@pytest.mark.parametrize("form", ["", "model_state", "parallel", "R-50.pkl"])
@pytest.mark.parametrize("depth", [18, 50])
@torch.no_grad()
def test_torchvision(depth: int, form: str, tmp_path: Path) -> None:
    theirs = perturb(getattr(torchvision.models, f"resnet{depth}")(weights=None))
    images = torch.randn(1, 3, 45, 70)
    path = write(theirs.state_dict(), tmp_path, form)
    assert_same_features(path, features_of_torchvision(theirs, images), images, depth=depth)


@pytest.mark.parametrize("form", ["", "model_state", "safetensors"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_timm(name: str, form: str, tmp_path: Path) -> None:
    theirs = perturb(timm.create_model(name, pretrained=False))
    if form == "safetensors":  # beside timm's own config.json
        (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))
    images = torch.randn(1, 3, 45, 70)
    path = write(theirs.state_dict(), tmp_path, form)
    path = tmp_path if form == "safetensors" else path
    assert_same_features(path, features_of_torchvision(theirs, images), images, depth=int(name[6:]))


@torch.no_grad()
def test_timm_without_its_classifier(tmp_path: Path) -> None:
    theirs = perturb(timm.create_model("resnet14t", pretrained=False, features_only=True))
    torch.save(theirs.state_dict(), tmp_path / "m.pth")
    # its stem of three convolutions is none of ours
    assert "no known format" in sentence(detect_format, read_source(tmp_path / "m.pth"))
    theirs = perturb(timm.create_model("resnet26", pretrained=False, features_only=True))
    images = torch.randn(1, 3, 45, 70)
    path = write(theirs.state_dict(), tmp_path, "")
    assert_same_features(path, features_of_torchvision(theirs, images), images, depth=26)


KINDS = {  # layer type, blocks, width of res2
    10: ("basic", [1, 1, 1, 1], 16),
    18: ("basic", [2, 2, 2, 2], 16),
    14: ("bottleneck", [1, 1, 1, 1], 32),
    50: ("bottleneck", [3, 4, 6, 3], 32),
}


@pytest.mark.parametrize("depth", KINDS)
@pytest.mark.parametrize("kind", [ResNetModel, ResNetBackbone, ResNetForImageClassification])
@torch.no_grad()
def test_transformers(depth: int, kind: type, tmp_path: Path) -> None:
    layer_type, blocks, width = KINDS[depth]
    stem = 16  # as wide as a first basic block, which then has no shortcut
    config = ResNetConfig(
        embedding_size=stem,
        hidden_sizes=[width, 2 * width, 4 * width, 8 * width],
        depths=blocks,
        layer_type=layer_type,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    theirs = perturb(kind(config))
    theirs.save_pretrained(tmp_path)
    images = torch.randn(1, 3, 45, 70)
    if kind is ResNetBackbone:
        expected = list(theirs(images).feature_maps)
    else:
        expected = features_of_transformers(theirs, images)
    sizes = {"depth": depth, "stem_out_channels": stem, "res2_out_channels": width}
    assert_same_features(tmp_path, expected, images, **sizes)
    torch.save(theirs.state_dict(), tmp_path / "memory.pth")
    assert_same_features(tmp_path / "memory.pth", expected, images, **sizes)


@torch.no_grad()
def test_a_stride_in_another_convolution_is_refused(tmp_path: Path) -> None:
    """Equal names and shapes, other features: only config.json tells."""
    ResNetModel(ResNetConfig(depths=[1, 1, 1, 1], downsample_in_bottleneck=True)).save_pretrained(
        tmp_path
    )
    assert "only False is supported" in sentence(convert, read_source(tmp_path))


def test_our_own_backbone_and_a_file_of_it_alone(tmp_path: Path) -> None:
    settings = {"depth": 14, "stem_out_channels": 8, "res2_out_channels": 16}
    theirs = perturb(build_resnet(out_features=STAGES, norm="BN", freeze_at=0, **settings))
    images = torch.randn(1, 3, 45, 70)
    expected = list(theirs(images).values())
    for prefix in ("", "backbone."):
        state = {prefix + name: value for name, value in theirs.state_dict().items()}
        torch.save({"model": state}, tmp_path / "m.pth")
        assert_same_features(tmp_path / "m.pth", expected, images, **settings)


@pytest.mark.parametrize(
    "names",
    [
        ["conv1_w", "res_conv1_bn_s", "res_conv1_bn_b"],
        ["res2_0_branch2a_w", "res2_0_branch2a_bn_s", "pred_b"],
    ],
)
@pytest.mark.parametrize("key", ["model", "blobs", None])
def test_caffe2_names_are_refused(names: list[str], key: str | None, tmp_path: Path) -> None:
    """detectron2's MSRA/R-50.pkl: the same shapes, other strides and BGR."""
    arrays = {name: np.zeros((2, 2), dtype=np.float32) for name in names}
    content = arrays if key is None else {key: arrays, "__author__": "Caffe2"}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content, protocol=2))
    message = sentence(detect_format, read_source(tmp_path / "R-50.pkl"))
    assert "Caffe2's names" in message and "BGR" in message


def resnet18() -> dict[str, torch.Tensor]:
    return torchvision.models.resnet18(weights=None).state_dict()


def test_a_name_that_is_no_resnets_is_told() -> None:
    state = {**resnet18(), "layer5.0.conv1.weights": torch.zeros(1), "head.weight": torch.zeros(1)}
    message = sentence(convert, Source("m.pth", state))
    assert "2 unexpected (layer5.0.conv1.weights, head.weight)" in message


def test_a_dictionary_of_something_else_is_no_backbone() -> None:
    message = sentence(detect_format, Source("m.pth", {"layer1.weight": torch.zeros(1)}))
    assert "no known format" in message and "layer1.weight" in message
    message = sentence(convert, Source("m.pth", {"x": torch.zeros(1)}), "backbone")
    assert "of no known format" in message


def test_depths_are_those_that_can_be_built() -> None:
    built = {
        (block.__name__ == "BottleneckBlock", tuple(count)): depth
        for depth, (block, count) in RESNET_DEPTHS.items()
    }
    assert built == DEPTHS
    assert blocks_of(50) == (True, (3, 4, 6, 3))
