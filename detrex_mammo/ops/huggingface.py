# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Gives the models of Hugging Face's transformers our kernels, and takes them back.

    from detrex_mammo.ops import patch_transformers
    patch_transformers()  # Deformable DETR, Grounding DINO, Mask2Former, RT-DETR, ...

What the modules of transformers call is replaced, so models made before have the kernels, too.

B batch, S tokens, Q queries, M heads, D channels per head, L levels, P points.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import ModuleType

from torch import Tensor

from detrex_mammo.errors import UserError
from detrex_mammo.ops.dispatch import SpatialShapes, ms_deform_attn

# Folders of transformers/models that call one of the three functions below. D-FINE and DEIMv2 do
# not: each of their layers keeps the function that it was made with.
MODELS = (
    *("deformable_detr", "deta", "grounding_dino", "mm_grounding_dino", "omdet_turbo"),
    *("rt_detr", "rt_detr_v2", "rf_detr", "lw_detr"),
    *("mask2former", "oneformer", "pp_doclayout_v2", "pp_doclayout_v3", "pp_doclayout_v4"),
)
Place = tuple[type | ModuleType, str]
_originals: dict[Place, Callable[..., Tensor]] = {}


class TransformersPatch:
    """What one call of :func:`patch_transformers` did; leaving it as a context undoes just that.

    Attributes:
        models (tuple[str, ...]): folders of transformers/models that have the kernels now.
    """

    def __init__(self, models: Iterable[str], places: Iterable[Place]) -> None:
        self.models = tuple(models)
        self._places = tuple(places)

    def __enter__(self) -> "TransformersPatch":
        return self

    def __exit__(self, *exception: object) -> None:
        _restore(self._places)


def patch_transformers() -> TransformersPatch:
    """Let Deformable DETR of transformers and its relatives call :func:`ms_deform_attn`.

    A second call changes nothing. :func:`unpatch_transformers` undoes all calls; as a context
    (``with patch_transformers(): ...``) the end restores what was before it. A model for which
    transformers fetched a kernel of its own (``use_kernels=True``) keeps that.

    Returns:
        TransformersPatch: tells which models have the kernels.

    Raises:
        UserError: transformers is not installed, or has no such model.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            "patch_transformers needs the package transformers, which is not installed; "
            "pip install 'detrex_mammo[hf]'"
        )
    models, changed = [], []
    for model in MODELS:
        for place, replacement in _replacements(model):
            models.append(model)
            if place not in _originals:
                _originals[place] = getattr(*place)
                setattr(*place, replacement)
                changed.append(place)
    if not models:
        version = importlib.import_module("transformers").__version__
        raise UserError(
            f"patch_transformers found nothing to patch in transformers {version}; "
            "it knows the models of 4.40 to 5.23"
        )
    return TransformersPatch(dict.fromkeys(models), changed)


def unpatch_transformers() -> None:
    """Give transformers its own functions back, however often it was patched."""
    _restore(tuple(_originals))


def _restore(places: Iterable[Place]) -> None:
    for place in places:
        if place in _originals:
            setattr(*place, _originals.pop(place))


def _replacements(model: str) -> Iterator[tuple[Place, Callable[..., Tensor]]]:
    """What to put where, if this version of transformers has the model as we know it."""
    try:
        module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    except ImportError:  # another version, or the model needs a package that is missing
        return
    layer = getattr(module, "MultiScaleDeformableAttention", None)
    v2 = "multi_scale_deformable_attention_v2"
    for owner, name, function in (
        (layer if isinstance(layer, type) else None, "forward", _forward),
        (module, "multi_scale_deformable_attention", _sample),
        (module, v2, partial(_sample_v2, _original(module, v2))),
    ):
        original = _original(owner, name)
        if original and _parameters(original) == _parameters(function):
            yield (owner, name), function


def _original(owner: type | ModuleType | None, name: str) -> Callable[..., Tensor] | None:
    return _originals.get((owner, name)) or getattr(owner, name, None)


def _parameters(function: Callable[..., Tensor]) -> list[str]:
    return list(inspect.signature(function).parameters)


def _forward(
    self,
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: Sequence[tuple[int, int]],
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """``MultiScaleDeformableAttention.forward``; the list spares a synchronisation."""
    shapes = value_spatial_shapes_list
    return ms_deform_attn(value, shapes, None, sampling_locations, attention_weights)


def _sample(
    value: Tensor,
    value_spatial_shapes: SpatialShapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """``multi_scale_deformable_attention``, also of every model before transformers 4.50."""
    return ms_deform_attn(value, value_spatial_shapes, None, sampling_locations, attention_weights)


def _sample_v2(
    original: Callable[..., Tensor],
    value: Tensor,
    value_spatial_shapes: SpatialShapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points_list: Sequence[int],
    method: str = "default",
) -> Tensor:
    """``multi_scale_deformable_attention_v2``, whose levels and points are one dimension.

    Args:
        original (Callable): samples when ``method`` is not "default" (bilinear) or the levels have
            unlike numbers of points.
        value (Tensor): (B, S, M, D).
        value_spatial_shapes (SpatialShapes): L rows (h, w).
        sampling_locations (Tensor): (B, Q, M, sum of points, 2) as (x, y), in [0, 1].
        attention_weights (Tensor): (B, Q, M, sum of points).
        num_points_list (Sequence[int]): L numbers of points.
        method (str): "default" or "discrete".

    Returns:
        Tensor: (B, Q, M*D).
    """
    places = sampling_locations, attention_weights
    if method != "default" or len(set(num_points_list)) > 1:
        return original(value, value_spatial_shapes, *places, num_points_list, method)
    grid = (len(num_points_list), num_points_list[0])
    locations, weights = (tensor.unflatten(3, grid) for tensor in places)
    return ms_deform_attn(value, value_spatial_shapes, None, locations, weights)
