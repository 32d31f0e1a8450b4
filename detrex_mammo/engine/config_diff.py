# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What differs between the configs of two runs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detrex_mammo.checkpoint.reading import read_checkpoint
from detrex_mammo.config import config_to_text, get_config
from detrex_mammo.errors import UserError

ABSENT = "(not set)"
MOST_CHARACTERS = 60  # of a value in the table


def read_text(source: str) -> str:
    """The config of a run as YAML, functions and classes by name, interpolations kept.

    Args:
        source: a run's folder, a config file (``.py`` or ``.yaml``), or a checkpoint of a run.

    Raises:
        UserError: none of these, or one that lacks what its values refer to.
    """
    text = _stored_text(source)
    try:
        OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"config {source!r} is not whole: {error.full_key}: {reason}") from error
    return text


def _stored_text(source: str) -> str:
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.yaml").is_file():
            raise UserError(f"folder {source!r} holds no config.yaml: give the folder of a run")
        path = path / "config.yaml"
    if path.suffix == ".pth" and path.is_file():
        text = read_checkpoint(str(path)).get("config")
        if not isinstance(text, str):
            raise UserError(f"checkpoint {source!r} holds no config: give the config file itself")
        return text
    if path.suffix in ("", ".pth") and not path.exists():
        raise UserError(
            f"{source!r} does not exist: give the folder of a run, a config file or a checkpoint"
        )
    given = str(path) if path.is_file() else source  # else one that travels with the package
    return config_to_text(get_config(given))


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and plain values of a config; an empty group or list is a value."""
    if isinstance(value, Mapping):
        items = list(value.items())
    else:
        items = list(enumerate(value)) if isinstance(value, list) else []
    if not items:
        yield key, value
    for name, item in items:
        yield from flat(item, f"{key}.{name}".lstrip("."))


def differences(text: str, other_text: str) -> list[tuple[str, Any, Any]]:
    """Key and both values of every setting that differs, in the order of the first config.

    Values are compared, not how they are written. A key that both interpolate from the same other
    key is left out: that other key is told.

    Args:
        text: YAML of a config.
        other_text: of another one.
    """
    raw, other_raw = (dict(flat(yaml.safe_load(t))) for t in (text, other_text))
    values, other_values = (
        dict(flat(OmegaConf.to_container(OmegaConf.create(t), resolve=True)))
        for t in (text, other_text)
    )
    found = []
    for key in dict.fromkeys([*values, *other_values]):
        one, other = values.get(key, ABSENT), other_values.get(key, ABSENT)
        if one == other and isinstance(one, bool) == isinstance(other, bool):
            continue
        if "${" in str(raw.get(key)) and raw[key] == other_raw.get(key):
            continue  # the same interpolation
        found.append((key, one, other))
    return found


def format_differences(rows: Sequence[tuple[str, Any, Any]], names: tuple[str, str]) -> str:
    """A table of three columns: key and the values of both."""
    cells = [("key", *names), *((key, _cell(one), _cell(other)) for key, one, other in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(2)]
    return "\n".join(
        f"{key:<{widths[0]}}  {one:<{widths[1]}}  {other}" for key, one, other in cells
    )


def _cell(value: Any) -> str:
    text = value if value == ABSENT else yaml.safe_dump(value, default_flow_style=True, width=10**6)
    text = text.removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."
