# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Models x data sets: every checkpoint on every data set, resumable pair by pair.

``DIR/model/dataset/`` has ``predictions.json`` with ``predictions.source.json``, and
``evaluation.json`` with its tables. A pair is predicted anew unless the predictions are whole and
of the same checkpoint, annotations and config file (by SHA-256), and scored anew unless the
evaluation is of the same predictions, rules and version too.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from detrex_mammo import __version__
from detrex_mammo.checkpoint.reading import (
    file_sha256,
    local_path,
    require_file,
    require_source,
    source_sha256,
)
from detrex_mammo.engine.checkpoint_run import CheckpointRun
from detrex_mammo.engine.integrity import replace_text
from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.assess.settings import AssessSettings
from detrex_mammo.evaluation.predictions import write_predictions
from detrex_mammo.inference.offline import RESULTS, Truth, write_results

PREDICTIONS = "predictions.json"
_NAME = re.compile(r"[\w][\w.+-]*")


@dataclass
class Model:
    """A checkpoint, or a folder with a file of predictions for each data set.

    Attributes:
        name: in the table and of a folder.
        path: of the checkpoint; or of the folder, which holds ``DATASET.json`` or ``.csv``.
        device, config_file: see :class:`~detrex_mammo.engine.checkpoint_run.CheckpointRun`.
    """

    name: str
    path: str
    device: str = "cpu"
    config_file: str | None = None

    def given_predictions(self, dataset: str) -> Path | None:
        """The data set's file of predictions; None for a checkpoint.

        Raises:
            UserError: the folder has no file for it.
        """
        folder = Path(self.path)
        if not folder.is_dir() or (folder / "config.json").is_file():  # Hugging Face's
            return None
        files = [folder / f"{dataset}{suffix}" for suffix in (".json", ".csv")]
        for file in files:
            if file.is_file():
                return file
        raise UserError(
            f"{self.path!r} has predictions for {self.name!r}, but neither {files[0].name} nor "
            f"{files[1].name}: name a file after the data set, or give a checkpoint"
        )

    @cached_property
    def sha256(self) -> Any:
        """Of the checkpoint.

        Raises:
            UserError: it is missing.
        """
        path = local_path(self.path)
        require_source(path)
        return source_sha256(path)

    @cached_property
    def run(self) -> CheckpointRun:
        """The checkpoint, loaded when it is first needed."""
        return CheckpointRun(local_path(self.path), self.device, self.config_file)


@dataclass
class DataSet:
    """An annotation file and its images.

    Attributes:
        name: in the table and of a folder.
        json_file: COCO JSON.
        image_root: folder of the images; not needed for predictions that exist.
    """

    name: str
    json_file: str
    image_root: str | None = None

    @cached_property
    def truth(self) -> Truth:
        """The annotations, read once."""
        return Truth.read(self.json_file)

    @cached_property
    def sha256(self) -> str:
        """Of the annotation file."""
        return file_sha256(require_file(self.json_file))


@dataclass
class Matrix:
    """What came of every pair.

    Attributes:
        pairs: (model, data set), in their order.
        figures: (model, data set) -> name -> ``value``, ``low``, ``high``, ``of``.
        failures: (model, data set) -> sentence.
        settings: of the evaluation.
    """

    settings: AssessSettings
    pairs: list[tuple[str, str]] = field(default_factory=list)
    figures: dict[tuple[str, str], dict[str, dict[str, Any]]] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)


def run_matrix(
    models: Sequence[Model],
    datasets: Sequence[DataSet],
    out: Path,
    settings: AssessSettings,
    workers: int = 0,
    tell: Callable[[str], None] = print,
) -> Matrix:
    """Run and score every pair that is not done; one that fails does not stop the others.

    Args:
        models: checkpoints or folders of predictions.
        datasets: with the classes of every model.
        out: folder of the results.
        settings: of the evaluation.
        workers: processes that read images.
        tell: takes a line when a pair is done.

    Raises:
        UserError: two of a kind have one name, or a name is no name of a folder.
    """
    for what, entries in (("model", models), ("data set", datasets)):
        _check_names(what, [entry.name for entry in entries])
    matrix = Matrix(settings, [(m.name, d.name) for m in models for d in datasets])
    for model in models:
        for dataset in datasets:
            pair = Pair(model, dataset, out / model.name / dataset.name, settings)
            number = matrix.pairs.index((model.name, dataset.name)) + 1
            head = f"[{number}/{len(matrix.pairs)}] {model.name} x {dataset.name}"
            try:
                figures, what = pair.result(workers, head)
                matrix.figures[model.name, dataset.name] = figures
                tell(f"{head}: {what}")
            except UserError as error:
                matrix.failures[model.name, dataset.name] = str(error)
                tell(f"{head}: failed: {error}")
        model.__dict__.pop("run", None)  # the next model needs the memory
    return matrix


def _check_names(what: str, names: Sequence[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{what} {name!r} names a folder: use letters, digits, '.', '_', '+' and '-'"
            )
        if names.count(name) > 1:
            raise UserError(f"two {what}s are named {name!r}: give each its own name")


@dataclass
class Pair:
    """One model on one data set.

    Attributes:
        model, dataset: the two.
        folder: of the results.
        settings: of the evaluation; None where only predictions are wanted.
    """

    model: Model
    dataset: DataSet
    folder: Path
    settings: AssessSettings | None = None

    def result(self, workers: int, title: str) -> tuple[dict[str, dict[str, Any]], str]:
        """Figures, and what had to be done for them in a word.

        Raises:
            UserError: of any kind; what was done before is kept.
        """
        predictions, was_there = self.predictions(workers, title)
        key = {
            "predictions_sha256": file_sha256(predictions),
            "annotations_sha256": self.dataset.sha256,
            "settings": json.loads(json.dumps(asdict(self.settings))),
            "version": __version__,
        }
        found = _read(self.folder / RESULTS)
        if found.get("key") == key and isinstance(found.get("figures"), dict):
            return found["figures"], "done before"
        assessment = self.dataset.truth.assess(predictions, self.settings)
        names = {"model": self.model.name, "dataset": self.dataset.name}
        files = {"predictions": str(predictions), "annotations": self.dataset.json_file}
        write_results(self.folder, assessment, {**names, **files, "key": key})
        figures = _read(self.folder / RESULTS)["figures"]
        return figures, "scored again, predicted before" if was_there else "predicted and scored"

    def predictions(self, workers: int, title: str) -> tuple[Path, bool]:
        """The file of predictions, and whether it was there.

        Raises:
            UserError: as for :meth:`CheckpointRun.predict`, or there is no folder of images.
        """
        given = self.model.given_predictions(self.dataset.name)
        if given is not None:
            return given, True
        config = self.model.config_file
        key = {
            "checkpoint_sha256": self.model.sha256,
            "annotations_sha256": self.dataset.sha256,
            "config_sha256": None if config is None else file_sha256(require_file(config)),
        }
        path, source = self.folder / PREDICTIONS, self.folder / "predictions.source.json"
        known = _read(source)
        if path.is_file() and known == {**key, "predictions_sha256": file_sha256(path)}:
            return path, True
        if self.dataset.image_root is None:
            raise UserError(
                f"data set {self.dataset.name!r} has no folder of images, which a checkpoint "
                "needs: name it (NAME=ANNOTATIONS.json:IMAGE_ROOT, or --image-root)"
            )
        records = self.model.run.predict(
            self.dataset.json_file, self.dataset.image_root, workers, title
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_predictions(records, path)
            key["predictions_sha256"] = file_sha256(path)
            replace_text(source, json.dumps(key, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"{str(self.folder)!r} cannot be written: {error.strerror}") from error
        return path, False


def predictions_of(
    path: str,
    dataset: DataSet,
    folder: Path,
    device: str,
    workers: int,
) -> Path:
    """A file of predictions as it is; those of a checkpoint, made in ``folder`` if need be.

    Raises:
        UserError: the checkpoint cannot be run on the data set.
    """
    if Path(path).suffix.lower() in (".json", ".csv"):
        return Path(path)
    model = Model(Path(path).stem, path, device)
    place = folder / f"{model.name}-{hashlib.sha256(repr(model.sha256).encode()).hexdigest()[:8]}"
    pair = Pair(model, dataset, place / dataset.name)
    return pair.predictions(workers, path)[0]


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is none, or it is not whole."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
