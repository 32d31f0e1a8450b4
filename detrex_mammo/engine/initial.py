# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""``train.init_checkpoint``: weights of any project, made to fit the run's model."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from detrex_mammo.checkpoint.adaptation import LoadReport, Policy, adapt
from detrex_mammo.checkpoint.architecture import Architecture, settings_of
from detrex_mammo.checkpoint.classes import COCO_OUTPUTS, stored_table
from detrex_mammo.checkpoint.conversion import (
    DETECTORS,
    OURS,
    Converted,
    convert,
    detect_format,
    read_settings,
)
from detrex_mammo.checkpoint.formats import imagenet, own
from detrex_mammo.checkpoint.loading import load_weights
from detrex_mammo.checkpoint.reading import Source, read_source
from detrex_mammo.config import instantiate, without_pretrained
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
# Settings that two checkpoints of equal names and shapes may differ in, or that explain why names
# and shapes do.
_COMPARED = (
    "two_stage",
    "with_box_refine",
    "dc5",
    "num_feature_levels",
    "num_heads",
    "num_encoder_layers",
    "num_decoder_layers",
    "num_encoder_points",
    "num_decoder_points",
    "embed_dim",
)
# Counts the batches that a batch norm has seen; nothing is computed from it.
_COUNTER = "num_batches_tracked"
# What weights show only if the number of heads is known.
_NEED_HEADS = ("num_heads", "num_encoder_points", "num_decoder_points")


@dataclass
class Initial:
    """Weights to start from, by our names.

    Attributes:
        state: name -> tensor.
        format: whose they were.
        class_names: of the outputs; empty if nobody knows.
        told: settings the file tells.
        architecture: None for our own files and backbones.
        by_image: images were normalised by their own statistics; None if the file does not tell.
    """

    state: Mapping[str, Any]
    format: str
    class_names: Sequence[str] = ()
    told: Mapping[str, Any] | None = None
    architecture: Architecture | None = None
    by_image: bool | None = None


def build_model(cfg: DictConfig, is_filled: bool) -> nn.Module:
    """Build a run's model.

    Args:
        cfg: the run's config.
        is_filled: every weight of the backbone will come from a checkpoint, so none is fetched.
    """
    return instantiate(without_pretrained(cfg.model) if is_filled else cfg.model)


def load_initial(
    model: nn.Module, cfg: DictConfig, class_names: Sequence[str] = (), evaluate: bool = False
) -> None:
    """Load ``train.init_checkpoint`` into a model.

    Args:
        model: the bare model.
        cfg: the run's config; ``model.inverse_sigmoid_eps`` becomes that of the weights.
        class_names: of the data set.
        evaluate: every weight must come from the file, as nothing will be trained.

    Raises:
        UserError: the file is missing, damaged, unknown, of another model, or of other classes.
    """
    path = cfg.train.init_checkpoint
    policy = _policy(cfg, evaluate)
    initial = read_initial(path, model, cfg)
    if initial.format == imagenet.NAME:
        _load_backbone(model, initial, path, evaluate)
        return
    _check_settings(initial, cfg, path)
    _adopt_eps(initial, model, cfg)
    _normalise_alike(initial, model, cfg, evaluate)
    state, report = adapt(
        initial.state, model.state_dict(), policy, class_names, initial.class_names
    )
    if evaluate and report.fresh_classes:
        raise UserError(
            f"--eval-only evaluates the checkpoint's own heads, but {path!r} has none for "
            f"{', '.join(report.fresh_classes)}: train them first"
        )
    _require_finite(state, model, path)
    load_weights(model, state, path, lambda name: name.endswith(_COUNTER))
    _tell(report, path, initial, policy)


def read_initial(path: str, model: nn.Module, cfg: DictConfig) -> Initial:
    """Read a checkpoint of any format for a model, the one that ``cfg.model`` describes."""
    source = read_source(path)
    _choose_weights(source, (cfg.train.get("init") or {}).get("weights", "model"))
    if set(source.state) == set(model.state_dict()):
        return _own(source)
    name = _format(source)
    if name == OURS:
        return _own(source)
    policy = "keep" if getattr(model, "num_classes", None) == COCO_OUTPUTS else "auto"
    converted: Converted = convert(source, name, _assume(source, name, cfg), policy)
    for note in converted.notes:
        logger.info("%s: %s", path, note)
    return Initial(
        converted.state, name, converted.classes["names"], converted.told, converted.architecture
    )


def _choose_weights(source: Source, name: str) -> None:
    """Put the average in place of the weights, if that is wanted."""
    if name not in ("model", "ema"):
        raise UserError(f"train.init.weights is {name!r}, but must be 'model' or 'ema'")
    average = source.content.pop("ema", None)
    if name == "ema":
        if not isinstance(average, Mapping) or not isinstance(average.get("model"), Mapping):
            raise UserError(
                f"train.init.weights is 'ema', but checkpoint {source.path!r} holds no average: "
                "set it to 'model', or train with train.ema.enabled=True"
            )
        source.state = dict(average["model"])
    if average is not None:
        text = "%s holds weights and their average: train.init.weights=%s takes %s"
        taken = "the average" if name == "ema" else "the weights"
        logger.info(text, source.path, name, taken)


def _assume(source: Source, name: str, cfg: DictConfig) -> dict[str, Any]:
    """What neither the file's weights nor its settings show, as the run's model has it."""
    if name == imagenet.NAME or "num_heads" in DETECTORS[name].settings(source.content)[0]:
        return {}
    ours = settings_of(cfg.get("model"))
    return {"num_heads": ours["num_heads"]} if "num_heads" in ours else {}


def _format(source: Source) -> str:
    """The format; weights of a model that is no Deformable DETR are taken as they are."""
    try:
        return detect_format(source)
    except UserError as error:
        if imagenet.is_caffe2(source.state):
            raise
        logger.warning("%s", error)
        return OURS


def _own(source: Source) -> Initial:
    told, _ = read_settings(own, source)
    names = stored_table(source.content)["names"]
    by_image = own.normalises_by_image(source.content)
    return Initial(source.state, OURS, names, told, by_image=by_image)


def _policy(cfg: DictConfig, evaluate: bool) -> Policy:
    settings = OmegaConf.to_container(cfg.train.get("init") or OmegaConf.create({}), resolve=True)
    settings.pop("weights", None)
    # null: as Policy has it; so a mapping may take the place of null where "same" is text
    policy = Policy(**{name: value for name, value in settings.items() if value is not None})
    keeps_heads = policy.classes != "reinitialise" and policy.objectness and policy.boxes
    if evaluate and not keeps_heads:
        raise UserError(
            "--eval-only evaluates the checkpoint's own heads, but train.init gives some up: leave "
            "train.init as it is"
        )
    return policy


def _load_backbone(model: nn.Module, initial: Initial, path: str, evaluate: bool) -> None:
    if evaluate:
        raise UserError(
            f"checkpoint {path!r} holds a backbone only, nothing to evaluate: "
            "set train.init_checkpoint to the weights of a whole model"
        )
    wanted = model.state_dict()
    # A file may go deeper than the stages that the model uses.
    deepest = max((n.split(".")[1] for n in wanted if n.startswith("backbone.res")), default="")
    state = {
        name: value
        for name, value in initial.state.items()
        if name in wanted or not deepest or name.split(".")[1] <= deepest or "stem" in name
    }
    _require_finite(state, model, path)
    kept = load_weights(model, state, path, _not_in_a_backbone_file)
    logger.info(
        "loaded %d backbone tensors from %s; %d tensors outside the backbone start at random",
        len(state),
        path,
        sum(not name.startswith("backbone.") for name in kept),
    )


def _require_finite(state: Mapping[str, torch.Tensor], model: nn.Module, path: str) -> None:
    buffers = dict(model.named_buffers())  # a mask among them may hold -inf
    bad = [
        name
        for name, value in state.items()
        if (value.isnan().any() if name in buffers else not value.isfinite().all())
    ]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UserError(
            f"checkpoint {path!r} holds weights that are not finite ({bad[0]}{more}), from which "
            "nothing can be computed: take an earlier one"
        )


def _not_in_a_backbone_file(name: str) -> bool:
    return not name.startswith("backbone.") or name.endswith(_COUNTER)


def _check_settings(initial: Initial, cfg: DictConfig, path: str) -> None:
    """Refuse weights of another variant by its name, before names and shapes do."""
    told = dict(initial.told or {})
    seen = {**(initial.architecture.to_dict() if initial.architecture else {}), **told}
    ours = settings_of(cfg.get("model"))
    for name in _COMPARED:
        if name not in seen or name not in ours or seen[name] == ours[name]:
            continue
        if name not in told and (
            name == "dc5" or (name in _NEED_HEADS and "num_heads" not in told)
        ):
            continue
        raise UserError(
            f"checkpoint {path!r} has {name} {seen[name]!r}, but the config's model "
            f"{ours[name]!r}: use the config it was trained with"
        )


def _normalise_alike(initial: Initial, model: nn.Module, cfg: DictConfig, evaluate: bool) -> None:
    """Evaluate weights on images normalised as in their training; training may choose its own."""
    told, ours = initial.told or {}, settings_of(cfg.get("model"))
    _normalise_by_image_alike(initial, model, evaluate)
    for name in ("pixel_mean", "pixel_std"):
        if name not in told or name not in ours or not hasattr(model, name):
            continue
        stored = [float(value) for value in told[name]]
        if all(abs(one - other) <= 0.01 for one, other in zip(stored, ours[name])):
            continue
        if evaluate:
            buffer = getattr(model, name)
            buffer.copy_(torch.tensor(stored).view_as(buffer))
            cfg.model[name] = stored
            text = "model.%s is now %s, as these weights need, not %s"
        else:
            text = "these weights were trained with model.%s %s, this run has %s"
        logger.warning(text, name, stored, list(ours[name]))


def _normalise_by_image_alike(initial: Initial, model: nn.Module, evaluate: bool) -> None:
    """Weights of images normalised by their own statistics know no others, and the reverse."""
    stored = initial.by_image
    if initial.architecture is not None:
        stored = False  # no other project's models do it
    ours = getattr(model, "normalizes_by_image", None)
    if stored is None or ours is None or stored == ours:
        return
    ways = {True: "each image's own mean and deviation", False: "a fixed mean and deviation"}
    text = (
        f"these weights were trained on images normalised by {ways[stored]}, but model.pixel_mean "
        f"stands for {ways[not stored]}: set model.pixel_mean and model.pixel_std "
        f"{'to null' if stored else 'to numbers'}"
    )
    if evaluate:
        raise UserError(text)
    logger.warning(text)


def _adopt_eps(initial: Initial, model: nn.Module, cfg: DictConfig) -> None:
    """Run weights with the eps they were trained with: detrex's with 1e-3, all others 1e-5."""
    architecture = initial.architecture
    eps = architecture.inverse_sigmoid_eps if architecture else None
    eps = (initial.told or {}).get("inverse_sigmoid_eps", eps)
    adopt_eps(eps, model, cfg)


def stored_eps(checkpoint: Mapping[str, Any]) -> float | None:
    """``inverse_sigmoid_eps`` in the config of one of our checkpoints."""
    return own.settings(checkpoint)[0].get("inverse_sigmoid_eps")


def adopt_eps(eps: float | None, model: nn.Module, cfg: DictConfig) -> None:
    """Give model and config the ``inverse_sigmoid_eps`` of weights; None leaves them alone."""
    mine = getattr(model, "inverse_sigmoid_eps", None)
    if eps is None or mine is None or float(eps) == float(mine):
        return
    model.inverse_sigmoid_eps = float(eps)
    cfg.model.inverse_sigmoid_eps = float(eps)
    logger.warning("model.inverse_sigmoid_eps is now %g, as these weights need, not %g", eps, mine)


def _tell(report: LoadReport, path: str, initial: Initial, policy: Policy) -> None:
    logger.info(
        "loaded %s (%s format): %.1f %% of the parameters come from the file\n%s",
        path,
        initial.format,
        100 * report.share,
        report.describe(),
    )
    if report.share < policy.min_share:
        raise UserError(
            f"only {100 * report.share:.1f} % of the model's parameters come from {path!r}, less "
            f"than train.init.min_share, {100 * policy.min_share:g} %: lower it if that is meant"
        )
