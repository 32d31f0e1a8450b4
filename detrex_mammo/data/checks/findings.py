# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What the checks found: one line for each kind, and what would repair it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

# An error would spoil a result; a warning is for a person to look at.
LEVELS = ("error", "warning")
_MOST_EXAMPLES = 5
_WIDEST = 70


class Findings:
    """Counted findings of all checks, in the order in which they came."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.examples: dict[tuple[str, str], list[str]] = {}

    def add(self, level: str, what: str, examples: str | Iterable[str], count: int = 1) -> None:
        """Count something.

        Args:
            level: one of ``LEVELS``.
            what: the same words for the same fault.
            examples: where, the first ones of them.
            count: how often; nothing happens for 0.
        """
        assert level in LEVELS, level
        if not count:
            return
        self.counts[level, what] += int(count)
        kept = self.examples.setdefault((level, what), [])
        examples = [examples] if isinstance(examples, str) else examples
        for example in examples:
            if len(kept) >= _MOST_EXAMPLES:
                break
            kept.append(example)

    @property
    def num_errors(self) -> int:
        """Of all kinds together."""
        return sum(count for (level, _), count in self.counts.items() if level == "error")

    def to_list(self) -> list[dict[str, Any]]:
        """Plain values, errors first."""
        return [
            {"level": level, "what": what, "count": count, "examples": self.examples[level, what]}
            for wanted in LEVELS
            for (level, what), count in self.counts.items()
            if level == wanted
        ]

    def describe(self) -> str:
        """One table; a sentence if there is nothing to say."""
        if not self.counts:
            return "nothing found"
        rows = [
            (row["level"], row["count"], row["what"], _short(row["examples"]))
            for row in self.to_list()
        ]
        return tabulate(rows, headers=("", "number", "what", "for example"))


@dataclass
class Repairs:
    """What makes a sound copy of one file.

    Attributes:
        images: row of an image: why it is left out; its boxes go with it.
        annotations: row of an annotation: why it is left out.
        boxes: row of an annotation: its box, cut or as numbers.
        renumber_images: ids from 1 on, for ids that are no whole numbers.
        renumber_annotations: the same, for ids that are there twice or missing.
    """

    images: dict[int, str] = field(default_factory=dict)
    annotations: dict[int, str] = field(default_factory=dict)
    boxes: dict[int, list[float]] = field(default_factory=dict)
    renumber_images: bool = False
    renumber_annotations: bool = False


def _short(examples: list[str]) -> str:
    text = examples[0] if examples else ""
    for example in examples[1:]:
        if len(text) + len(example) > _WIDEST:
            break
        text += f", {example}"
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 2 * _WIDEST else text[: 2 * _WIDEST] + "..."
