# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What a FROC counts, by name and in words. Legend: G lesions (ground-truth boxes)."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.matching import parse_rule
from detrex_mammo.evaluation.study import Study

DEFAULT_FPPI = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 4.0)
CPM_FPPI = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
DUPLICATES = {"ignore": "ignored", "count": "counted as false positives"}
DENOMINATORS = {"all": "all images", "negative": "images without lesions only"}
# name: what is counted (plural), how it is hit
UNITS = {
    "lesion_view": ("lesions", "each view of one counts"),
    "lesion": ("lesions over views", "hit in any view"),
    "breast": ("breasts with a lesion", "hit on any lesion in any view"),
    "case": ("cases with a lesion", "hit on any lesion in any view"),
}


@dataclass(frozen=True)
class FrocSettings:
    """What is counted; every result carries it.

    Attributes:
        rule: ``centre``, ``iou:t`` or ``dbt``.
        duplicates: ``ignore`` or ``count``.
        denominator: ``all`` or ``negative``.
        class_aware: a prediction hits lesions of its own category only.
        unit: what sensitivity is a share of: ``lesion_view``, ``lesion``, ``breast`` or ``case``.
    """

    rule: str = "centre"
    duplicates: str = "ignore"
    denominator: str = "all"
    class_aware: bool = True
    unit: str = "lesion_view"

    def __post_init__(self):
        object.__setattr__(self, "rule", parse_rule(self.rule).name)
        allowed = {"duplicates": DUPLICATES, "denominator": DENOMINATORS, "unit": UNITS}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise UserError(
                    f"{name} was {getattr(self, name)!r}, but it is one of {tuple(values)}"
                )

    @property
    def units(self) -> str:
        """What is counted, in the plural: the denominator of the sensitivity."""
        return UNITS[self.unit][0]

    def text(self) -> str:
        """The settings in words, for captions."""
        classes = "class-aware" if self.class_aware else "class-agnostic"
        return (
            f"hit: {parse_rule(self.rule).text} ({classes}); sensitivity over {self.units} "
            f"({UNITS[self.unit][1]}); further hits on a hit box: {DUPLICATES[self.duplicates]}; "
            f"false positives per image over {DENOMINATORS[self.denominator]}"
        )

    def unit_numbers(self, study: Study) -> np.ndarray:
        """(G,) int64, the unit that every box belongs to."""
        if self.unit == "lesion_view":
            return np.arange(len(study.lesions))
        if self.unit == "lesion":
            return study.lesion_units
        groups = study.breasts if self.unit == "breast" else study.cases
        return groups[study.lesions.image_index]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, report: dict[str, Any]) -> "FrocSettings":
        """The settings in a report, which may be older than some of them."""
        return cls(**{f.name: report[f.name] for f in fields(cls) if f.name in report})
