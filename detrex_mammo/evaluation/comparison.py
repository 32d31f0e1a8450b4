# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Two models on the same set: difference, interval and p-value of any figure, paired.

Both models are scored in the same replicates, so that what makes a drawn set hard is hard for both
and falls out of the difference (Efron & Tibshirani, An Introduction to the Bootstrap, 1993).

Legend: R replicates.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.bootstrap import Bootstrap, paired_p_value
from detrex_mammo.evaluation.estimate import Estimate


@dataclass(frozen=True)
class Comparison:
    """A figure of two models, A and B, on the same set.

    Attributes:
        a, b: the figure of model A, of model B; NaN where it is not defined.
        difference: a - b, with the interval of the paired differences.
        p_value: two-sided, that the models are alike
            (:func:`~detrex_mammo.evaluation.bootstrap.paired_p_value`); NaN without a difference.
    """

    a: float
    b: float
    difference: Estimate
    p_value: float


def compare(
    a: Mapping[str, Estimate], b: Mapping[str, Estimate], bootstrap: Bootstrap
) -> dict[str, Comparison]:
    """Every figure that both models have.

    Args:
        a, b: name -> figure with its replicates, such as ``FrocIntervals.figures()``; of the same
            data set, drawn by ``bootstrap``.

    Raises:
        UserError: the figures are of other data or were drawn otherwise.
    """
    return {name: _compare(name, a[name], b[name], bootstrap) for name in a if name in b}


def _compare(name: str, a: Estimate, b: Estimate, bootstrap: Bootstrap) -> Comparison:
    if a.of != b.of:
        raise UserError(
            f"figure {name!r} is of {a.of} for one model and of {b.of} for the other: two models "
            "are compared on the same data set and by the same rules"
        )
    if math.isnan(a.value) or math.isnan(b.value):  # it may have no replicates then
        return Comparison(a.value, b.value, Estimate(math.nan, of=a.of), math.nan)
    for figure in (a, b):
        if len(figure.replicates) != bootstrap.replicates:
            raise UserError(
                f"figure {name!r} has {len(figure.replicates)} replicates, but the bootstrap draws "
                f"{bootstrap.replicates}: score both models with the same bootstrap"
            )
    value, differences = a.value - b.value, a.replicates - b.replicates
    difference = Estimate(value, *bootstrap.interval(differences), a.of, differences)
    return Comparison(a.value, b.value, difference, paired_p_value(differences))
