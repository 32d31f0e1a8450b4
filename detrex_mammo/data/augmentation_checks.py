# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The settings that augmentations share, checked once, each in one sentence."""

import math
from collections.abc import Sequence

from detrex_mammo.errors import UserError


def check_sizes(owner: str, **sizes: int) -> None:
    """Refuse a number of pixels that is not a whole one of at least 1.

    Args:
        owner: name of the augmentation, for the message.
        sizes: name of the setting -> value.

    Raises:
        UserError: one is not.
    """
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{owner} got {name}={value!r}; a size is a whole number, at least 1")


def check_number(
    owner: str, name: str, value: float, low: float, high: float, ends: str = "[]"
) -> float:
    """The number, if it lies in an interval.

    Args:
        owner: name of the augmentation, for the message.
        name: of the setting.
        value: what was given.
        low: where the interval begins.
        high: where it ends.
        ends: its brackets; a round one excludes that end.

    Raises:
        UserError: it is no number, or lies outside.
    """
    is_inside = type(value) in (int, float) and low <= value <= high
    if is_inside and not (ends[0] == "(" and value == low or ends[1] == ")" and value == high):
        return float(value)
    raise UserError(
        f"{owner} got {name}={value!r}; it is a number in {ends[0]}{low:g}, {high:g}{ends[1]}"
    )


def check_probability(owner: str, value: float, name: str = "prob") -> float:
    """The probability, if it is one.

    Raises:
        UserError: it is no number in [0, 1].
    """
    if type(value) not in (int, float) or not 0 <= value <= 1:
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
