# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Folded convolutions against detectron2's own, which norm their output."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn

from detrex_mammo.modeling import build_resnet
from detrex_mammo.modeling.folding import FoldingConv2d, fold_fixed_norms


def randomise(module: nn.Module) -> nn.Module:
    """Statistics and weights of all norms, so that a mix-up of any two shows."""
    for norm in module.modules():
        if hasattr(norm, "running_mean") and norm.running_mean is not None:
            nn.init.normal_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2)
            if norm.weight is not None:
                norm.weight.data.uniform_(0.5, 2), norm.bias.data.normal_()
    return module


def unfolded(module: nn.Module) -> nn.Module:
    """A copy as detectron2 would run it."""
    module = copy.deepcopy(module)
    for child in module.modules():
        if type(child) is FoldingConv2d:
            child.__class__ = Conv2d
    return module


NORMS = {
    "frozen": FrozenBatchNorm2d,
    "batch": nn.BatchNorm2d,
    "sync": nn.SyncBatchNorm,
    "plain": lambda channels: nn.BatchNorm2d(channels, affine=False),
    "eps": lambda channels: FrozenBatchNorm2d(channels, eps=0.1),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_one_convolution(norm, bias):
    """Stride, dilation, groups, bias, activation: the output to 1e-5 of its largest value."""
    conv = Conv2d(
        4, 6, 3, stride=2, padding=2, dilation=2, groups=2, bias=bias, norm=NORMS[norm](6),
        activation=nn.functional.gelu,
    )  # fmt: skip
    folded = fold_fixed_norms(randomise(conv)).eval()
    x = torch.randn(2, 4, 13, 9)
    with torch.no_grad():
        expected, found = unfolded(folded)(x), folded(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("depth", "norm"), [(18, "BN"), (14, "FrozenBN")])
def test_a_resnet_in_evaluation(depth, norm):
    """Same names, same features, and still the same after the weights have changed."""
    torch.manual_seed(0)
    net = randomise(build_resnet(depth, norm=norm, stem_out_channels=8, res2_out_channels=32))
    assert any(type(child) is FoldingConv2d for child in net.modules())
    net.eval()
    images = torch.randn(2, 3, 65, 40)
    before = net(images)["res5"].detach()

    def check():
        expected = unfolded(net)(images)["res5"]
        found = net(images)["res5"]
        scale = float(expected.abs().max().detach())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)
        return found.detach()

    with torch.no_grad():
        torch.testing.assert_close(check(), before)
        other = build_resnet(depth, norm=norm, stem_out_channels=8, res2_out_channels=32)
        assert (
            list(other.state_dict()) == list(net.state_dict()) == list(unfolded(net).state_dict())
        )
        net.load_state_dict(randomise(other).state_dict())
        assert not torch.allclose(check(), before)
        before = check()
        for tensor in [*net.parameters(), *net.buffers()]:
            if tensor.is_floating_point():
                tensor.data.mul_(1.1)  # what no version counter sees
        assert not torch.allclose(check(), before)


def test_training_of_a_frozen_norm_has_the_same_gradients():
    net = randomise(build_resnet(14, freeze_at=2, stem_out_channels=8, res2_out_channels=32))
    plain = unfolded(net)
    images = torch.randn(2, 3, 64, 40)
    for module in (net, plain):
        features = module.train()(images)
        sum(feature.square().mean() for feature in features.values()).backward()
    trained = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    assert trained and not any(name.startswith(("stem", "res2")) for name in trained)
    for name, parameter in plain.named_parameters():
        found = net.get_parameter(name).grad
        assert (found is None) == (name not in trained)
        if found is not None:
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(found, parameter.grad, rtol=0, atol=2e-5 * scale)


def test_batch_norm_in_training_still_learns_its_statistics():
    net = build_resnet(18, freeze_at=0, norm="BN", stem_out_channels=8, res2_out_channels=8).train()
    plain = unfolded(net)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(net(images), plain(images))
    torch.testing.assert_close(net.state_dict(), plain.state_dict())
    assert net.stem.conv1.norm.num_batches_tracked == 1


def test_double_stays_double():
    """Folded in float64 to float64's accuracy; a check that nothing is rounded on the way."""
    conv = randomise(Conv2d(3, 5, 3, bias=False, norm=FrozenBatchNorm2d(5))).double()
    folded = fold_fixed_norms(conv)
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(folded(x), unfolded(folded)(x), rtol=0, atol=1e-13)
