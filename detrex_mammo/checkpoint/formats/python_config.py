# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Read values out of a config that is Python text, as mmengine stores it, without running it."""

import ast
from typing import Any


def read_python_config(text: str) -> dict[str, Any]:
    """Top-level names of a config made of literals and ``dict(...)``.

    Args:
        text: for example ``model = dict(num_queries=300, neck=dict(num_outs=4))``.

    Returns:
        dict: name -> value; what is neither literal nor ``dict(...)`` becomes None, and text that
        is no Python gives an empty dict.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    return {
        target.id: _value(statement.value)
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }


def find(config: Any, path: str) -> Any:
    """The value under dotted names; None where there is none."""
    for name in path.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _value(word.value) for word in node.keywords if word.arg is not None}
    if isinstance(node, ast.Dict):
        keys = [_value(key) if key is not None else None for key in node.keys]
        return {k: _value(v) for k, v in zip(keys, node.values) if isinstance(k, (str, int))}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
