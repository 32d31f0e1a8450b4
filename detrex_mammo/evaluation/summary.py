# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The headline table that a run ends with: name | with training | without training."""

import math
from collections.abc import Mapping

from tabulate import tabulate

HEADLINES = (
    ("sensitivity at 0.5 false positives per image", "froc/sens@0.5"),
    ("sensitivity at 1 false positive per image", "froc/sens@1"),
    ("sensitivity at 2 false positives per image", "froc/sens@2"),
    ("CPM (mean sensitivity at 1/8 to 8)", "froc/cpm"),
    ("AP50 (percent)", "bbox/AP50"),
    ("AP (percent)", "bbox/AP"),
)


def headline_table(
    trained: Mapping[str, object],
    untrained: Mapping[str, object] | None = None,
    headlines=HEADLINES,
) -> str:
    """The headline numbers of one or two evaluations as a text table.

    Args:
        trained: results as evaluators return them, nested (``{"froc": {"cpm": ...}}``) or flat
            (``{"froc/cpm": ...}``).
        untrained (optional): the same of the model at iteration 0.
        headlines: pairs (text, flat name). A number that neither has is left out.

    Returns:
        str: the table, its counts of lesions and images below.
    """
    columns = {"with training": _flat(trained)}
    if untrained is not None:
        columns["without training"] = _flat(untrained)
    rows = [
        [text, *(_cell(name, column.get(name)) for column in columns.values())]
        for text, name in headlines
        if any(name in column for column in columns.values())
    ]
    table = tabulate(rows, ["result", *columns], tablefmt="pipe", disable_numparse=True)
    first = columns["with training"]
    lesions, images = first.get("froc/num_lesions"), first.get("froc/num_images")
    if lesions is None or images is None:
        return table
    return f"{table}\n{int(lesions)} lesions in {int(images)} images"


def _flat(results, prefix=""):
    flat = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}/"))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _cell(name, value):
    """Percent with one decimal, fractions with three."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.1f}" if name.startswith("bbox/") else f"{value:.3f}"
