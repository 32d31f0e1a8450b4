# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Progress of a loop that may take long: a bar on a terminal, a plain line now and then elsewhere.

It goes to stderr, from the main process alone. A loop that is over before the first line is due
says nothing in a log file.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
LINE_SECONDS = 15.0  # between two lines


class _Bar(tqdm):
    """tqdm's; without the thread that would watch it, which a fork would copy half."""

    monitor_interval = 0


class Progress:
    """Counts what is done; use it inside ``with``, or see :func:`counted`.

    Args:
        title: of the loop, a word or two.
        total: how many there will be, if it is known.
        unit: of what is counted, in the singular; "B" for bytes.
        is_shown: False shows nothing.
        tell: gets each line instead of stderr, on a terminal too (a log file, say).
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        unit: str = "image",
        is_shown: bool = True,
        tell: Callable[[str], Any] | None = None,
    ):
        self.title, self.total, self.unit, self.done = title, total, unit, 0
        self.is_shown = is_shown and _is_main_process()
        self.begin = self.last_line = time.monotonic()
        is_terminal = self.is_shown and sys.stderr is not None and sys.stderr.isatty()
        self.bar = _Bar(
            total=total, desc=title, unit=unit, unit_scale=unit == "B", leave=False, delay=0.5,
            dynamic_ncols=True, miniters=1, file=sys.stderr,
        ) if is_terminal else None  # fmt: skip
        self.tell = tell or (None if is_terminal else _to_stderr)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.last_line > self.begin and error[0] is None:
            self._line()

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        now = time.monotonic()
        if self.is_shown and now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            self._line()

    def _line(self) -> None:
        if self.tell is None:
            return
        if self.bar is not None:
            self.bar.clear()
        self.tell(describe(self, time.monotonic() - self.begin))
        if self.bar is not None:
            self.bar.refresh()


def describe(loop: Progress, seconds: float) -> str:
    """``evaluation: 120 of 500 images in 0:35, 3.43 images/s, 1:51 left``.

    Args:
        loop: with what it has done.
        seconds: since it began.
    """
    size = tqdm.format_sizeof if loop.unit == "B" else "{:d}".format
    units = loop.unit if loop.unit == "B" else f"{loop.unit}s"
    of = "" if loop.total is None else f" of {size(loop.total)}"
    text = f"{loop.title}: {size(loop.done)}{of} {units} in {tqdm.format_interval(seconds)}"
    speed = loop.done / seconds if seconds > 0 else 0.0
    if not speed:
        return text
    text += f", {size(speed) if loop.unit == 'B' else f'{speed:.3g}'} {units}/s"
    if loop.total is not None and loop.done < loop.total:
        text += f", {tqdm.format_interval((loop.total - loop.done) / speed)} left"
    return text


def counted(
    items: Iterable[Item],
    title: str,
    total: int | None = None,
    unit: str = "image",
    is_shown: bool = True,
) -> Iterator[Item]:
    """The items, counted while they are taken.

    Args:
        items: with a length, unless ``total`` gives it.
        title, total, unit, is_shown: as for :class:`Progress`.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    with Progress(title, total, unit, is_shown) as loop:
        for item in items:
            yield item
            loop.update()


def _to_stderr(text: str) -> None:
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


def _is_main_process() -> bool:
    """Whether this is no other rank; asks torch only if somebody has loaded it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return True
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
