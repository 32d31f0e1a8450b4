# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Backbones: detectron2's ResNet, and any timm model with intermediate features.

Both return ``{name: (B, channels, h, w)}`` and tell channels and strides by ``output_shape()``.
"""

import math
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from torch import Tensor, nn

from detrex_mammo.errors import UserError
from detrex_mammo.layers import group_norm, recomputation
from detrex_mammo.modeling.folding import fold_fixed_norms

# depth: (block, blocks in res2 .. res5). 10, 14 and 26 are timm's small ones.
RESNET_DEPTHS: dict[int, tuple[type, tuple[int, int, int, int]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    14: (BottleneckBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    26: (BottleneckBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (BottleneckBlock, (3, 4, 6, 3)),
    101: (BottleneckBlock, (3, 4, 23, 3)),
    152: (BottleneckBlock, (3, 8, 36, 3)),
}


def build_resnet(
    depth: int = 50,
    out_features: Sequence[str] = ("res3", "res4", "res5"),
    freeze_at: int = 2,
    norm: str | Callable[[int], nn.Module] = "FrozenBN",
    dc5: bool = False,
    stem_out_channels: int = 64,
    res2_out_channels: int | None = None,
    num_groups: int = 1,
    width_per_group: int | None = None,
    checkpointing: bool = False,
) -> ResNet:
    """detectron2's ResNet as torchvision builds it: the stride is in the 3x3 convolution.

    Args:
        depth (int): one of ``RESNET_DEPTHS``; up to 34 with basic blocks except 14 and 26.
        out_features (Sequence[str]): of "stem", "res2" .. "res5" (strides 4, 4, 8, 16, 32). Stages
            behind the last one are not built.
        freeze_at (int): 0 trains all; 1 freezes the stem (detrex); 2 the stem and res2 (published);
            5 everything. Frozen blocks keep their batch statistics too.
        norm (str or Callable): "FrozenBN", "BN", "SyncBN", "GN", ... or a function of the channels.
        dc5 (bool): res5 keeps the stride of res4. Its first block has dilation 1, as in torchvision
            and the published weights; detectron2's own ``res5_dilation=2`` gives it 2.
        stem_out_channels (int): width of the stem.
        res2_out_channels (int, optional): width of res2, doubling with each stage; 64 for basic
            blocks and 256 for bottlenecks when None.
        num_groups (int): of the 3x3 convolution (ResNeXt).
        width_per_group (int, optional): channels of each group in res2; derived from
            ``res2_out_channels`` (a quarter in all) when None.
        checkpointing (bool): in training compute each stage again in the backward pass.

    Returns:
        ResNet: detectron2's class, with its names; norms that do not change are folded into the
        convolutions (:func:`fold_fixed_norms`).

    Raises:
        UserError: depth, freeze_at, out_features or dc5 is not possible.
    """
    _check_resnet(depth, out_features, freeze_at, dc5, num_groups)
    block, num_blocks = RESNET_DEPTHS[depth]
    out_channels = res2_out_channels or (256 if block is BottleneckBlock else 64)
    group_width = width_per_group or out_channels // 4 // num_groups
    in_channels, stages = stem_out_channels, []
    for index, count in enumerate(num_blocks):
        is_dilated = dc5 and index == 3
        strides = [1 if index == 0 or is_dilated else 2] + [1] * (count - 1)
        kwargs = {"stride_per_block": strides, "norm": _norm(norm)}
        if block is BottleneckBlock:
            kwargs["bottleneck_channels"] = num_groups * group_width * 2**index
            kwargs["num_groups"] = num_groups
            kwargs["stride_in_1x1"] = False
            kwargs["dilation_per_block"] = [1] + [2 if is_dilated else 1] * (count - 1)
        kwargs |= {"in_channels": in_channels, "out_channels": out_channels}
        stages.append(ResNet.make_stage(block, count, **kwargs))
        in_channels, out_channels = out_channels, out_channels * 2
    stem = BasicStem(in_channels=3, out_channels=stem_out_channels, norm=_norm(norm))
    resnet = ResNet(stem, stages, out_features=list(out_features), freeze_at=freeze_at)
    for stage in resnet.stages if checkpointing else ():
        recomputation.recompute(stage)
    return fold_fixed_norms(resnet)


def _norm(name: str | Callable[[int], nn.Module]) -> str | Callable[[int], nn.Module]:
    """Ours for "GN", detectron2's for any other name."""
    return group_norm if name == "GN" else name


def _check_resnet(depth, out_features, freeze_at, dc5, num_groups) -> None:
    if depth not in RESNET_DEPTHS:
        raise UserError(f"depth of the ResNet is {depth}; it must be one of {list(RESNET_DEPTHS)}")
    if freeze_at not in range(6):
        raise UserError(f"freeze_at is {freeze_at}; it must be 0 (train all) to 5 (freeze all)")
    known = ["stem", "res2", "res3", "res4", "res5"]
    if not out_features or not set(out_features) <= set(known):
        raise UserError(f"out_features is {list(out_features)}; use one or more of {known}")
    if RESNET_DEPTHS[depth][0] is BasicBlock and (dc5 or num_groups != 1):
        raise UserError(
            f"dc5 is {dc5} and num_groups {num_groups} with depth {depth}; both need bottleneck "
            "blocks, so use depth 14, 26, 50, 101 or 152"
        )


class TimmBackbone(Backbone):
    """A timm model by name, https://github.com/huggingface/pytorch-image-models.

    Args:
        model_name (str): as in ``timm.list_models()``.
        out_indices (Sequence[int]): which of the model's feature maps, finest first; the map of
            index i is called ``p{i}``.
        pretrained (bool): load timm's weights (needs the network or timm's cache).
        frozen_batch_norm (bool): batch norms keep their statistics and weights.
        size_divisibility (int, optional): images are padded at the bottom and right to a multiple
            of it, and the feature maps cut back. None: what the model is known to need.
        checkpointing (bool): in training compute each stage again in the backward pass instead of
            keeping its activations; same numbers, less memory, more time.
        **model: further arguments of ``timm.create_model``, checked by timm.

    Raises:
        UserError: timm is missing, does not know the model or an index, or cannot get its weights.
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] = (1, 2, 3),
        pretrained: bool = False,
        frozen_batch_norm: bool = False,
        size_divisibility: int | None = None,
        checkpointing: bool = False,
        **model,
    ):
        super().__init__()
        self.model_name = model_name
        self.body = _create_timm_model(model_name, tuple(out_indices), pretrained, model)
        if frozen_batch_norm:
            self.body = FrozenBatchNorm2d.convert_frozen_batchnorm(self.body)
        for stage in _stages(self.body) if checkpointing else ():
            recomputation.recompute(stage)
        info = self.body.feature_info
        self._out_features = [f"p{index}" for index in out_indices]
        self._out_feature_channels = dict(zip(self._out_features, info.channels()))
        self._out_feature_strides = dict(zip(self._out_features, info.reduction()))
        self.is_channels_last = str(getattr(self.body, "output_fmt", None)).endswith("NHWC")
        needed = _adapt_global_context_vit(self.body) or _patch_size(self.body)
        self.padding_multiple = needed if size_divisibility is None else size_divisibility

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W), normalised, to feature maps of ceil(H / stride) rows."""
        height, width = images.shape[-2:]
        if self.padding_multiple > 1:
            bottom, right = -height % self.padding_multiple, -width % self.padding_multiple
            images = F.pad(images, (0, right, 0, bottom)) if bottom or right else images
        try:
            features = self.body(images)
        except AssertionError as error:  # how timm's models refuse a size
            raise UserError(
                f"an image of {height}x{width} does not fit the backbone {self.model_name} "
                f"({error}); set model.backbone.size_divisibility to the multiple that it needs"
            ) from error
        outputs = {}
        for name, feature in zip(self._out_features, features):
            if self.is_channels_last:
                feature = feature.permute(0, 3, 1, 2)
            if self.padding_multiple > 1:
                stride = self._out_feature_strides[name]
                feature = feature[..., : -(-height // stride), : -(-width // stride)]
            outputs[name] = feature
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map."""
        return {
            name: ShapeSpec(
                channels=self._out_feature_channels[name], stride=self._out_feature_strides[name]
            )
            for name in self._out_features
        }


def _create_timm_model(name: str, out_indices: tuple[int, ...], pretrained: bool, model: dict):
    try:
        import timm  # noqa: PLC0415  an extra; only this class needs it
    except ImportError as error:
        raise UserError(
            f"backbone model_name is {name!r}, which needs timm; install it (pip install timm)"
        ) from error
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise UserError(
            f"backbone model_name is {name!r}; timm {timm.__version__} has no such model"
            + (f", use for example one of {close}" if close else "")
        )
    # Models made for one image size accept others only when asked to; each family by its own word.
    size_options = [
        {"strict_img_size": False},
        {"dynamic_img_size": True, "dynamic_img_pad": True},
        {},
    ]
    for options in size_options:
        try:
            return timm.create_model(
                name,
                pretrained=pretrained,
                features_only=True,
                out_indices=out_indices,
                **(options | model),
            )
        except TypeError as error:
            if not any(option in str(error) for option in options):
                raise UserError(f"timm cannot build {name!r} with {model}: {error}") from error
        except (AssertionError, IndexError) as error:
            raise UserError(
                f"out_indices is {list(out_indices)} for the timm model {name!r}, "
                f"which does not have these feature maps ({error})"
            ) from error
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"backbone.pretrained is True, but the weights of {name!r} cannot be had "
                f"({reason}); connect to the network once, so that they stay in timm's cache, or "
                "set model.backbone.pretrained=False"
            ) from error
    raise AssertionError("the last option is empty and cannot be refused")


def _stages(body: nn.Module) -> list[nn.Module]:
    """What a timm model runs one after another; no single layers, of which nothing is kept."""
    parts = []
    for child in getattr(body, "model", body).children():  # "model": as ViT and its like are held
        is_opened = isinstance(child, (nn.Sequential, nn.ModuleList))  # some are run part by part
        parts += child.children() if is_opened else (child,)
    return [part for part in parts if any(True for _ in part.children())]


def _patch_size(body: nn.Module) -> int:
    """The multiple that images need for a model that cuts them into patches; else 0."""
    size = getattr(getattr(body, "patch_embed", None), "patch_size", 0)
    return max(size) if isinstance(size, (tuple, list)) else int(size or 0)


def _adapt_global_context_vit(body: nn.Module) -> int:
    """Let GCViT see images of any size; 0 for other models, else the multiple images need.

    Its windows must tile every stage, and its global query must have the size of one window: for
    larger images the query is averaged down to that, as detectors on GCViT do.
    """
    multiple, stride = 0, 4
    stages = [m for m in body.modules() if type(m).__name__ == "GlobalContextVitStage"]
    for stage in stages:
        stride *= 1 if isinstance(stage.downsample, nn.Identity) else 2
        window = stage.blocks[0].window_size
        multiple = math.lcm(multiple or 1, window[0] * stride, window[1] * stride)
        stage.global_block.register_forward_hook(_PoolTo(window))
    return multiple


class _PoolTo:
    """A forward hook that averages a feature map down to a size. (A class, so it can be copied.)"""

    def __init__(self, size: tuple[int, int]):
        self.size = tuple(size)

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        if tuple(output.shape[-2:]) == self.size:
            return output
        return F.adaptive_avg_pool2d(output, self.size)
