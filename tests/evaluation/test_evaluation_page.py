# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""docs/evaluation.md says what is there: its options, its rules, its example."""

import re
import runpy
from pathlib import Path

from detrex_mammo.evaluation.froc_settings import DENOMINATORS, DUPLICATES, UNITS
from detrex_mammo.evaluation.operating_point import RULES
from detrex_mammo.evaluation.prediction_files import CORNERS, FIELDS, SIDES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_every_option_of_the_page_exists():
    known = {}
    for tool in set(re.findall(r"tools/(\w+)\.py", PAGE)) - {"train_net"}:
        parser = runpy.run_path(str(ROOT / "tools" / f"{tool}.py"))["parser"]()
        known[tool] = {option for action in parser._actions for option in action.option_strings}
    options = re.compile(r"--[a-z][a-z-]+")
    assert set(options.findall(PAGE)) <= set().union(*known.values())
    commands = re.findall(r"^python tools/(\w+)\.py((?:.*\\\n)*.*)", PAGE, re.MULTILINE)
    assert len(commands) == 8
    for tool, rest in commands:
        assert set(options.findall(rest)) <= known[tool], rest


def test_every_choice_is_on_the_page():
    kinds = {kind for rules in RULES.values() for kind in rules}
    for word in (*UNITS, *DUPLICATES, *DENOMINATORS, *kinds, *FIELDS, *CORNERS, *SIDES):
        assert re.search(rf"\b{word}\b", PAGE), word


def test_the_example_gives_what_it_says():
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    names = {}
    exec(code.rsplit("\n", 2)[0], names)  # noqa: S102 - our own page
    assert names["result"].overall.sensitivity_at(0.3) == 1.0
