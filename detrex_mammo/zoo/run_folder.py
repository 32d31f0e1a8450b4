# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What an evaluated run left in its folder, read once and checked against each other.

Nothing is guessed: what no file tells is None.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detrex_mammo.checkpoint.conversion import detect_format
from detrex_mammo.checkpoint.reading import (
    file_sha256,
    local_path,
    read_source,
    source_sha256,
)
from detrex_mammo.config import load_config_text
from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.predictions import read_annotations, read_predictions

PREDICTIONS = "coco_instances_results.json"


@contextmanager
def damage_told(folder: str | Path) -> Iterator[None]:
    """Turn what a damaged file of a run leads to into one sentence."""
    try:
        yield
    except UserError:
        raise
    except (
        TypeError, ValueError, KeyError, AttributeError, IndexError, OmegaConfBaseException,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"a file of the run in {str(folder)!r} is damaged ({type(error).__name__}: {reason}): "
            "evaluate again"
        ) from error


@dataclass(frozen=True)
class RunFolder:
    """One training run with its last evaluation, or one ``--eval-only`` run.

    Attributes:
        path: the folder.
        config_text: config.yaml.
        metrics: numbers of the last evaluation by flat name (``bbox/AP``); None is "no such".
        record: run.json; empty if there is none.
        froc: froc.json; None if there is none.
        is_training: the folder holds a finished training run.
        results: folder of the predictions, if it is another one.
        test_set: its name, if the run was evaluated on several; see ``several_sets.py``.
    """

    path: Path
    config_text: str
    metrics: dict[str, float | None]
    record: dict[str, Any] = field(default_factory=dict)
    froc: dict[str, Any] | None = None
    is_training: bool = False
    results: Path | None = None
    test_set: str = ""

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml with its interpolations resolved."""
        return _resolved(self.config_text, str(self.path / "config.yaml"))

    @cached_property
    def training_config(self) -> dict[str, Any]:
        """The config that the weights were trained by, as their file tells; may be empty."""
        if self.is_training:
            return self.config
        text = self.checkpoint_content.get("config")
        return _resolved(text, str(self.checkpoint)) if isinstance(text, str) else {}

    @property
    def config_sha256(self) -> str:
        """Fingerprint of config.yaml."""
        return hashlib.sha256(self.config_text.encode()).hexdigest()

    @property
    def session(self) -> dict[str, Any]:
        """The last start of the run: command, commit, machine, seconds; empty if not recorded."""
        return (self.record.get("sessions") or [{}])[-1]

    @property
    def training_sessions(self) -> list[dict[str, Any]]:
        """Starts of the training; empty if not recorded, or of another run."""
        return [s for s in self.record.get("sessions") or [] if s.get("mode") == "training"]

    @property
    def default_name(self) -> str:
        """The checkpoint's name, or that of the folder it was trained in, and the test set's."""
        return "-".join(filter(None, (self._weights_name, self.test_set)))

    @property
    def _weights_name(self) -> str:
        path = self.path.resolve()
        if self.is_training:
            return path.name
        name = Path(self.config.get("train", {}).get("init_checkpoint") or path.name)
        return name.resolve().parent.name if name.stem == "model_final" else name.stem

    @cached_property
    def checkpoint(self) -> Path | None:
        """The evaluated file or folder, if it is there and still the one that was evaluated.

        Raises:
            UserError: it is another one by now.
        """
        if self.is_training:
            return self.path / "model_final.pth"
        name = self.config.get("train", {}).get("init_checkpoint")
        path = Path(local_path(name)) if name else None
        if path is None or not path.exists():
            return None
        recorded = (self.record.get("checkpoint") or {}).get("sha256")
        if recorded and source_sha256(path) != recorded:
            raise UserError(
                f"checkpoint {name!r} is not the one that {str(self.path)!r} evaluated: its sha256 "
                "differs; evaluate again"
            )
        return path

    @cached_property
    def checkpoint_sha256(self) -> str | None:
        """SHA-256 of the evaluated weights, as recorded when they were evaluated or trained.

        Of weights in several files, that of the lines that sha256sum would print.
        """
        if self.is_training:
            return file_sha256(self.path / "model_final.pth")
        recorded = (self.record.get("checkpoint") or {}).get("sha256")
        if not isinstance(recorded, Mapping):
            return recorded
        if len(recorded) == 1:
            return next(iter(recorded.values()))
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(recorded.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    @cached_property
    def checkpoint_content(self) -> dict[str, Any]:
        """What the evaluated file tells about itself (no weights); empty if it is not there.

        ``format`` is whose naming its weights have; None if nobody knows.
        """
        if self.checkpoint is None:
            return {}
        source = read_source(self.checkpoint)
        try:
            name = detect_format(source)
        except UserError:
            name = None
        return {**source.content, "format": name}

    @property
    def data(self) -> dict[str, Any]:
        """Name, file and sha256 of the evaluated annotations; None for what is not recorded."""
        tested = (self.record.get("data") or {}).get("test") or {}
        for name, facts in tested.items():
            return {"name": name, **facts}
        names = [(self.froc or {}).get("dataset"), *dataset_names(self.config, "test")]
        return {"name": next(filter(None, names), None), "file": None, "sha256": None}

    @cached_property
    def annotations(self) -> dict[str, Any] | None:
        """The evaluated annotation file, if it is there and has not changed since."""
        file, recorded = self.data["file"], self.data["sha256"]
        if file is None or source_sha256(file) != recorded:
            return None
        return read_annotations(local_path(file))

    @cached_property
    def predictions(self) -> list[dict[str, Any]] | None:
        """Every prediction, in original pixels; None if the run kept none."""
        path = self.results or self.path
        for folder in (path, path / "inference"):
            if (folder / PREDICTIONS).is_file():
                return read_predictions(folder / PREDICTIONS)
        return None


def read_run_folder(path: str | Path) -> RunFolder:
    """Read an output folder of tools/train_net.py.

    Raises:
        UserError: no such folder, no evaluation in it, a trial run, or a damaged file.
    """
    path = Path(path)
    if not path.is_dir():
        what = "a file" if path.exists() else "not there"
        raise UserError(f"{str(path)!r} is {what}: give the output folder of tools/train_net.py")
    for name in ("config.yaml", "metrics.json"):
        if not (path / name).is_file():
            raise UserError(
                f"{str(path)!r} holds no {name}: give the output folder of a run of "
                "tools/train_net.py that was evaluated"
            )
    metrics, is_training = _last_evaluation(path / "metrics.json")
    run = RunFolder(
        path=path,
        config_text=(path / "config.yaml").read_text(encoding="utf-8"),
        metrics=metrics,
        record=read_json(path / "run.json") or {},
        froc=read_json(path / "froc.json"),
        is_training=is_training,
    )
    _check(run)
    return run


def _resolved(text: str, source: str) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(load_config_text(text, source), resolve=True)
    except OmegaConfBaseException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the config in {source!r} does not resolve: {reason}") from error


def _check(run: RunFolder) -> None:
    if run.config.get("train", {}).get("fast_dev_run"):
        raise UserError(f"{str(run.path)!r} is a trial run (train.fast_dev_run): run it in full")
    if run.is_training and not (run.path / "model_final.pth").is_file():
        raise UserError(
            f"{str(run.path)!r} holds no model_final.pth: the training has not ended, go on with "
            "it by --resume"
        )


def _last_evaluation(path: Path) -> tuple[dict[str, float | None], bool]:
    """Numbers of the last evaluation, and whether training wrote the file.

    The names of evaluated numbers have a slash (``bbox/AP``), those of training steps have none.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        evaluated = [{k: v for k, v in line.items() if "/" in k} for line in lines]
    except (ValueError, AttributeError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error}): evaluate again") from error
    evaluated = [numbers for numbers in evaluated if numbers]
    if not evaluated:
        raise UserError(f"{str(path)!r} holds no evaluation: evaluate with --eval-only first")
    return evaluated[-1], any("iteration" in line for line in lines)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object of a run; None if there is no such file.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{str(path)!r} is damaged ({error}): evaluate again") from error
    if not isinstance(content, dict):
        raise UserError(f"{str(path)!r} is damaged (no JSON object): evaluate again")
    return content


def dataset_names(config: Mapping[str, Any], split: str) -> list[str]:
    """Names of the data sets of a loader ("train" or "test") in a resolved config."""
    loader = (config.get("dataloader") or {}).get(split) or {}
    dataset = loader.get("dataset") or {}
    names = dataset.get("name") or dataset.get("names") if isinstance(dataset, Mapping) else None
    return [names] if isinstance(names, str) else list(names or [])
