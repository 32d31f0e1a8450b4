# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Build the model of a config that came with somebody's file, and nothing else of it."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from detrex_mammo.config import instantiate, without_pretrained
from detrex_mammo.config_check import targets
from detrex_mammo.errors import UserError

# Whole names, as any other may run code.
_MAY_BUILD = {
    f"detrex_mammo.modeling.{name}"
    for name in (
        "backbone.TimmBackbone",
        "backbone.build_resnet",
        "criterion.SetCriterion",
        "denoising.Denoising",
        "detector.DeformableDETR",
        "hybrid_matching.HybridMatching",
        "matcher.HungarianMatcher",
        "test_time_augmentation.TestTimeAugmentation",
        "tiling.Tiles",
        "transformer.DeformableTransformer",
    )
}


def build_model(cfg: Any, source: str) -> nn.Module:
    """Build ``model`` of a config if it names only classes of this package.

    What is checked is what is built: plain values, every interpolation resolved before.

    Args:
        cfg: a DictConfig or a mapping with ``model``.
        source: what to call it in an error.

    Raises:
        UserError: no model, another class, or it cannot be built.
    """
    try:
        node = cfg.get("model") if isinstance(cfg, Mapping | DictConfig) else None
        if isinstance(node, DictConfig):
            node = OmegaConf.to_container(node, resolve=True)
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise UserError(f"the config of {source!r} describes no model")
        for target in targets(node):
            if target not in _MAY_BUILD:
                raise UserError(
                    f"the config of {source!r} builds {target!r}, which is not run because a "
                    "stranger's file could run anything: build the model from your own config"
                )
        return instantiate(without_pretrained(node))  # weights are in the file
    except UserError:
        raise
    except (
        OmegaConfBaseException, TypeError, ValueError, KeyError, AttributeError, IndexError,
        RuntimeError, RecursionError, ArithmeticError, ImportError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the config of {source!r} builds no model ({type(error).__name__}: {reason})"
        ) from error
