# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What a report shows, as plain data: nothing is computed here, nothing is drawn.

Boxes are (x, y, width, height) in pixels of the view's picture frame, see :class:`View`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

INTERVAL = "95 % interval"


@dataclass(frozen=True)
class Number:
    """A headline figure; a number never stands without its rule and its denominator.

    Attributes:
        name: such as "Sensitivity at 0.3 false positives per image".
        value: NaN or None where it does not exist.
        low: lower end of the interval, None without one.
        high: upper end.
        rule: how it was counted.
        denominator: out of what, with counts.
        percent: written as a percentage.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    rule: str
    denominator: str
    percent: bool = False


@dataclass(frozen=True)
class Table:
    """A table that the reader can sort; also written as ``key.csv``.

    Attributes:
        key: file name of its CSV, without suffix.
        title: over it.
        note: data and rule, below it.
        columns: names.
        rows: texts and numbers, one for each column; None for what does not exist.
    """

    key: str
    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Plot:
    """A vector figure.

    Attributes:
        key: unique in the page.
        title: over it.
        draw: gives the figure as an SVG element, of our own making.
        caption: data and rule, below it.
    """

    key: str
    title: str
    draw: Callable[[], str]
    caption: str


@dataclass(frozen=True)
class Lesion:
    """A lesion of a view: ``score`` of the prediction that hits it, None if none does."""

    box: tuple[float, float, float, float]
    name: str
    score: float | None


@dataclass(frozen=True)
class Mark:
    """A prediction of a view; ``outcome`` is "hit", "again" (a further hit), "false", "ignored"."""

    box: tuple[float, float, float, float]
    name: str
    score: float
    outcome: str


@dataclass(frozen=True)
class View:
    """One image of a card.

    Attributes:
        image_id: of the data set.
        title: such as "L CC".
        frame: (x0, y0, x1, y1) of the original that the picture shows, whole pixels; boxes are
            relative to its corner.
        lesions: all of them.
        marks: predictions, best first.
    """

    image_id: Any
    title: str
    frame: tuple[int, int, int, int]
    lesions: Sequence[Lesion]
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Card:
    """The views of one breast, side by side.

    Attributes:
        title: patient, study and side.
        words: what the reader can filter by: group -> value, such as {"density": "B"}.
        views: CC before MLO.
    """

    title: str
    words: dict[str, str]
    views: Sequence[View]


@dataclass(frozen=True)
class Counter:
    """What the threshold's slider counts, exactly as the FROC did.

    Attributes:
        unit: what is found or missed, plural: "lesions", "breasts", ...
        num_units: of them.
        images: the images that false positives are counted on, such as "images".
        num_images: of them.
        hit_scores: of the units that are hit, falling.
        false_scores: of false positives, falling; those below ``lowest`` are left out.
        lowest: the slider's lowest threshold.
        threshold: where it stands at first.
        threshold_note: why there.
    """

    unit: str
    num_units: int
    images: str
    num_images: int
    hit_scores: Sequence[float]
    false_scores: Sequence[float]
    lowest: float
    threshold: float
    threshold_note: str


@dataclass(frozen=True)
class Report:
    """A page.

    Attributes:
        title: of the page.
        facts: (name, text) about data, model and rule.
        numbers: the headline.
        plots: figures.
        counter: of the slider; None without predictions.
        tables: further tables.
        cards: of the gallery.
        note: a warning over all, such as "simulated lesions".
        gallery_note: what the gallery shows.
        interval: name of the headline's column of intervals.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    numbers: Sequence[Number]
    plots: Sequence[Plot] = ()
    counter: Counter | None = None
    tables: Sequence[Table] = ()
    cards: Sequence[Card] = ()
    note: str = ""
    gallery_note: str = field(default="")
    interval: str = INTERVAL
