# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Configs that are Python text are read, never run."""

from pathlib import Path

import pytest

from detrex_mammo.checkpoint.formats.python_config import find, read_python_config

TEXT = """
model = dict(
    type='DeformableDETR',
    num_queries=300,
    with_box_refine=True,
    bbox_head=dict(num_classes=80, loss=dict(alpha=0.25, weight=-2.0)),
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=(58.395, 57.12)),
    plain={'a': 1, 'b': {'c': None}},
)
optim_wrapper = dict(lr=1e-4)
_base_ = ['../_base_/x.py']
"""


def test_values_of_a_config() -> None:
    config = read_python_config(TEXT)
    assert find(config, "model.num_queries") == 300
    assert find(config, "model.with_box_refine") is True
    assert find(config, "model.bbox_head.num_classes") == 80
    assert find(config, "model.bbox_head.loss") == {"alpha": 0.25, "weight": -2.0}
    assert find(config, "model.data_preprocessor.mean") == [123.675, 116.28, 103.53]
    assert find(config, "model.data_preprocessor.std") == [58.395, 57.12]
    assert find(config, "model.plain") == {"a": 1, "b": {"c": None}}
    assert find(config, "optim_wrapper.lr") == 1e-4
    assert find(config, "_base_") == ["../_base_/x.py"]


@pytest.mark.parametrize("path", ["none", "model.none", "model.num_queries.x", "model.plain.a.b"])
def test_what_is_not_there_is_none(path: str) -> None:
    assert find(read_python_config(TEXT), path) is None
    assert find(None, path) is None


@pytest.mark.parametrize(
    "text",
    [
        "open({victim!r}, 'w')",
        "a = open({victim!r}, 'w')",
        "a = dict(b=open({victim!r}, 'w'))",
        "a = [__import__('os').system('touch ' + {victim!r})]",
        "a = {{open({victim!r}, 'w'): 1}}",
        "a = dict(**{{'b': open({victim!r}, 'w')}})",
        'a = f"{{open({victim!r}, chr(119))}}"',
        "a = (lambda: open({victim!r}, 'w'))()",
        "class dict:\n    x = open({victim!r}, 'w')",
        "import os; os.system('touch ' + {victim!r})",
    ],
)
def test_nothing_is_run(text: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    text = text.format(victim=str(victim))
    config = read_python_config(text + "\nkept = dict(x=1)")
    assert config["kept"] == {"x": 1}
    assert config.get("a") in (None, {"b": None}, [None], {}, {None: 1})
    assert not victim.exists()
    exec(text, {})  # the text would do it
    assert victim.exists()


@pytest.mark.parametrize(
    "text",
    [
        "model = dict(",
        "<html>",
        "\0",
        "x = " + "[" * 5000,
        "x = " + "-" * 10**5 + "1",
        "x = " + "dict(a=" * 90 + "1" + ")" * 90,
        "x = " + "9" * 5000,
        "x = 1" + " + 1" * 20000,
        "x = a" + ".a" * 20000,
        "",
    ],
)
def test_no_text_ends_in_a_traceback(text: str) -> None:
    assert isinstance(read_python_config(text), dict)


def test_what_cannot_be_told_is_none_and_the_rest_is_read() -> None:
    config = read_python_config("a = dict(b=num, c=[1, x], d=2 ** 3)\nfor e in (1,):\n    f = 1")
    assert config == {"a": {"b": None, "c": [1, None], "d": None}}
