# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Write converted weights: to our own file, or back to the names of another project."""

import argparse
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from detrex_mammo.checkpoint import heads, key_table
from detrex_mammo.checkpoint.architecture import Architecture
from detrex_mammo.checkpoint.conversion import DETECTORS, OURS, Converted
from detrex_mammo.checkpoint.formats import detrex, huggingface, official
from detrex_mammo.config import config_to_text
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
TARGETS = (OURS, huggingface.NAME, official.NAME, detrex.NAME)


def save(converted: Converted, target: str | Path, to: str, provenance: Mapping[str, Any]) -> Path:
    """Write weights to a new file, or to a new folder for ``huggingface``; whole or not at all.

    Args:
        converted: what to write.
        target: must not exist.
        to: one of ``TARGETS``.
        provenance: goes along: into our own file, beside the weights elsewhere.

    Raises:
        UserError: the target exists or cannot be written, or the format cannot hold the model.
    """
    if to not in TARGETS:
        raise UserError(f"--to is {to!r}, but must be one of {', '.join(TARGETS)}")
    target = require_free(target)
    if to != OURS and converted.architecture is None:
        raise UserError(f"a backbone alone cannot be written as {to}: use --to {OURS}")
    writers: dict[str, Callable] = {
        OURS: _write_ours,
        huggingface.NAME: _write_huggingface,
        official.NAME: _write_official,
        detrex.NAME: _write_detrex,
    }
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        writers[to](converted, partial, dict(provenance))
        os.replace(partial, target)
    except OSError as error:
        raise UserError(
            f"{str(target)!r} cannot be written ({error}): free space, or give another place"
        ) from error
    finally:
        _remove(partial)
    return target


def _remove(path: Path) -> None:
    """Delete what was half written, if anything was."""
    if path.is_dir():
        shutil.rmtree(path)
    elif path.is_file():
        path.unlink()


def require_free(target: str | Path) -> Path:
    """The path of something that does not exist yet.

    Raises:
        UserError: it exists.
    """
    target = Path(target).expanduser()
    if target.exists():
        raise UserError(f"{str(target)!r} exists: remove it, or give another name")
    return target


def names_of(converted: Converted, to: str, **options: Any) -> dict[str, torch.Tensor]:
    """Weights under another format's names, a head for each layer.

    Args:
        converted: a whole detector.
        to: "official", "huggingface" or "detrex".
        options: of the format's table.
    """
    architecture = converted.architecture
    assert architecture is not None
    state = converted.state
    if not architecture.with_box_refine:
        state = heads.unfold(state, architecture.num_head_pairs)
    table = DETECTORS[to].table(
        len(architecture.in_features), architecture.num_extra_levels, **options
    )
    written = key_table.write(state, table, architecture)
    return {name: tensor.contiguous() for name, tensor in written.items()}


def _write_ours(converted: Converted, path: Path, provenance: dict[str, Any]) -> None:
    content: dict[str, Any] = {"model": converted.state, "preprocessing": None}
    content["classes"] = converted.classes
    content["provenance"] = provenance
    if converted.architecture is not None:
        content["config"] = config_to_text(_as_config(converted.architecture))
    torch.save(content, path)


def _as_config(architecture: Architecture) -> Any:
    return OmegaConf.create({"model": architecture.model_config()}, flags={"allow_objects": True})


def _write_official(converted: Converted, path: Path, provenance: dict[str, Any]) -> None:
    assert converted.architecture is not None
    arguments = argparse.Namespace(**official.arguments(converted.architecture))
    content = {"model": names_of(converted, official.NAME), "args": arguments}
    torch.save({**content, "classes": converted.classes, "provenance": provenance}, path)


def _write_detrex(converted: Converted, path: Path, provenance: dict[str, Any]) -> None:
    assert converted.architecture is not None
    told = converted.architecture.to_dict()
    eps = converted.architecture.inverse_sigmoid_eps
    if eps != detrex.INVERSE_SIGMOID_EPS:
        logger.warning(
            "detrex computes inverse_sigmoid with eps %g, these weights need %g: boxes at the "
            "image's border will differ there",
            detrex.INVERSE_SIGMOID_EPS,
            eps,
        )
    content = {"model": names_of(converted, detrex.NAME), "architecture": told}
    torch.save({**content, "classes": converted.classes, "provenance": provenance}, path)


def _write_huggingface(converted: Converted, path: Path, provenance: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    architecture = converted.architecture
    assert architecture is not None
    if architecture.inverse_sigmoid_eps != 1e-5:
        raise UserError(
            f"the model runs with inverse_sigmoid_eps {architecture.inverse_sigmoid_eps:g}, and "
            "transformers always with 1e-05, so its boxes would differ: write another format"
        )
    path.mkdir()
    state = names_of(converted, huggingface.NAME, timm=architecture.dc5)
    save_file(_without_copies(state), path / "model.safetensors", metadata={"format": "pt"})
    files = {
        "config.json": huggingface.config(architecture, converted.classes),
        "preprocessor_config.json": huggingface.processor(
            architecture, converted.told.get("test_size")
        ),
        "provenance.json": provenance,
    }
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (path / name).write_text(text, encoding="utf-8")


def _without_copies(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor once, as transformers itself writes it: a head under the decoder's name."""
    kept: dict[int, str] = {}
    for name in sorted(state, key=lambda name: not name.startswith("model.decoder.")):
        kept.setdefault(state[name].data_ptr(), name)
    return {name: tensor for name, tensor in state.items() if kept[tensor.data_ptr()] == name}
