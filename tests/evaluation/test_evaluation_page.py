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
    parser = runpy.run_path(str(ROOT / "tools" / "evaluate.py"))["parser"]()
    known = {option for action in parser._actions for option in action.option_strings}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= known


def test_every_choice_is_on_the_page():
    kinds = {kind for rules in RULES.values() for kind in rules}
    for word in (*UNITS, *DUPLICATES, *DENOMINATORS, *kinds, *FIELDS, *CORNERS, *SIDES):
        assert re.search(rf"\b{word}\b", PAGE), word


def test_the_example_gives_what_it_says():
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    names = {}
    exec(code.rsplit("\n", 2)[0], names)  # noqa: S102 - our own page
    assert names["result"].overall.sensitivity_at(0.3) == 1.0
