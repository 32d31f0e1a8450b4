# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Run the batch of a ``nan_step_N`` folder again, and find where it stops being finite."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from detrex_mammo.checkpoint.loading import load_weights
from detrex_mammo.checkpoint.reading import read_checkpoint, weights_of
from detrex_mammo.checkpoint.trusted import build_model
from detrex_mammo.config import instantiate, load_config, load_config_text, without_pretrained
from detrex_mammo.engine.nan_dump import CONFIG, FACTS, STATE, batch_name, unpack
from detrex_mammo.errors import UserError

_AMP = {"": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Finding:
    """What one batch showed, in the order in which it was computed.

    Attributes:
        inputs: images and targets that are not finite.
        weights: parameters and buffers that are not.
        modules: (name, of its output: numbers that are not finite, all numbers).
        losses: those that are not.
        gradients: parameters whose gradient is not, the last of the model first.
    """

    inputs: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    modules: list[tuple[str, int, int]] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    gradients: list[str] = field(default_factory=list)

    @property
    def is_finite(self) -> bool:
        """Whether everything was."""
        return not any((self.inputs, self.weights, self.modules, self.losses, self.gradients))

    def describe(self) -> str:
        """Several lines; the first is where it begins."""
        parts = [
            ("input", self.inputs),
            ("weight", self.weights),
            ("module", [f"{name}: {bad} of {count} numbers" for name, bad, count in self.modules]),
            ("loss", self.losses),
            ("gradient", self.gradients),
        ]
        rows = [f"  {kind:<8}  {text}" for kind, found in parts for text in found]
        if not rows:
            return "everything is finite"
        return "\n".join([f"begins in {rows[0].strip()}", *rows])


class Replay:
    """The model of a dump, as it was before the step.

    Args:
        folder: ``nan_step_N``.
        device: "cpu" or "cuda".
        config_file: whose model to build; without one, that of the folder, which may be a
            stranger's, so only from classes of this package.

    Raises:
        UserError: it is no such folder, it is damaged, or its model is of other classes.
    """

    def __init__(self, folder: Path, device: str = "cpu", config_file: str | None = None):
        self.folder, self.device = Path(folder), device
        try:
            facts = json.loads((self.folder / FACTS).read_text(encoding="utf-8"))
            self.amp, self.processes = _AMP[facts["amp"]], int(facts["processes"])
            text = (self.folder / CONFIG).read_text(encoding="utf-8")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{str(folder)!r} is not a folder nan_step_N of a run that stopped "
                f"({type(error).__name__}: {error})"
            ) from error
        if config_file is None:
            name = str(self.folder / CONFIG)
            self.model = _of_a_stranger(load_config_text(text, name), name)
        else:
            self.model = instantiate(without_pretrained(load_config(config_file).model))
        path = self.folder / STATE
        load_weights(self.model, weights_of(read_checkpoint(path), path), str(path))
        self.model.to(device).train()

    def ranks(self) -> list[int]:
        """Processes whose batches are there.

        Raises:
            UserError: none are.
        """
        names = [batch_name(rank) for rank in range(self.processes)]
        found = [rank for rank, name in enumerate(names) if (self.folder / name).is_file()]
        if not found:
            raise UserError(
                f"{str(self.folder)!r} holds none of the batches of its run, {names[0]} to "
                f"{names[-1]}: copy them there too"
            )
        return found

    def run(self, rank: int) -> Iterator[Finding]:
        """Each batch of a process, forward and backward.

        Raises:
            UserError: the file holds something else.
        """
        path = self.folder / batch_name(rank)
        try:
            batches = [
                (batch["rng"], unpack(batch["items"])) for batch in read_checkpoint(path)["batches"]
            ]
            for states, _ in batches:
                torch.Generator().set_state(states["cpu"])
        except (KeyError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
            raise UserError(
                f"{str(path)!r} holds no batches of a step ({type(error).__name__}: {error}): "
                "copy it again"
            ) from error
        for states, items in batches:
            torch.set_rng_state(states["cpu"])
            if self.device == "cuda" and "cuda" in states:
                torch.cuda.set_rng_state(states["cuda"])
            yield self._step(items)

    def _step(self, items: list[dict[str, Any]]) -> Finding:
        found = Finding(inputs=bad_inputs(items))
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        found.weights = [name for name, value in tensors.items() if not_finite(value)[0]]
        handles = [
            module.register_forward_hook(_watch(found, name or "the whole model"))
            for name, module in self.model.named_modules()
        ]
        try:
            with torch.autocast(self.device, dtype=self.amp, enabled=self.amp is not None):
                losses = self.model(items)
        finally:
            for handle in handles:
                handle.remove()
        values = {name: float(value.detach()) for name, value in losses.items()}
        found.losses = [f"{name} = {v}" for name, v in values.items() if not math.isfinite(v)]
        self.model.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        gradients = [(n, p.grad) for n, p in self.model.named_parameters() if p.grad is not None]
        found.gradients = [name for name, grad in gradients[::-1] if not_finite(grad)[0]]
        return found


def _of_a_stranger(cfg: DictConfig, name: str) -> nn.Module:
    try:
        return build_model(cfg, name)
    except UserError as error:
        raise UserError(f"{error}, such as --config-file {name} if this run is yours") from error


def _watch(found: Finding, name: str) -> Any:
    """A hook: modules come to their end from the inside out, so the first one is where it begins.

    The losses are the output of the whole model and have their own lines.
    """

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        bad, count = (sum(pair) for pair in zip((0, 0), *map(not_finite, tensors_in(output))))
        if bad:
            found.modules.append((name, bad, count))

    return hook


def bad_inputs(items: list[dict[str, Any]]) -> list[str]:
    """Images, and fields of targets, that are not finite."""
    found = []
    for item in items:
        name = item.get("file_name", item.get("image_id"))
        for key, value in item.items():
            bad = sum(not_finite(tensor)[0] for tensor in tensors_in(value))
            if bad:
                found.append(f"{key} of {name}: {bad} numbers")
    return found


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in dicts, lists, boxes and instances."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(value, "get_fields"):
        yield from tensors_in(value.get_fields())
    elif hasattr(value, "tensor"):
        yield from tensors_in(value.tensor)


def not_finite(value: Tensor) -> tuple[int, int]:
    """How many numbers are NaN or infinite, and how many there are."""
    return int((~value.isfinite()).sum()), value.numel()
