# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Optional writers: Weights & Biases and MLflow. Whatever fails in them, the run goes on."""

import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventWriter, get_event_storage
from omegaconf import DictConfig, OmegaConf

from detrex_mammo.config_check import nearest
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
MOST_WAITING = 1000  # steps with numbers
ANYTHING = (Exception, SystemExit)  # that another package or its server may raise
CLOSE_SECONDS = 20.0  # a run that was asked to leave waits for it, too


class SafeWriter(EventWriter):
    """Sends what is new in the storage somewhere; the first error is logged, all are survived.

    A thread of its own does it, so that a server that does not answer cannot hold up the run: what
    it has not taken is lost once more than ``MOST_WAITING`` steps wait, or ``CLOSE_SECONDS`` after
    the end of the run. The numbers are in metrics.json in any case.

    Args:
        name: for the log.
        open_run: called once, before the first numbers; returns ``send`` and ``close``.
            ``send`` takes numbers by name and the step they belong to.
        window: losses are the median over so many steps.
    """

    def __init__(
        self, name: str, open_run: Callable[[], tuple[Callable, Callable]], window: int = 20
    ):
        self.name, self.open_run, self.window = name, open_run, window
        self.has_failed = False
        self.last_step = -1
        self.waiting: queue.Queue = queue.Queue(MOST_WAITING)
        self.thread: threading.Thread | None = None

    def write(self) -> None:
        """Hand over the numbers of all steps since the last call."""
        new: dict[int, dict[str, float]] = {}
        known = get_event_storage().latest_with_smoothing_hint(self.window)
        for name, (value, step) in known.items():
            if step > self.last_step:
                new.setdefault(int(step), {})[name] = float(value)
        if new and self.thread is None:
            # It must not keep the process alive.
            self.thread = threading.Thread(target=self._work, name=self.name, daemon=True)
            self.thread.start()
        for step in sorted(new):
            self._hand_over((new[step], step))
            self.last_step = step

    def close(self) -> None:
        """End the run over there; once."""
        if self.thread is None:
            return
        deadline = time.monotonic() + CLOSE_SECONDS
        self._hand_over(None, timeout=CLOSE_SECONDS)
        self.thread.join(max(0.0, deadline - time.monotonic()))
        if self.thread.is_alive():
            self._fail(f"has not taken everything within {CLOSE_SECONDS:g} s")
        self.thread = None

    def _hand_over(self, item: Any, timeout: float = 0.0) -> None:
        try:
            self.waiting.put(item, block=timeout > 0, timeout=timeout or None)
        except queue.Full:
            self._fail(f"does not answer, {MOST_WAITING} steps wait for it; newer ones are lost")

    def _work(self) -> None:
        """In the thread: open, send until there is None, close."""
        try:
            send, stop = self.open_run()
        except ANYTHING as error:
            self._fail(_reason(error))
            send, stop = (lambda numbers, step: None), (lambda: None)
        while (item := self.waiting.get()) is not None:
            try:
                send(*item)
            except ANYTHING as error:
                self._fail(_reason(error))
        try:
            stop()
        except ANYTHING as error:
            self._fail(_reason(error))

    def _fail(self, reason: str) -> None:
        if not self.has_failed:
            self.has_failed = True
            logger.warning("train.writers: %s fails, the run goes on: %s", self.name, reason)


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def optional_writers(cfg: DictConfig, folder: Path) -> list[SafeWriter]:
    """The writers of ``train.writers``.

    Args:
        cfg: of the run; each entry is a name, or ``{name: {option: value}}`` with options for
            ``wandb.init``, or ``experiment``, ``tracking_uri`` and ``run_name`` of MLflow.
        folder: of the run.

    Raises:
        UserError: no writer has that name, or its package is not installed.
    """
    found = []
    config = OmegaConf.to_container(cfg, resolve=True)
    for entry in cfg.train.get("writers") or []:
        name, options = _parse(entry)
        if name not in _OPENERS:
            near = nearest(name, _OPENERS) or " or ".join(_OPENERS)
            raise UserError(f"train.writers names {name!r}, which is no writer: give {near}")
        if find_spec(name) is None:
            raise UserError(
                f"train.writers names {name!r}, whose package is not installed: "
                f"pip install {name}, or take it out of train.writers"
            )
        found.append(SafeWriter(name, _opener(name, folder, config, options), cfg.train.log_period))
    return found


def _opener(
    name: str, folder: Path, config: dict[str, Any], options: dict[str, Any]
) -> Callable[[], tuple[Callable, Callable]]:
    return lambda: _OPENERS[name](folder, config, options)


def _parse(entry: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and len(entry) == 1:
        name, options = next(iter(entry.items()))
        if isinstance(options, Mapping):
            return str(name), OmegaConf.to_container(OmegaConf.create(dict(options)), resolve=True)
    raise UserError(
        f"train.writers has the entry {entry!r}: give a name, or one name with its options, "
        "such as {wandb: {project: mammography}}"
    )


def _open_wandb(
    folder: Path, config: dict[str, Any], options: dict[str, Any]
) -> tuple[Callable, Callable]:
    wandb = import_module("wandb")
    start = {"dir": str(folder), "name": folder.name, "config": config, **options}
    run = wandb.init(**start)
    return lambda numbers, step: run.log(numbers, step=step), run.finish


def _open_mlflow(
    folder: Path, config: dict[str, Any], options: dict[str, Any]
) -> tuple[Callable, Callable]:
    mlflow = import_module("mlflow")
    options = dict(options)
    if "tracking_uri" in options:
        mlflow.set_tracking_uri(options.pop("tracking_uri"))
    mlflow.set_experiment(options.pop("experiment", "detrex_mammo"))
    mlflow.start_run(run_name=options.pop("run_name", folder.name), **options)
    mlflow.log_dict(config, "config.json")

    def send(numbers: dict[str, float], step: int) -> None:
        # MLflow allows few characters in a name.
        mlflow.log_metrics({_plain_name(k): v for k, v in numbers.items()}, step=step)

    return send, mlflow.end_run


def _plain_name(name: str) -> str:
    return re.sub(r"[^\w./ -]", "_", name)


_OPENERS: Mapping[str, Callable] = {"wandb": _open_wandb, "mlflow": _open_mlflow}
