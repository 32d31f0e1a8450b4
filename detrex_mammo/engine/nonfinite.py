# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What happens when a loss or a gradient is NaN or infinite: ``train.nan``.

Losses are averaged over the processes and gradients are the same in all, so every process sees the
same numbers and decides alike. The weights are those of before the step in any case.
"""

import logging
import math
import shlex
from collections.abc import Callable, Mapping, Sequence

import torch
from detectron2.utils import comm

from detrex_mammo.engine.accumulation import Kept, LargeBatch
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
POLICIES = ("stop", "skip", "halve_scale")
# fp16 starts at a scale of 65536 and halves it at each overflow: after so many in a row it is not
# the scale.
MAX_OVERFLOWS = 40


class NanPolicy:
    """Decides about steps whose numbers are not finite.

    Args:
        policy: "stop"; "skip": leave the step out; "halve_scale": leave it out and halve the scale
            of the fp16 gradients.
        limit: most steps in a row that are left out before the run stops.
        scaler: of the gradients in fp16, else None.

    Attributes:
        dump: called with the step's number, its small batches and its bad numbers before the run
            stops; returns where it has put them, "" for nowhere.
        in_row: steps that were left out since the last good one.
        overflows: steps since then whose gradients overflowed in fp16, as happens now and then.
        skipped: steps of the run that were left out by this policy.
        has_stopped: it has ended the run, in all processes.

    Raises:
        UserError: a policy that there is not.
    """

    def __init__(
        self,
        policy: str = "stop",
        limit: int = 10,
        scaler: torch.amp.GradScaler | None = None,
    ):
        if policy not in POLICIES:
            raise UserError(f"train.nan.policy is {policy!r}, but must be one of {POLICIES}")
        if type(limit) is not int or limit < 1:
            raise UserError(f"train.nan.limit is {limit!r}, but must be a whole number above 0")
        if policy == "halve_scale" and scaler is None:
            raise UserError(
                "train.nan.policy is 'halve_scale', but only fp16 has a scale: set "
                "train.amp.enabled=True and train.amp.dtype=fp16, or train.nan.policy=skip"
            )
        self.policy, self.limit, self.scaler = policy, limit, scaler
        self.dump: Callable[[int, list[Kept], Mapping[str, float]], str] = lambda *_: ""
        self.in_row = self.overflows = self.skipped = 0
        self.has_stopped = False

    def judge(
        self, step: int, metrics: Mapping[str, float], batch: LargeBatch, totals: Sequence[float]
    ) -> None:
        """Count a step that was left out, or stop.

        Args:
            step: its number.
            metrics: its losses and ``grad_norm``, the same in every process.
            batch: what it was made of in this process.
            totals: the sum of the losses of each small batch.

        Raises:
            UserError: the run stops.
        """
        bad = {name: value for name, value in metrics.items() if not math.isfinite(value)}
        if not bad:
            self.in_row = self.overflows = 0
            return
        if self.scaler is not None and set(bad) == {"grad_norm"}:
            self._count_overflow(step)
            return
        images = sum(batch.images, []) if set(bad) == {"grad_norm"} else batch.suspects(totals)
        if images:
            names = ", ".join(images)
            logger.error("not finite in process %d, with the images %s", comm.get_rank(), names)
        self.in_row += 1
        self.skipped += 1
        if self.policy == "stop" or self.in_row > self.limit:
            raise self._stop(step, bad, batch)
        if self.policy == "halve_scale" and math.isfinite(metrics["grad_norm"]):
            self.scaler.update(self.scaler.get_scale() * 0.5)  # else the scaler itself has done it
        logger.warning(
            "step %d is left out, %s: %d in a row (train.nan.limit=%d), %d in this run",
            step,
            _describe(bad),
            self.in_row,
            self.limit,
            self.skipped,
        )

    def state_dict(self) -> dict[str, int]:
        """The counts."""
        names = ("in_row", "overflows", "skipped")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting."""
        for name, value in state.items():
            setattr(self, name, int(value))

    def _count_overflow(self, step: int) -> None:
        self.overflows += 1
        if self.overflows > MAX_OVERFLOWS:
            self.has_stopped = True
            raise UserError(
                f"training stopped at step {step}: in fp16 the gradients have overflowed in "
                f"{self.overflows} steps in a row, down to a scale of {self.scaler.get_scale():g}; "
                "set train.amp.dtype=bf16 or train.amp.enabled=False"
            )

    def _stop(self, step: int, bad: Mapping[str, float], batch: LargeBatch) -> UserError:
        place = self.dump(step, batch.kept, bad)
        comm.synchronize()  # nobody leaves before all have written
        self.has_stopped = True
        command = f"tools/replay_batch.py {shlex.quote(place)}"
        kept = f"; {command} tells where it begins" if place else ""
        row = f" in the {self.in_row}th step in a row" if self.in_row > 1 else ""
        self.in_row, self.skipped = self.in_row - 1, self.skipped - 1  # a resumed run does it again
        return UserError(
            f"training stopped at step {step} before the weights were changed, because "
            f"{_describe(bad)}{row}: lower optimizer.lr, lengthen the warm-up, or set "
            f"train.amp.enabled=False, and go on with --resume{kept}"
        )


def _describe(bad: Mapping[str, float]) -> str:
    row = [f"{name}={value}" for name, value in bad.items()]
    return ", ".join(row[:3]) + (f" and {len(row) - 3} more" if len(row) > 3 else "")
