# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Lazy configs, loaded fresh and checked strictly.

A run's config has exactly five parts: ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier``
and ``train``. A key that nobody reads is a mistake wherever it is written (config file, command
line, reloaded ``config.yaml``) and ends in one sentence with the nearest valid key.
"""

import builtins
import copy
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from detrex_mammo.config_check import check_config, nearest, resolve_target
from detrex_mammo.config_override import apply_overrides
from detrex_mammo.errors import UserError

SHIPPED_FOLDERS = ("configs", "projects")
_SUFFIXES = (".py", ".yaml", ".yml")


def shipped_root() -> Path:
    """Folder that holds ``configs/`` and ``projects/``: the installed package or the clone."""
    package = Path(__file__).resolve().parent
    return package if (package / "configs").is_dir() else package.parent


def find_shipped(path: str | Path) -> str:
    """Absolute path of a file that travels with the package.

    Args:
        path: relative to the repository root, such as ``configs/common/train.py``.

    Raises:
        UserError: no such file; the message has the nearest names.
    """
    found = shipped_root() / path
    if found.is_file():
        return str(found)
    raise UserError(f"no file {str(path)!r} travels with detrex_mammo{_near_files(path)}")


def find_config(path: str | Path) -> str:
    """Path of a config file: as given, else as shipped with the package, from any folder."""
    given = Path(path).expanduser()
    if given.suffix not in _SUFFIXES:
        raise UserError(f"config file {str(path)!r} must end in .py or .yaml")
    if given.is_file():
        return str(given.resolve())
    shipped = shipped_root() / given
    if not given.is_absolute() and shipped.is_file():
        return str(shipped)
    raise UserError(f"config file {str(path)!r} does not exist{_near_files(path)}")


def get_config(path: str | Path) -> DictConfig:
    """Load a config file anew: two calls never share a value.

    Args:
        path: a ``.py`` or ``.yaml`` file, as given or relative to the repository root; the files
            that travel with an installed package are found from any folder.

    Raises:
        UserError: the file is missing or does not load; the message names file and line.
    """
    found = find_config(path)
    if found.endswith(".py"):
        return _load_python(found)
    return load_config_text(Path(found).read_text(encoding="utf-8"), found)


def load_config_text(text: str, source: str) -> DictConfig:
    """Config from the text of a ``config.yaml``, for example the one inside a checkpoint.

    Args:
        text: YAML; only plain values are allowed, no Python objects.
        source: what to call it in an error.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"config {source!r} is not plain YAML: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"config {source!r} must hold a mapping, not {type(content).__name__}")
    return OmegaConf.create(content, flags={"allow_objects": True})


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Load a run's config, apply ``key=value`` overrides and check the result.

    Args:
        path: as for :func:`get_config`.
        overrides: such as ``["train.max_iter=100", "model.num_classes=2"]``.

    Raises:
        UserError: an unknown key anywhere, with the nearest valid one.
    """
    cfg, schema = get_config(path), train_schema()
    check_config(cfg, str(path), schema)
    # A config.yaml of an earlier version lacks the settings that came later.
    cfg.train = OmegaConf.merge(schema, cfg.train)
    apply_overrides(cfg, overrides)
    if overrides:
        check_config(cfg, "the command line", schema)
    return cfg


def train_schema() -> DictConfig:
    """The ``train`` section of ``configs/common/train.py``: every key that a run reads."""
    return get_config(find_shipped("configs/common/train.py")).train


def config_to_text(cfg: DictConfig) -> str:
    """YAML of a config that :func:`load_config_text` reads back; interpolations are kept.

    Raises:
        UserError: a value (a lambda, an object) that no file can hold.
    """
    plain = _to_plain(OmegaConf.to_container(cfg, resolve=False), "")
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def resolved(cfg: DictConfig) -> DictConfig:
    """A copy in which every interpolation is replaced by its value."""
    content = OmegaConf.to_container(cfg, resolve=True)
    return OmegaConf.create(content, flags={"allow_objects": True})


def save_config(cfg: DictConfig, path: str | Path) -> None:
    """Write a config as a ``.yaml`` file that loads, and runs, again."""
    Path(path).write_text(config_to_text(cfg), encoding="utf-8")


def instantiate(cfg: Any) -> Any:
    """Build what a lazy node describes; detectron2's own function, named here once."""
    from detectron2.config import instantiate as build

    return build(cfg)


def without_pretrained(model: Any) -> Any:
    """A model's node, a config or plain values, whose backbone fetches no weights.

    For a model that a checkpoint is about to fill; the node that is given stays as it is.
    """
    backbone = model.get("backbone")
    if not isinstance(backbone, (DictConfig, Mapping)) or "pretrained" not in backbone:
        return model
    model = copy.deepcopy(model)
    model["backbone"]["pretrained"] = False
    return model


def instantiate_with(node: DictConfig, key: str, **more: Any) -> Any:
    """Build a lazy node with arguments that only the running program has.

    Args:
        node: lazy call.
        key: its place in the config, for errors.
        more: arguments beside, or instead of, those in the node.
    """
    arguments = {name: instantiate(node[name]) for name in node if name not in ("_target_", *more)}
    return resolve_target(node, key, "the config")(**arguments, **more)


@contextmanager
def _import_restored() -> Iterator[None]:
    """Put Python's import back, whatever happens: detectron2's loader leaves its patch behind."""
    original = builtins.__import__
    try:
        yield
    finally:
        builtins.__import__ = original


def _load_python(path: str) -> DictConfig:
    from detectron2.config import LazyConfig

    with _import_restored():
        try:
            return LazyConfig.load(path)
        except Exception as error:
            raise UserError(_describe_failure(error, path)) from error


def _describe_failure(error: Exception, path: str) -> str:
    """One sentence with file, line and reason of a config file that did not load."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SyntaxError) and cause.filename:
            text = f"config file {cause.filename!r}, line {cause.lineno}, has a syntax error"
            return f"{text}: {cause.msg}"
        cause = cause.__cause__
    place = f"config file {path!r}"
    for frame, line in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__package__") or "").startswith("detectron2._cfg_loader"):
            place = f"config file {frame.f_globals['__file__']!r}, line {line},"
    reason = " ".join(str(error).split())
    if isinstance(error, KeyError):
        reason = f"the file it imports from does not define {reason}"
    return f"{place} does not load: {type(error).__name__}: {reason}"


def _near_files(path: str | Path) -> str:
    root = shipped_root()
    known = [
        str(file.relative_to(root))
        for folder in SHIPPED_FOLDERS
        for file in sorted((root / folder).rglob("*.py"))
    ]
    by_name = {Path(name).name: name for name in known}
    near = nearest(str(path), known) or by_name.get(nearest(Path(path).name, by_name) or "")
    return f"; the nearest file that travels with the package is {near!r}" if near else ""


def _to_plain(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {name: _to_plain(item, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(item, f"{key}.{index}") for index, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value):
        return _name_of(value, key)
    raise UserError(f"{key} is a {type(value).__name__}, which no config.yaml can hold: use a node")


def _name_of(target: Callable, key: str) -> str:
    from detectron2.utils.registry import locate

    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    try:
        found = locate(name)
    except Exception:
        found = None
    if found is not target:
        raise UserError(f"{key} is {target!r}, which no name leads to: use a function of a module")
    return name


__all__ = [
    "config_to_text",
    "find_config",
    "find_shipped",
    "get_config",
    "instantiate",
    "instantiate_with",
    "load_config",
    "load_config_text",
    "resolved",
    "save_config",
    "train_schema",
    "without_pretrained",
]
