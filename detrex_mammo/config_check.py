# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Strict check of a run's config: every key is one that somebody reads."""

import difflib
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detrex_mammo.errors import UserError

PARTS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
DATALOADER_PARTS = ("train", "test", "evaluator")
# Arguments that the engine supplies when it builds the node.
FILLED_AT_RUN = {"optimizer.params": {"model"}, "dataloader.train": {"sampler", "sampling"}}
_UNIONS = (Union, UnionType)
_NUMBERS: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
}


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar of ``known``, or None."""
    close = difflib.get_close_matches(word, list(known), cutoff=cutoff)

    def likeness(name: str) -> tuple[float, int]:
        """Of names that are equally similar, the one that begins alike: AP50, not AP75, to AP5O."""
        ratio = difflib.SequenceMatcher(None, name, word).ratio()
        return ratio, len(os.path.commonprefix((name, word)))

    return max(close, key=likeness, default=None)


def unknown_key(key: str, known: Iterable[str], source: str) -> UserError:
    """The sentence for a key that nobody reads.

    Args:
        key: dotted, as the user wrote it.
        known: names that are allowed in place of its last part.
        source: file or "the command line".
    """
    parent, _, name = key.rpartition(".")
    known = sorted(set(known))
    prefix = f"{parent}." if parent else ""
    near = nearest(name, known)
    if near:
        hint = f"the nearest valid key is {prefix + near!r}"
    elif known:
        shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
        hint = f"valid here: {shown}"
    else:
        hint = f"{parent!r} has no keys of its own"
    return UserError(f"unknown key {key!r} in {source}: {hint}")


def check_config(cfg: DictConfig, source: str, schema: DictConfig) -> None:
    """Check every key of a run's config.

    Args:
        cfg: the whole config.
        source: what to name in an error.
        schema: the ``train`` section with every key that exists, and values of the right kind.

    Raises:
        UserError: an unknown, missing or unresolvable key, or a value of the wrong kind.
    """
    for name in cfg:
        if name not in PARTS:
            raise unknown_key(str(name), PARTS, source)
    for name in PARTS:
        if cfg.get(name) is None:
            raise UserError(f"{source} does not define {name!r}: a run needs {', '.join(PARTS)}")
    for name in cfg.dataloader:
        if name not in DATALOADER_PARTS:
            raise unknown_key(f"dataloader.{name}", DATALOADER_PARTS, source)
    _check_interpolations(cfg, source)
    _check_section(cfg.train, schema, "train", source)
    for name in PARTS:
        if name != "train":
            _check_nodes(cfg[name], name, source)


def _check_interpolations(cfg: DictConfig, source: str) -> None:
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        key, reason = error.full_key, str(error).splitlines()[0]
        found = re.search(r"node `([^`]+)` is not a container", reason)
        if found is None:
            raise UserError(f"{source}: {key}: {reason}") from error
        null = _full_key(cfg, key, found[1])
        whole = null.replace("dataloader.test", "dataloader.evaluator", 1)
        is_evaluator = whole != null and f"{key}.".startswith(f"{whole}.")
        raise UserError(
            f"{key} in {source} is taken from {null}, which is null: set "
            f"{f'{whole}=null' if is_evaluator else key} too"
        ) from error


def _full_key(cfg: DictConfig, key: str, null: str) -> str:
    """Where in the config ``null`` is, which the interpolation at ``key`` may name relatively."""
    parts = key.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        *above, last = (*parts[:depth], *null.split("."))
        group = OmegaConf.select(cfg, ".".join(above))
        if isinstance(group, DictConfig) and last in group and group[last] is None:
            return ".".join((*above, last))
    return null


def _check_section(section: Any, schema: DictConfig, key: str, source: str) -> None:
    if not isinstance(section, DictConfig):
        keys = ", ".join(f"{key}.{name}" for name in schema)
        raise UserError(f"{key} in {source} must be a group of settings ({keys}), not {section!r}")
    for name, value in section.items():
        if name not in schema:
            raise unknown_key(f"{key}.{name}", schema, source)
        if isinstance(schema[name], DictConfig):
            _check_section(value, schema[name], f"{key}.{name}", source)
        else:
            check_kind(f"{key}.{name}", value, schema[name], source)


def check_kind(key: str, value: Any, example: Any, source: str) -> None:
    """Check that a value is of the same kind as the one it replaces.

    An example of None says nothing; whoever reads the setting checks it.
    """
    kinds: dict[type, tuple[tuple[type, ...], str]] = {
        bool: ((bool,), "true or false"),
        int: ((int, float), "a number"),
        float: ((int, float), "a number"),
        str: ((str,), "text"),
        ListConfig: ((ListConfig, list), "a list"),
    }
    allowed, words = kinds.get(type(example), ((), ""))
    is_right = isinstance(value, allowed) and isinstance(value, bool) == (bool in allowed)
    if not allowed or (is_right and not (isinstance(value, float) and not math.isfinite(value))):
        return
    raise UserError(f"{key} in {source} is {value!r}, but must be {words}")


def _check_nodes(node: Any, key: str, source: str) -> None:
    if isinstance(node, DictConfig):
        if "_target_" in node:
            _check_call(node, key, source)
        for name, value in node.items():
            _check_nodes(value, f"{key}.{name}", source)
    elif isinstance(node, (ListConfig, list)):
        for index, value in enumerate(node):
            _check_nodes(value, f"{key}.{index}", source)


def _check_call(node: DictConfig, key: str, source: str) -> None:
    target = resolve_target(node, key, source)
    known, required, open_ended = call_arguments(target)
    numbers = number_arguments(target)
    for name in node:
        if name in numbers:
            _check_argument(f"{key}.{name}", node[name], numbers[name], source)
        if name == "_target_" or name in known:
            continue
        if not open_ended or nearest(str(name), set(known) - set(node), cutoff=0.8):
            raise unknown_key(f"{key}.{name}", known, source)
    missing = sorted(set(required) - set(node) - FILLED_AT_RUN.get(key, set()))
    if missing:
        raise UserError(f"{key} in {source} lacks {', '.join(f'{key}.{name}' for name in missing)}")


def _check_argument(key: str, value: Any, kind: tuple[type, bool], source: str) -> None:
    """Refuse a list, a word or null where the constructor says that it takes a number."""
    is_call = isinstance(value, DictConfig) and "_target_" in value  # which may give a number
    if is_call or (value is None and kind[1]):
        return
    allowed, words = _NUMBERS[kind[0]]
    if not isinstance(value, allowed) or isinstance(value, bool) != (kind[0] is bool):
        raise UserError(f"{key} is {value!r} in {source}, but must be {words}")


def resolve_target(node: DictConfig, key: str, source: str) -> Callable:
    """The function or class that a lazy node calls."""
    target = node["_target_"]
    if isinstance(target, str):
        target = _locate(target, key, source)
    if not callable(target):
        raise UserError(f"{key}._target_ in {source} is {target!r}, which cannot be called")
    return target


def _locate(name: str, key: str, source: str) -> Any:
    from detectron2.utils.registry import locate

    try:
        return locate(name)
    except Exception as error:
        raise UserError(
            f"{key}._target_ in {source} names {name!r}, which does not exist"
        ) from error


def targets(value: Any) -> Iterator[str]:
    """Names of all that a node, plain values or an object among them, would call."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            target = value["_target_"]
            is_named = hasattr(target, "__qualname__")
            yield f"{target.__module__}.{target.__qualname__}" if is_named else str(target)
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from targets(item)


@cache
def call_arguments(target: Callable) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Names a callable accepts, those it requires, and whether it takes any other name too."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return (), (), True
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = tuple(p.name for p in by_name)
    required = tuple(p.name for p in by_name if p.default is p.empty)
    return known, required, any(p.kind is p.VAR_KEYWORD for p in parameters)


@cache
def number_arguments(target: Callable) -> dict[str, tuple[type, bool]]:
    """Arguments annotated as one number or truth value: its type, and whether None will do.

    Only of this package: others may take more than their annotations say.
    """
    if str(getattr(target, "__module__", "")).partition(".")[0] != __name__.partition(".")[0]:
        return {}
    try:
        parameters = inspect.signature(target, eval_str=True).parameters.values()
    except Exception:  # an annotation may name what is not there
        return {}
    found = {}
    for parameter in parameters:
        kinds, is_union = [parameter.annotation], get_origin(parameter.annotation) in _UNIONS
        kinds = list(get_args(parameter.annotation)) if is_union else kinds
        may_be_none = type(None) in kinds or parameter.default is None
        numbers = [kind for kind in kinds if kind in tuple(_NUMBERS)]
        if len(numbers) == 1 and len(numbers) == len(kinds) - (type(None) in kinds):
            found[parameter.name] = (numbers[0], may_be_none)
    return found
