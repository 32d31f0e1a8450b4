# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""``evaluations.json``: the numbers of every evaluation of a run, one a line, by its last step.

A checkpoint is written before the evaluation of its step; so this file tells a resumed run whether
that evaluation is still to be made, and how the ones before it went.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from detrex_mammo.engine.integrity import replace_text
from detrex_mammo.engine.watching import no_such_metric

NAME = "evaluations.json"


class EvaluationHistory:
    """The evaluations of a run; only the main process uses it.

    Args:
        folder: of the run.
        steps: that are done: what was evaluated later will be again, and is forgotten.
    """

    def __init__(self, folder: Path, steps: int):
        self.path = folder / NAME
        self.lines = [line for line in _read(self.path) if line["iteration"] < steps]

    def add(self, iteration: int, numbers: Mapping[str, float]) -> None:
        """Add an evaluation, or replace that of the same step."""
        kept = [line for line in self.lines if line["iteration"] != iteration]
        # JSON cannot hold what is not finite.
        known = {k: value if math.isfinite(value) else None for k, value in numbers.items()}
        self.lines = [*kept, {"iteration": iteration, "numbers": known}]
        replace_text(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def has(self, iteration: int) -> bool:
        """Whether there is one after this step."""
        return any(line["iteration"] == iteration for line in self.lines)

    def values(self, metric: str) -> list[float]:
        """One number of all evaluations in order; NaN where it does not exist."""
        found = [line["numbers"].get(metric) for line in self.lines]
        return [math.nan if value is None else value for value in found]

    def check(self, key: str, metric: str) -> None:
        """Refuse the metric of a setting if there are evaluations and none gives it.

        Raises:
            UserError: with the nearest that there is.
        """
        known = dict.fromkeys(name for line in self.lines for name in line["numbers"])
        if known and metric not in known:
            raise no_such_metric(key, metric, known)


def _read(path: Path) -> list[dict]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if isinstance(line["numbers"], dict) and "iteration" in line]
    except (OSError, ValueError, TypeError, KeyError):
        return []  # the evaluations are made again where need be


def repair_metrics(path: Path, steps: int, newest: Mapping[str, float] | None = None) -> None:
    """Make a metrics.json that of a run which was stopped after some steps.

    Numbers of evaluations that a kill kept from it are those of evaluations.json beside it.

    Args:
        path: of the file.
        steps: that are done; later ones will be done again and are removed, and so is a line that
            was cut short.
        newest: numbers of the last step that is done; added if a kill came before they were.
    """
    kept: dict[str, dict] = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        try:
            content = json.loads(line)
            if content.get("iteration", -1) < steps:
                kept[line] = content
        except (ValueError, AttributeError, TypeError):
            continue
    evaluations = {line["iteration"]: line["numbers"] for line in _read(path.with_name(NAME))}
    if steps - 1 not in evaluations:  # it is made again
        contents = [_without_evaluation(content, steps - 1) for content in kept.values()]
        kept = {json.dumps(content, sort_keys=True): content for content in contents}
    owed = [(steps - 1, newest or {}), *evaluations.items()]
    for step, found in owed:
        numbers = {name: value for name, value in found.items() if value is not None}
        at_step = (content for content in kept.values() if content.get("iteration") == step)
        if step < steps and numbers and not any(numbers.keys() & other.keys() for other in at_step):
            content = {"iteration": step, **numbers}
            kept[json.dumps(content, sort_keys=True)] = content
    if text or kept:
        replace_text(path, "".join(f"{line}\n" for line in kept))


def _without_evaluation(content: dict, step: int) -> dict:
    if content.get("iteration") != step:
        return content
    return {name: value for name, value in content.items() if "/" not in name}
