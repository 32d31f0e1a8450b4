# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What has to be known of a model to build it: told by a file, or read from its weights."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from detrex_mammo.checkpoint.formats.backbones import DEPTHS
from detrex_mammo.config import find_shipped, get_config
from detrex_mammo.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
_MOST = 100_000  # of anything that is counted
_BASE = "configs/common/models/deformable_detr_r50.py"
_OF_BACKBONE = ("depth", "stem_out_channels", "res2_out_channels", "dc5")
_OF_TRANSFORMER = (
    "num_heads",
    "num_encoder_layers",
    "num_decoder_layers",
    "feedforward_dim",
    "dropout",
    "num_encoder_points",
    "num_decoder_points",
)


@dataclass(frozen=True)
class Architecture:
    """Settings of a Deformable DETR on a ResNet, by the names that the configs use.

    ``num_classes`` is the width of the class heads; ``dc5``, ``num_heads``, ``dropout`` and
    ``inverse_sigmoid_eps`` leave no trace in the shapes of weights.
    """

    depth: int
    stem_out_channels: int
    res2_out_channels: int
    in_features: tuple[str, ...]
    embed_dim: int
    feedforward_dim: int
    num_heads: int
    num_encoder_layers: int
    num_decoder_layers: int
    num_feature_levels: int
    num_encoder_points: int
    num_decoder_points: int
    num_queries: int
    num_classes: int
    with_box_refine: bool
    two_stage: bool
    dc5: bool = False
    dropout: float = 0.1
    inverse_sigmoid_eps: float = 1e-5
    pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375)

    @property
    def single_stage(self) -> bool:
        """Queries are learned."""
        return not self.two_stage

    @property
    def num_head_pairs(self) -> int:
        """Pairs of heads in a published file: one for each decoder layer, one for proposals."""
        return self.num_decoder_layers + int(self.two_stage)

    @property
    def num_extra_levels(self) -> int:
        """Levels behind those that are feature maps of the backbone."""
        return self.num_feature_levels - len(self.in_features)

    @property
    def variant(self) -> str:
        """Which of the published five, for people."""
        if self.two_stage:
            return "two-stage"
        if self.with_box_refine:
            return "iterative box refinement"
        if self.num_feature_levels > 1:
            return "multi-scale"
        return "single-scale, DC5" if self.dc5 else "single-scale"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def model_config(self) -> DictConfig:
        """The lazy node that builds the model; everything else is as in the base config."""
        model = get_config(find_shipped(_BASE)).model
        nodes = dict.fromkeys(_OF_BACKBONE, model.backbone)
        nodes.update(dict.fromkeys(_OF_TRANSFORMER, model.transformer))
        for name, value in self.to_dict().items():
            OmegaConf.update(nodes.get(name, model), name, value)
        model.topk = min(model.topk, self.num_queries * self.num_classes)
        return model


SETTINGS = tuple(field.name for field in fields(Architecture))


def settings_of(model: Any) -> dict[str, Any]:
    """Settings that a config's model node has, by the names of :class:`Architecture`."""
    known: dict[str, Any] = {}
    if isinstance(model, DictConfig):
        for node in (model.get("backbone"), model.get("transformer"), model):
            if isinstance(node, DictConfig):
                known.update({n: node[n] for n in SETTINGS if node.get(n) is not None})
    return {k: tuple(v) if isinstance(v, ListConfig) else v for k, v in known.items()}


def check_settings(told: Mapping[str, Any], path: str) -> None:
    """Check kind and range of settings that a file tells or a user assumes.

    Raises:
        UserError: names the first that no model can have.
    """
    for field in fields(Architecture):
        if field.name not in told:
            continue
        value, kind = told[field.name], field.type
        if kind is bool:
            allowed, fits = "True or False", isinstance(value, bool)
        elif kind is int:
            least = 0 if field.name == "num_encoder_layers" else 1
            allowed = f"a whole number from {least} to {_MOST}"
            fits = type(value) is int and least <= value <= _MOST
        elif kind is float:
            allowed = "a number in [0, 1]"
            fits = type(value) in (int, float) and 0 <= value <= 1
        elif field.name == "in_features":
            allowed, fits = "names", isinstance(value, tuple)
        else:
            allowed = "three numbers"
            numbers = isinstance(value, tuple) and all(type(v) in (int, float) for v in value)
            fits = numbers and len(value) == 3
        if not fits:
            raise UserError(f"{field.name} of {path!r} is {value!r}, but must be {allowed}")


def infer(shapes: Shapes, told: Mapping[str, Any], has_own_heads: bool) -> Architecture:
    """The architecture of weights.

    Args:
        shapes: our name -> shape, with a head for each layer.
        told: settings that the file or the user tells.
        has_own_heads: whether the layers' heads differ, which only refinement does.

    Raises:
        UserError: no such architecture, or the weights contradict what is told.
    """
    seen = {**_transformer(shapes, told), **resnet_of(shapes), **_features(shapes)}
    if "with_box_refine" not in told:
        seen["with_box_refine"] = has_own_heads or seen["two_stage"]
    contradicted = {
        name: (told[name], value)
        for name, value in seen.items()
        if name in told and told[name] != value
    }
    if contradicted:
        pairs = ", ".join(f"{n} {a!r} but has {n} {b!r}" for n, (a, b) in contradicted.items())
        raise UserError(f"the checkpoint says {pairs}: its weights are of another model")
    known = {**seen, **{k: v for k, v in told.items() if k in SETTINGS}}
    for name in ("pixel_mean", "pixel_std"):
        if name in known:
            known[name] = tuple(float(value) for value in known[name])
    if known["two_stage"] and not known["with_box_refine"]:
        raise UserError("the checkpoint is two-stage without refinement, which does not exist")
    return Architecture(**known)


def _transformer(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    encoder, decoder = "transformer.encoder.layers.{}.", "transformer.decoder.layers.{}."
    levels, embed_dim = _shape(shapes, "transformer.level_embed")
    seen = {
        "embed_dim": embed_dim,
        "num_feature_levels": levels,
        "feedforward_dim": _shape(shapes, decoder.format(0) + "linear1.weight")[0],
        "num_encoder_layers": _count(shapes, r"transformer\.encoder\.layers\.(\d+)\."),
        "num_decoder_layers": _count(shapes, r"transformer\.decoder\.layers\.(\d+)\."),
        "num_classes": _shape(shapes, "class_embed.0.bias")[0],
        "two_stage": "transformer.enc_output.weight" in shapes,
    }
    if not seen["num_encoder_layers"] and told.get("num_encoder_layers") != 0:
        raise UserError("the checkpoint has no encoder layers: it is not a whole model")
    if not seen["two_stage"]:
        seen["num_queries"] = _shape(shapes, "query_embed.weight")[0]
    elif "num_queries" not in told:
        seen["num_queries"] = 300
    heads = int(told.get("num_heads", 8))
    if "num_heads" not in told:
        seen["num_heads"] = heads
    for name, layer in (("encoder", encoder + "self_attn"), ("decoder", decoder + "cross_attn")):
        if seen[f"num_{name}_layers"] == 0:
            seen[f"num_{name}_points"] = told.get(f"num_{name}_points", 4)
            continue
        rows = _shape(shapes, layer.format(0) + ".attention_weights.bias")[0]
        if heads < 1 or rows % (heads * levels):
            raise UserError(
                f"the {name}'s attention has {rows} weights for a query, which {heads} heads and "
                f"{levels} levels do not divide: tell its heads with num_heads=N"
            )
        seen[f"num_{name}_points"] = rows // (heads * levels)
    return seen


def _features(shapes: Shapes) -> dict[str, Any]:
    """Which stages of the backbone are used, told by the channels that projections take."""
    last = "conv3" if "backbone.res2.0.conv3.weight" in shapes else "conv2"
    channels = {
        _shape(shapes, f"backbone.res{stage}.0.{last}.weight")[0]: f"res{stage}"
        for stage in (2, 3, 4, 5)
    }
    levels = _count(shapes, r"input_proj\.(\d+)\.")
    convolutions = [_shape(shapes, f"input_proj.{level}.0.weight") for level in range(levels)]
    features = [channels.get(shape[1]) for shape in convolutions if shape[-1] == 1]
    if not features or None in features:
        raise UserError(
            f"the checkpoint's projections take {[shape[1] for shape in convolutions]} channels, "
            f"but its backbone's stages have {list(channels)}"
        )
    return {"in_features": tuple(features)}


def resnet_of(shapes: Shapes) -> dict[str, Any]:
    """Depth and widths of the ResNet under ``backbone.``.

    Raises:
        UserError: its blocks are those of no ResNet known here.
    """
    blocks = tuple(_count(shapes, rf"backbone\.res{stage}\.(\d+)\.") for stage in (2, 3, 4, 5))
    is_bottleneck = "backbone.res2.0.conv3.weight" in shapes
    if (is_bottleneck, blocks) not in DEPTHS:
        raise UserError(
            f"the checkpoint's backbone has {blocks} {'bottleneck' if is_bottleneck else 'basic'} "
            f"blocks in its stages, no ResNet known here ({', '.join(map(str, DEPTHS.values()))})"
        )
    last = "conv3" if is_bottleneck else "conv2"
    return {
        "depth": DEPTHS[is_bottleneck, blocks],
        "stem_out_channels": _shape(shapes, "backbone.stem.conv1.weight")[0],
        "res2_out_channels": _shape(shapes, f"backbone.res2.0.{last}.weight")[0],
    }


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    """Shape of a tensor, which has as many dimensions as its kind."""
    if name not in shapes:
        raise UserError(f"the checkpoint has no {name} (by our names): it is not a whole model")
    shape = tuple(shapes[name])
    is_convolution = re.search(r"conv\d\.weight$|input_proj\.\d+\.0\.weight$", name)
    dimensions = 4 if is_convolution else 1 if name.endswith("bias") else 2
    if len(shape) != dimensions:
        raise UserError(f"the checkpoint's {name} (by our names) has the shape {list(shape)}")
    return shape


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest index that names have at the pattern's group; 0 without any."""
    found = [int(match[1]) for name in shapes if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1
