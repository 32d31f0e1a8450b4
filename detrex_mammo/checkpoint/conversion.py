# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""From weights of any format to our names, with the architecture and classes they belong to."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch
from omegaconf.errors import OmegaConfBaseException

from detrex_mammo.checkpoint import classes, heads, key_table
from detrex_mammo.checkpoint.architecture import SETTINGS, Architecture, check_settings, infer
from detrex_mammo.checkpoint.formats import (
    backbones,
    detrex,
    huggingface,
    imagenet,
    mmdetection,
    official,
    own,
    tao,
)
from detrex_mammo.checkpoint.loading import Mismatch
from detrex_mammo.checkpoint.reading import Source
from detrex_mammo.config import instantiate
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
OURS = own.NAME
DETECTORS: dict[str, ModuleType] = {
    module.NAME: module for module in (official, huggingface, detrex, mmdetection, tao, own)
}
FORMATS = (*DETECTORS, imagenet.NAME)
_INDEX = r"(?:neck\.convs|neck\.extra_convs|(?:model\.)*input_proj)\.(\d+)\."


@dataclass
class Converted:
    """Weights under our names.

    Attributes:
        state: our name -> tensor, exactly the keys of the model; of a backbone alone, its keys
            under ``backbone.``.
        format: of the source.
        architecture: None for a backbone alone.
        classes: ``names`` and ``ids`` of the outputs; empty lists where nothing is known.
        class_rows: outputs of the source that the layers' class heads keep.
        told: what the file itself told of the architecture.
        notes: what was assumed or changed, a sentence each.
    """

    state: dict[str, torch.Tensor]
    format: str
    architecture: Architecture | None = None
    classes: dict[str, list] = field(default_factory=lambda: {"names": [], "ids": []})
    class_rows: list[int] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def detect_format(source: Source) -> str:
    """The format that a file's names belong to.

    Raises:
        UserError: none, or Caffe2's.
    """
    names = source.state
    for name, module in DETECTORS.items():
        alone = name == OURS and not any(key.startswith("transformer.") for key in names)
        if not alone and any(re.fullmatch(module.MARKER, key) for key in names):
            return name
    if imagenet.is_caffe2(names):
        raise UserError(
            f"checkpoint {source.path!r} has Caffe2's names (detectron2's MSRA models), whose "
            "stride is in another convolution and whose images are BGR: use torchvision's R-50.pkl"
        )
    if imagenet.spelling(names):
        return imagenet.NAME
    some = ", ".join(sorted(names)[:4])
    raise UserError(
        f"checkpoint {source.path!r} is of no known format ({', '.join(FORMATS)}); its "
        f"{len(names)} tensors are called {some}, ..."
    )


def convert(
    source: Source,
    format_name: str | None = None,
    assume: Mapping[str, Any] | None = None,
    class_policy: str = "auto",
) -> Converted:
    """Convert weights to our names.

    Args:
        source: from :func:`detrex_mammo.checkpoint.reading.read_source`.
        format_name: one of ``FORMATS``; None detects it.
        assume: settings of :class:`Architecture` that the file does not tell, or tells wrongly.
        class_policy: "auto" makes COCO's 91 outputs 80; "keep" leaves heads as they are.

    Raises:
        UserError: a name fits nothing, is missing, or a shape differs (its ``report`` lists all of
            them); an unknown format or setting; the file contradicts itself.
    """
    unknown = [name for name in assume or {} if name not in SETTINGS]
    if unknown:
        raise UserError(f"{unknown[0]!r} is no setting of a model; use {', '.join(SETTINGS)}")
    name = detect_format(source)
    if format_name and format_name != name:
        if format_name not in FORMATS:
            raise UserError(f"format is {format_name!r}, but must be one of {', '.join(FORMATS)}")
        raise UserError(f"{source.path!r} has the names of the {name} format, not {format_name}")
    if name == imagenet.NAME:
        return _convert_backbone(source)
    module = DETECTORS[name]
    told, refused = read_settings(module, source)
    for setting, (found, allowed) in refused.items():
        raise UserError(
            f"{setting} of {source.path!r} is {found!r}, but only {allowed!r} is supported"
        )
    told.update(assume or {})
    told.update({k: tuple(v) for k, v in told.items() if k in SETTINGS and isinstance(v, list)})
    check_settings(told, source.path)
    written_here = classes.stored_table(source.content)  # by our own writers, whatever the format
    if written_here["names"]:
        told["classes"] = written_here
    return _convert_detector(source, name, told, class_policy)


def read_settings(module: ModuleType, source: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file tells; a stranger's file may tell anything."""
    try:
        return module.settings(source.content)
    except UserError:
        raise
    except (
        TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError,
        OmegaConfBaseException,
    ) as error:  # fmt: skip
        raise UserError(
            f"what {source.path!r} tells of its model cannot be read "
            f"({type(error).__name__}: {error}): repair its config"
        ) from error


def count_levels(state: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """Levels that are feature maps (their convolution is 1x1) and levels behind them (3x3)."""
    kinds = [
        tensor.shape[-1]
        for name, tensor in state.items()
        if re.search(_INDEX, name) and tensor.dim() == 4
    ]
    return sum(size == 1 for size in kinds), sum(size != 1 for size in kinds)


def _convert_detector(
    source: Source, name: str, told: dict[str, Any], class_policy: str
) -> Converted:
    table = DETECTORS[name].table(*count_levels(source.state))
    renamed = key_table.read(source.state, table)
    _check_kinds(renamed.tensors, source.path)
    copied = any(rule.when == "with_box_refine" for rule in renamed.used)
    has_own = copied or heads.layers_differ(renamed.tensors)
    try:
        architecture = infer({k: tuple(v.shape) for k, v in renamed.tensors.items()}, told, has_own)
    except UserError as error:
        raise _explain(source, name, renamed, error) from error
    state = heads.complete(renamed.tensors, architecture.num_head_pairs)
    if not architecture.with_box_refine:
        state = heads.fold(state)
    _check(source, name, renamed, table, state, architecture)
    result = Converted(state, name, architecture, told=told)
    result.classes = classes.class_table(architecture.num_classes, told)
    result.class_rows = list(range(architecture.num_classes))
    if class_policy == "auto" and classes.is_coco91(architecture.num_classes, told):
        _reduce(result)
    _note_assumptions(result)
    return result


def _check_kinds(state: Mapping[str, torch.Tensor], path: str) -> None:
    """Weights are floating-point numbers that are there."""
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.is_meta or tensor.layout != torch.strided:
            raise UserError(
                f"{name} (by our names) of checkpoint {path!r} is a tensor of {tensor.dtype} "
                f"({tensor.device.type}, {tensor.layout}), but weights are floating-point numbers"
            )


def _check(source, name, renamed, table, state, architecture) -> None:
    """Exactly the model's keys and shapes, and every rule used."""
    expected = model_shapes(architecture)
    mismatch = Mismatch(
        missing=[k for k in expected if k not in state],
        unexpected=list(renamed.unexpected),
        mis_shaped={
            key: (tuple(tensor.shape), expected[key])
            for key, tensor in state.items()
            if key in expected and tuple(tensor.shape) != expected[key]
        },
    )
    mismatch.unexpected += [f"{k} (by our names)" for k in state if k not in expected]
    unused = [
        rule.theirs
        for rule in table
        if isinstance(rule, key_table.Rule)
        and not rule.optional
        and key_table.holds(rule, architecture)
        and rule not in renamed.used
        and _has_layers(rule, architecture)
    ]
    if mismatch or renamed.disagreeing or renamed.incomplete or unused:
        raise _misfit(source, name, mismatch, renamed, unused)


def _has_layers(rule: key_table.Rule, architecture: Architecture) -> bool:
    return architecture.num_encoder_layers > 0 or "encoder.layers" not in rule.ours


def _misfit(source, name, mismatch, renamed, unused) -> UserError:
    kinds = {
        "missing (by our names)": mismatch.missing,
        "unexpected": mismatch.unexpected,
        "mis-shaped": [
            f"{k} {list(a)} instead of {list(b)}" for k, (a, b) in mismatch.mis_shaped.items()
        ],
        "stored twice with different values": renamed.disagreeing,
        "stored in parts of which some are missing or differ in shape": renamed.incomplete,
        "expected but not found": unused,
    }
    kinds = {kind: names for kind, names in kinds.items() if names}
    lines = [f"{kind}:\n" + "\n".join(f"  {n}" for n in names) for kind, names in kinds.items()]
    counts = "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in kinds.items()
    )
    return UserError(
        f"checkpoint {source.path!r} does not fit the {name} format: {counts}", "\n".join(lines)
    )


def _explain(source, name, renamed, error: UserError) -> UserError:
    """An error of inference, with the names that went nowhere, which are its likely cause."""
    message = f"checkpoint {source.path!r} ({name} format): {error}"
    if renamed.unexpected:
        message += f"; {len(renamed.unexpected)} of its names fit nothing"
        report = "unexpected:\n" + "\n".join(f"  {n}" for n in renamed.unexpected)
        return UserError(message, report)
    return UserError(message)


def _reduce(result: Converted) -> None:
    architecture = result.architecture
    assert architecture is not None
    result.classes = classes.coco_table()
    result.class_rows = result.classes["ids"]
    unfolded = heads.complete(result.state, architecture.num_head_pairs)
    reduced = classes.reduce_coco91(unfolded, architecture)
    result.state = {key: reduced[key] for key in result.state}
    result.architecture = replace(architecture, num_classes=len(result.class_rows))
    kept = ", and the proposal head its objectness" if architecture.two_stage else ""
    result.notes.append(f"COCO's 91 outputs are now its 80 classes{kept}")


def _note_assumptions(result: Converted) -> None:
    architecture, told = result.architecture, result.told
    assert architecture is not None
    for name, why in (
        ("num_heads", "weights do not show it"),
        ("inverse_sigmoid_eps", ""),
        ("dc5", "weights do not show it; tell dc5=True for a DC5 model"),
    ):
        if name == "dc5" and architecture.num_feature_levels > 1:
            continue
        if name not in told and why:
            result.notes.append(f"{name} is taken to be {getattr(architecture, name)}: {why}")
    if architecture.two_stage and "num_queries" not in told:
        result.notes.append("num_queries is taken to be 300: two-stage weights do not show it")
    if architecture.inverse_sigmoid_eps != 1e-5:
        result.notes.append(
            f"inverse_sigmoid_eps is {architecture.inverse_sigmoid_eps:g}, as it was in training"
        )


def _convert_backbone(source: Source) -> Converted:
    found = imagenet.spelling(source.state)
    if found is None:
        raise UserError(f"checkpoint {source.path!r} holds no ResNet with known names")
    renamed = key_table.read(source.state, imagenet.table(*found))
    _check_kinds(renamed.tensors, source.path)
    config = source.content.get("config_json") or {}
    for name, allowed in backbones.RESNET_FIXED.items():
        if config.get(name, allowed) != allowed:
            raise UserError(
                f"config.json's {name} of {source.path!r} is {config[name]!r}, but only "
                f"{allowed!r} is supported"
            )
    if renamed.unexpected or renamed.disagreeing:
        raise _misfit(source, f"{found[0]} backbone", Mismatch([], renamed.unexpected), renamed, [])
    return Converted(renamed.tensors, imagenet.NAME, told={"owner": found[0]})


def model_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model that an architecture describes; nothing is allocated."""
    with torch.device("meta"):
        model = instantiate(architecture.model_config())
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
