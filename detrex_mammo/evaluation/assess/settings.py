# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What is computed, and what one part of an assessment gives."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.calibration import Isotonic, Temperature
from detrex_mammo.evaluation.estimate import Draws, Estimate
from detrex_mammo.evaluation.froc_settings import DEFAULT_FPPI, FrocSettings
from detrex_mammo.evaluation.matching import Matching
from detrex_mammo.evaluation.operating_point import OperatingPoint
from detrex_mammo.evaluation.report.content import Number, Plot, Table
from detrex_mammo.evaluation.scores import VIEWS, check_choice
from detrex_mammo.evaluation.study import Study
from detrex_mammo.evaluation.tables import PredictionTable


@dataclass(frozen=True)
class AssessSettings:
    """How a model is assessed.

    Attributes:
        froc: hit rule, unit, duplicates, denominator, class awareness.
        fppi: false positives per image that the sensitivity is reported at.
        bootstrap: for the intervals; None leaves them out.
        views: how a breast's score is made of its images' scores, "max" or "mean".
        max_dets: predictions of an image and class that COCO's AP takes.
        points: thresholds that were chosen on validation.
        calibration: applied to the scores before anything else; None takes them as they are.

    Raises:
        UserError: a value is not possible.
    """

    froc: FrocSettings = field(default_factory=FrocSettings)
    fppi: Sequence[float] = DEFAULT_FPPI
    bootstrap: Bootstrap | None = field(default_factory=Bootstrap)
    views: str = "max"
    max_dets: int = 100
    points: Sequence[OperatingPoint] = ()
    calibration: Temperature | Isotonic | None = None

    def __post_init__(self):
        check_choice("views", self.views, VIEWS)
        if not self.fppi or any(not f > 0 for f in self.fppi):
            raise UserError(
                f"fppi was {list(self.fppi)}, but it is a list of false positives per image > 0"
            )
        if self.max_dets < 1:
            raise UserError(f"max_dets was {self.max_dets}, but at least 1 prediction is scored")

    @property
    def of_points(self) -> dict[str, str]:
        """What a threshold depends on beside its own settings, in words."""
        calibration = self.calibration.text() if self.calibration else "none"
        return {"calibration": calibration, "class_aware": str(self.froc.class_aware)}


@dataclass(frozen=True)
class Scored:
    """A model's predictions on a data set, matched, with the patients drawn.

    Attributes:
        study: ground truth.
        predictions: of its images.
        matching: what became of them by the FROC's rule.
        draws: of patients, the same for every figure; None without intervals.
        settings: of the assessment.
    """

    study: Study
    predictions: PredictionTable
    matching: Matching
    draws: Draws | None
    settings: AssessSettings


@dataclass
class Part:
    """What one part gives.

    Attributes:
        numbers: for the headline.
        plots: figures.
        tables: further tables.
        figures: name -> estimate, for JSON, comparison and selection.
        missing: sentences: what could not be computed, and why.
    """

    numbers: list[Number] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: dict[str, Estimate] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @classmethod
    def joined(cls, parts: Iterable["Part"]) -> "Part":
        """Several parts as one, in their order."""
        whole = cls()
        for part in parts:
            whole.numbers += part.numbers
            whole.plots += part.plots
            whole.tables += part.tables
            whole.figures.update(part.figures)
            whole.missing += part.missing
        return whole

    def add(self, name: str, figure: Estimate, title: str, rule: str, percent=False) -> None:
        """A figure that also stands in the headline."""
        self.figures[name] = figure
        scale = 100 if percent else 1
        value, low, high = (v / scale for v in (figure.value, figure.low, figure.high))
        self.numbers.append(Number(title, value, low, high, rule, figure.of, percent))


def figure_row(figure: Estimate, digits: int = 4) -> list[float]:
    """Value and ends of the interval, as a table has them."""
    return [round(v, digits) for v in (figure.value, figure.low, figure.high)]
