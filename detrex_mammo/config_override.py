# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""``key=value`` overrides on a config: keys must exist, values are read as plain data."""

import ast
import logging
from collections.abc import Sequence
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, ValueNode

from detrex_mammo.config_check import (
    call_arguments,
    nearest,
    resolve_target,
    unknown_key,
)
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
_SOURCE = "the command line"
_TARGET = "_target_"
_EITHER = {"train.batch_size"}  # a number or a word, as whoever reads it checks
_WORDS = {"null": None, "none": None, "true": True, "false": False}


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Set dotted keys of a config in place.

    Args:
        cfg: the config.
        overrides: ``key=value``; list items by index (``a.0.b=1``). The value is everything after
            the first ``=``: null, true, false, a number, a ``[list]``, a ``{map: 1}``, otherwise
            the text as it stands, so that spaces, ``=`` and parentheses need no quoting here. A
            setting that holds text keeps it text (``train.output_dir=2024``). A ``_target_`` lets a
            node call something else (``optimizer._target_=torch.optim.SGD``); arguments in the
            config that it does not take are left out, with a warning. A key's last value counts.

    Raises:
        UserError: not ``key=value``, an unknown key, or a value of the wrong kind.
    """
    pairs = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"override {override!r} is not of the form key=value")
        if key.startswith(("+", "~")):
            raise UserError(f"override {override!r}: keys cannot be created or removed, only set")
        pairs.append((key, text.strip()))
    # What is called comes first, from the outside in: other keys may be arguments of it alone.
    # The last one alone: another one before it would leave out arguments that this one takes.
    targets = {key: text for key, text in pairs if key.endswith(f".{_TARGET}")}
    others = [pair for pair in pairs if pair[0] not in targets]
    for key, text in [*sorted(targets.items(), key=lambda pair: pair[0].count(".")), *others]:
        _set(cfg, key, text)


def parse_value(text: str, key: str = "value") -> Any:
    """Read one value of the command line as plain data."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if text[:1] in ("'", '"') and text[-1:] == text[:1] and len(text) > 1:
        return text[1:-1]
    if text[:1] in ("[", "{"):
        try:
            return _typed(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise UserError(f"value of {key}: {text!r} is not a valid list or map") from error
    return _number(text)


def _typed(value: Any) -> Any:
    # YAML reads 1e-4 as text; the command line's own reading of numbers is applied inside too.
    if isinstance(value, dict):
        return {name: _typed(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return _number(value) if isinstance(value, str) else value


def _number(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if type(value) in (int, float) else text


def _set(cfg: DictConfig, key: str, text: str) -> None:
    parts = key.replace("[", ".").replace("]", "").split(".")
    node: Any = cfg
    for depth, part in enumerate(parts):
        names = _names(node, ".".join(parts[:depth]))
        if part not in names:
            raise _unknown(cfg, parts, depth, names)
        if depth < len(parts) - 1:
            node = node[int(part)] if isinstance(node, ListConfig) else node.get(part)
    last = int(parts[-1]) if isinstance(node, ListConfig) else parts[-1]
    current = None
    if isinstance(node, ListConfig) or last in node:
        current = node._get_node(last)
        current = current._value() if isinstance(current, ValueNode) else current
    value = parse_value(text, key)
    if last == _TARGET:
        _call(node, ".".join(parts[:-1]), value)
        return
    if isinstance(current, str) and isinstance(value, (int, float)) and "${" not in current:
        value = text if not isinstance(value, bool) and key not in _EITHER else value
    if key not in _EITHER:
        _check_replaceable(key, current, value)
    node[last] = value


def _call(node: DictConfig, key: str, target: Any) -> None:
    """Let a node call something else, without the arguments that it does not take."""
    node[_TARGET] = target
    known, _, open_ended = call_arguments(resolve_target(node, key, _SOURCE))
    for name in [] if open_ended else [name for name in node if name not in (_TARGET, *known)]:
        del node[name]
        logger.warning("%s takes no %s: %s.%s is left out", target, name, key, name)


def _names(node: Any, key: str) -> list[str]:
    """What may stand after ``key``: keys of a group, arguments of a call, items of a list."""
    if isinstance(node, ListConfig):
        return [str(index) for index in range(len(node))]
    if not isinstance(node, DictConfig):
        return []
    names = [str(name) for name in node]
    if _TARGET in node:
        known = call_arguments(resolve_target(node, key, _SOURCE))[0]
        names += [name for name in known if name not in names]
    return names


def _unknown(cfg: DictConfig, parts: list[str], depth: int, names: list[str]) -> UserError:
    """The sentence for an unknown key; what follows in it is corrected too, where it can be."""
    key, node = ".".join(parts), cfg
    corrected: list[str] = []
    for part in parts:
        known = _names(node, ".".join(corrected))
        near = part if part in known else nearest(part, known)
        if near is None:
            return unknown_key(".".join(parts[: depth + 1]), names, _SOURCE)
        corrected.append(near)
        node = node[int(near)] if isinstance(node, ListConfig) else node.get(near)
    return UserError(
        f"unknown key {key!r} in {_SOURCE}: the nearest valid key is {'.'.join(corrected)!r}"
    )


def _check_replaceable(key: str, current: Any, value: Any) -> None:
    """Refuse what cannot be meant: a word for a number, a value for a group of settings."""
    if isinstance(current, DictConfig) and value is not None and not isinstance(value, dict):
        inside = ", ".join(f"{key}.{name}" for name in current if name != "_target_")
        raise UserError(f"{key} is a group of settings, set one of its keys instead: {inside}")
    if isinstance(current, bool) and not isinstance(value, (bool, type(None))):
        raise UserError(f"{key}={value} in {_SOURCE}: it must be true or false")
    is_number = isinstance(current, (int, float)) and not isinstance(current, bool)
    is_word = isinstance(value, str) and not value.startswith("${")
    if is_number and (is_word or isinstance(value, bool)):
        raise UserError(f"{key}={value} in {_SOURCE}: it must be a number")
