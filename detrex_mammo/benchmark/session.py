# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""One run of the benchmark: its settings, its results, what it says while it works."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from detrex_mammo.benchmark.results import Results, Row
from detrex_mammo.benchmark.timing import Candidate, interleaved
from detrex_mammo.benchmark.units import place_text, quantity_text

QUICK_REPEATS = 2


@dataclass
class Session:
    """What every mode works with.

    Attributes:
        mode: "op", "inference", "train" or "data".
        device: "cpu" or "cuda".
        quick: small shapes and few repeats, to try the program itself.
        threads: of torch, also in child processes.
        results: where the figures go.
        repeats: rounds asked for; None for the mode's own number.
    """

    mode: str
    device: str
    quick: bool
    threads: int
    results: Results
    repeats: int | None = None
    started: float = field(default_factory=time.monotonic)

    def rounds(self, default: int) -> int:
        """Rounds of a comparison: as asked for, else two in a quick run, else the default."""
        return self.repeats or (QUICK_REPEATS if self.quick else default)

    def say(self, text: str) -> None:
        """A line of progress, on stderr: the figures alone go to stdout."""
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        print(f"[{self.mode} {minutes}:{seconds:02}] {text}", file=sys.stderr, flush=True)

    def compare(
        self,
        case: str,
        quantity: str,
        candidates: Sequence[Candidate],
        rounds: int,
        x: float | None = None,
    ) -> None:
        """Time candidates in turn into rows of one comparison.

        Args:
            case: what is worked on.
            quantity: what is timed.
            candidates: in the order of the table.
            rounds: repeats.
            x: place on a curve.
        """
        place = "" if x is None else f" at {place_text(x)}"
        self.say(f"{case}, {quantity}{place}: {', '.join(c.name for c in candidates)}")
        for candidate in candidates:
            self.results.add(Row(case, quantity, candidate.name, x=x))
        for sample in interleaved(candidates, rounds, self.device):
            row = Row(case, quantity, sample.candidate, x=x, error=sample.error)
            if not sample.error:
                row.values.append(sample.seconds)
                took = quantity_text(sample.seconds, "s")
                self.say(f"  {sample.round + 1} of {rounds}: {sample.candidate} {took}")
            else:
                self.say(f"  {sample.candidate} failed: {sample.error}")
            self.results.add(row)
