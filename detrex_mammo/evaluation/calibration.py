# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Are scores probabilities? Reliability, ECE, Brier score; and scores made into probabilities.

Legend: n scores with labels, B bins, R replicates, P patients. Scores lie in [0, 1].

What is scored: boxes (label: hit, by the FROC matching's outcome; further hits on a lesion are left
out, or false), images, breasts or cases (label: has a lesion).

- **ECE**: mean over scores of |share of positives - mean score| of their bin. ``width``: B bins of
  equal width, a score on an edge belongs to the upper bin, 1 to the last. ``mass``: bins of as
  equal numbers as equal scores, which stay together, allow.
- **Brier**: mean of (score - label) squared.
- **Reliability**: mean score and share of positives of every bin, with Wilson's interval (1927),
  which takes the units for independent.
- **Temperature** (Guo et al. 2017): sigmoid(logit(score) / T), T > 0 minimising the log loss.
  Scores are kept off 0 and 1 by 1e-7 before; the order never changes.
- **Isotonic** (Zadrozny & Elkan 2002): the non-decreasing function of least squares, joined by
  straight lines and flat outside; scores that it joins become ties.

Both are fitted on validation and applied to test. In the bootstrap the bins stay those of the data.

Worked by hand: scores 0.2 (-), 0.4 (+), 0.8 (+), 0.8 (-), two bins of equal width. Bin 1: mean
0.3, share 1/2; bin 2: 0.8 and 1/2. ECE = (2 * 0.2 + 2 * 0.3) / 4 = 0.25. Brier =
(0.04 + 0.36 + 0.04 + 0.64) / 4 = 0.27. Isotonic: 0, then 2/3 from 0.4 to 0.8 (1, 1/2 and 1/2 are
pooled).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression, minimize_scalar
from scipy.special import expit, logit, ndtri

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.estimate import Draws, Estimate, divide, estimate, ratios
from detrex_mammo.evaluation.froc import match_study
from detrex_mammo.evaluation.froc_settings import FrocSettings
from detrex_mammo.evaluation.marks import Marks, marks
from detrex_mammo.evaluation.matching import parse_rule
from detrex_mammo.evaluation.scores import UnitScores, check_choice
from detrex_mammo.evaluation.study import Study
from detrex_mammo.evaluation.tables import PredictionTable

CHECKPOINT_KEY = "calibration"
BINNINGS = ("width", "mass")
_EDGE = 1e-7
_LOG_TEMPERATURES = (math.log(1e-2), math.log(1e2))


@dataclass(frozen=True)
class Labelled:
    """Scores with labels and owners, whatever the level.

    Attributes:
        scores: (n,) float64 in [0, 1].
        positive: (n,) bool.
        patients: (n,) int64 number of the patient.
        num_patients: P.
        what: of what, in the plural, such as ``boxes``.
    """

    scores: np.ndarray
    positive: np.ndarray
    patients: np.ndarray
    num_patients: int
    what: str

    def __post_init__(self):
        _check_scores(self.scores)

    @classmethod
    def of(cls, source: UnitScores | Marks) -> "Labelled":
        """Units with their labels, or boxes with what the matching made of them.

        Raises:
            UserError: scores that are not in [0, 1].
        """
        if isinstance(source, Marks):
            return cls(source.scores, source.hit, source.patients, len(source.lesions), "boxes")
        return cls(
            source.scores,
            source.positive,
            source.patients,
            source.num_patients,
            f"{source.level}s",
        )


@dataclass(frozen=True)
class Reliability:
    """The bins that hold scores; (B,) each.

    Attributes:
        low, high: lowest and highest score in the bin (``mass``), or its edges (``width``).
        mean_score, share: mean score and share of positives.
        share_low, share_high: Wilson's interval of the share.
        count: scores in the bin.
        binning: ``width`` or ``mass``.
    """

    low: np.ndarray
    high: np.ndarray
    mean_score: np.ndarray
    share: np.ndarray
    share_low: np.ndarray
    share_high: np.ndarray
    count: np.ndarray
    binning: str

    @property
    def ece(self) -> float:
        """Expected calibration error; NaN without scores."""
        total = self.count.sum()
        return float(divide(self.count @ np.abs(self.share - self.mean_score), total))


def reliability(
    labelled: Labelled, num_bins: int = 10, binning: str = "width", level: float = 0.95
) -> Reliability:
    """The reliability diagram's data (see the head of this file).

    Raises:
        UserError: an unknown binning, or no bins.
    """
    bins, low, high = _bins(labelled.scores, num_bins, binning)
    number = len(low)
    count = np.bincount(bins, minlength=number)
    positives = np.bincount(bins, labelled.positive, number)
    ends = wilson(positives, count, level)
    return Reliability(
        low=low,
        high=high,
        mean_score=divide(np.bincount(bins, labelled.scores, number), count),
        share=divide(positives, count),
        share_low=ends[0],
        share_high=ends[1],
        count=count,
        binning=binning,
    )


def ece(
    labelled: Labelled, num_bins: int = 10, binning: str = "width", draws: Draws | None = None
) -> Estimate:
    """Expected calibration error; its interval lies high, as resampling adds noise to every bin."""
    bins, low, _ = _bins(labelled.scores, num_bins, binning)
    gap = np.zeros((labelled.num_patients, len(low) + 1))
    np.add.at(gap, (labelled.patients, bins), labelled.positive - labelled.scores)
    gap[:, -1] = np.bincount(labelled.patients, minlength=labelled.num_patients)
    # count times |share - mean score| of a bin is |sum of (label - score)| in it
    value = divide(np.abs(gap.sum(axis=0)[:-1]).sum(), len(labelled.scores))
    replicates = None
    if draws is not None:
        drawn = draws.totals(gap)
        replicates = divide(np.abs(drawn[:, :-1]).sum(axis=1), drawn[:, -1])
    return estimate(value, replicates, draws, f"{len(labelled.scores)} {labelled.what}")


def brier(labelled: Labelled, draws: Draws | None = None) -> Estimate:
    """Mean squared difference of score and label."""
    errors = (labelled.scores - labelled.positive) ** 2
    number = labelled.num_patients
    top = {"brier": np.bincount(labelled.patients, errors, number)}
    bottom = {"brier": np.bincount(labelled.patients, minlength=number)}
    return ratios(top, bottom, {"brier": labelled.what}, draws)["brier"]


def wilson(successes, trials, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval of a proportion; NaN for no trials.

    By hand: 1 of 2 at 95 % (z = 1.96): (1/2 + z^2/4) / (1 + z^2/2) -+ z sqrt(1/8 + z^2/16) /
    (1 + z^2/2) = 0.5 -+ 0.4055.
    """
    z = ndtri((1 + level) / 2)
    share = divide(successes, trials)
    more = divide(z**2, trials)
    centre = (share + more / 2) / (1 + more)
    half = np.sqrt(share * (1 - share) * more + more**2 / 4) / (1 + more)
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


@dataclass(frozen=True)
class Temperature:
    """sigmoid(logit(score) / temperature).

    Attributes:
        temperature: in [0.01, 100]; above 1 makes scores less extreme.
        of: what it was fitted on, such as ``val: 1200 boxes``.
    """

    temperature: float
    of: str = ""

    def text(self) -> str:
        """In words, for captions."""
        return f"temperature {self.temperature:.6g}, fitted on {self.of}"

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Scores in [0, 1] to probabilities."""
        return expit(_logits(scores) / self.temperature)


@dataclass(frozen=True)
class Isotonic:
    """Joined by straight lines, flat outside.

    Attributes:
        scores: rising knots.
        probabilities: what they become; they never fall.
        of: what it was fitted on.
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    of: str = ""

    def text(self) -> str:
        """In words, for captions."""
        return f"isotonic with {len(self.scores)} knots, fitted on {self.of}"

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Scores in [0, 1] to probabilities."""
        _check_scores(scores)
        return np.interp(scores, self.scores, self.probabilities)


KINDS = {"temperature": Temperature, "isotonic": Isotonic}


def fit(kind: str, labelled: Labelled, dataset: str = "") -> Temperature | Isotonic:
    """Fit a calibration on validation.

    Args:
        kind: ``temperature`` or ``isotonic``.
        dataset: its name, kept with the result.

    Raises:
        UserError: an unknown kind, or labels that are all alike.
    """
    check_choice("calibration", kind, KINDS)
    positives, number = int(labelled.positive.sum()), len(labelled.scores)
    if positives in (0, number):
        raise UserError(
            f"calibration needs positive and negative {labelled.what}, but "
            f"{dataset or 'the data set'} has {positives} of {number} positive: fit it on more data"
        )
    of = f"{dataset}: {number} {labelled.what}, {positives} positive".removeprefix(": ")
    if kind == "temperature":
        return Temperature(_fit_temperature(labelled), of)
    return Isotonic(*_fit_isotonic(labelled), of)


def fit_boxes(
    kind: str,
    study: Study,
    predictions: PredictionTable,
    settings: FrocSettings,
    dataset: str = "",
) -> Temperature | Isotonic:
    """Fit a calibration of boxes, right or wrong as a FROC counts them.

    Raises:
        UserError: as for :func:`fit`, or a score is not in [0, 1].
    """
    rule = parse_rule(settings.rule)
    _, matching = match_study(study, predictions, settings)
    found = marks(study, predictions, matching, rule, settings.duplicates)
    return fit(kind, Labelled.of(found), dataset)


def calibrated(
    predictions: PredictionTable, calibration: Temperature | Isotonic
) -> PredictionTable:
    """The predictions with calibrated scores."""
    return replace(predictions, scores=calibration(predictions.scores))


def to_dict(calibration: Temperature | Isotonic) -> dict[str, Any]:
    """Plain numbers and text, for JSON and checkpoints."""
    kind = next(name for name, made in KINDS.items() if isinstance(calibration, made))
    entry = {"kind": kind, **asdict(calibration)}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in entry.items()}


def from_dict(entry: Mapping[str, Any]) -> Temperature | Isotonic:
    """What :func:`to_dict` made.

    Raises:
        UserError: it is damaged.
    """
    values = dict(entry)
    made = KINDS.get(values.pop("kind", None))
    try:
        if made is Temperature and 1e-3 < values["temperature"] < 1e3:
            return Temperature(**values)
        knots = np.asarray([values["scores"], values["probabilities"]], dtype=np.float64)
        if made is Isotonic and knots.size and np.isfinite(knots).all():
            if (np.diff(knots[0]) > 0).all() and (np.diff(knots[1]) >= 0).all():
                return Isotonic(*(tuple(row.tolist()) for row in knots), values.get("of", ""))
    except (KeyError, TypeError, ValueError):
        pass
    raise UserError(
        f"a stored calibration is damaged (its keys are {sorted(map(str, entry))}): fit it again"
    )


def _fit_temperature(labelled):
    signed = np.where(labelled.positive, 1.0, -1.0) * _logits(labelled.scores)

    def loss(log_temperature):
        return np.logaddexp(0, -signed * math.exp(-log_temperature)).mean()

    # the loss is convex in 1 / T, so it has one minimum in log T
    found = minimize_scalar(
        loss, bounds=_LOG_TEMPERATURES, method="bounded", options={"xatol": 1e-9}
    )
    return math.exp(found.x)


def _fit_isotonic(labelled):
    known, where, count = np.unique(labelled.scores, return_inverse=True, return_counts=True)
    share = np.bincount(where, labelled.positive) / count
    fitted = isotonic_regression(share, weights=count).x
    # inside a flat stretch only its ends are needed
    keep = np.ones(len(known), dtype=bool)
    keep[1:-1] = (fitted[1:-1] != fitted[:-2]) | (fitted[1:-1] != fitted[2:])
    return tuple(known[keep].tolist()), tuple(fitted[keep].tolist())


def _logits(scores):
    _check_scores(scores)
    return logit(np.clip(scores, _EDGE, 1 - _EDGE))


def _bins(scores, num_bins, binning):
    """Bin of each score, (n,), and the lower and upper ends of the bins that hold some."""
    check_choice("binning", binning, BINNINGS)
    if num_bins < 1:
        raise UserError(f"the number of bins was {num_bins}, but it is at least 1")
    if binning == "width":
        bins = np.minimum((scores * num_bins).astype(np.int64), num_bins - 1)
        held, bins = np.unique(bins, return_inverse=True)
        return bins, held / num_bins, (held + 1) / num_bins
    rising = np.sort(scores)
    cuts = rising[np.arange(1, num_bins) * len(rising) // num_bins] if len(rising) else rising
    held, bins = np.unique(np.searchsorted(cuts, scores, side="right"), return_inverse=True)
    low, high = np.full(len(held), np.inf), np.full(len(held), -np.inf)
    np.minimum.at(low, bins, scores)
    np.maximum.at(high, bins, scores)
    return bins, low, high


def _check_scores(scores):
    scores = np.asarray(scores)
    if len(scores) and not (scores.min() >= 0 and scores.max() <= 1):
        raise UserError(
            f"calibration needs scores in [0, 1], but they go from {scores.min():g} to "
            f"{scores.max():g}"
        )
