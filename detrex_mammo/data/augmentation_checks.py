# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The settings that augmentations share, checked once, each in one sentence."""

import math
from collections.abc import Sequence

from detrex_mammo.errors import UserError


def check_probability(owner: str, value: float, name: str = "prob") -> float:
    """The probability, if it is one.

    Raises:
        UserError: it is no number in [0, 1].
    """
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UserError(f"{owner} got {name}={value!r}; a probability is a number in [0, 1]")
    return float(value)


def check_range(
    owner: str,
    name: str,
    values: Sequence[float],
    lowest: float = -math.inf,
    highest: float = math.inf,
    above: float = -math.inf,
) -> tuple[float, float]:
    """(low, high), if they are a range.

    Args:
        owner: name of the augmentation, for the message.
        name: of the setting.
        values: low and high.
        lowest: smallest low that is allowed.
        highest: largest high that is allowed.
        above: low is larger than this.

    Raises:
        UserError: they are not two numbers in order within the limits.
    """
    try:
        low, high = (float(value) for value in values)
    except (TypeError, ValueError):
        low = high = math.nan
    if lowest <= low <= high <= highest and low > above and math.isfinite(high - low):
        return low, high
    limit = f"{lowest:g} <= " if lowest > -math.inf else ""
    limit = f"{above:g} < " if above > -math.inf else limit
    end = f" <= {highest:g}" if highest < math.inf else ""
    given = list(values) if isinstance(values, Sequence) else values
    raise UserError(
        f"{owner} got {name}={given!r}; it is a pair of numbers, {limit}low <= high{end}"
    )
