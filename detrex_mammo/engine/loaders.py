# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Build a run's data loaders and evaluators; a missing dataset is one sentence."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig

from detrex_mammo.config import instantiate, instantiate_with
from detrex_mammo.config_check import call_arguments, nearest, resolve_target
from detrex_mammo.data.batching import Batches
from detrex_mammo.data.loader import start_worker
from detrex_mammo.engine.sampler import SeededSampler
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)


@dataclass
class TrainData:
    """The training loader and what the run needs to know about it.

    Attributes:
        loader: endless; yields the batch of this process, a list of dataset dicts.
        num_images: images of one epoch.
        batch_size: images per step over all processes; their mean with a token budget.
        iters_per_epoch: steps in which every image of an epoch is seen.
        mapper: what turns a dataset dict into a model input.
    """

    loader: Any
    num_images: int
    batch_size: int
    iters_per_epoch: int
    mapper: Any


def build_train_data(node: DictConfig, seed: int, start_iter: int = 0) -> TrainData:
    """Build ``dataloader.train``.

    Args:
        node: lazy call with ``dataset`` (something with a length) and ``total_batch_size``; its
            ``sampling`` says how often an image is shown.
        seed: of the order of images and of their augmentation, unless the node has a sampler of
            its own.
        start_iter: steps of the loader that are done already.

    Raises:
        UserError: the dataset is missing or empty, or the batch cannot be shared out.
    """
    batch_size, world = node.get("total_batch_size"), comm.get_world_size()
    if not isinstance(batch_size, int) or batch_size < 1 or batch_size % world:
        raise UserError(
            f"dataloader.train.total_batch_size is {batch_size}: it must be above 0 and a "
            f"multiple of the number of processes, {world}"
        )
    with dataset_errors("dataloader.train"):
        _check_names(node, "dataloader.train")
        _check_workers(node, "dataloader.train")
        dataset, mapper = instantiate(node.get("dataset")), instantiate(node.get("mapper"))
        if not hasattr(dataset, "__len__"):
            raise UserError("dataloader.train.dataset has no length: give a list of images")
        if len(dataset) == 0:
            raise UserError("dataloader.train.dataset holds no image")
        if hasattr(mapper, "attach"):
            mapper.attach(dataset)  # it mixes images
        sampling = instantiate(node.get("sampling"))
        order = SeededSampler(dataset, seed, sampling, start_iter, batch_size)
        more = {"sampling": sampling}
        if node.get("sampler") is None:
            more["sampler"] = order
        known, _, _ = call_arguments(resolve_target(node, "dataloader.train", "the config"))
        more = {name: value for name, value in more.items() if name in known}
        more.update(dataset=dataset, mapper=mapper)
        loader = instantiate_with(node, "dataloader.train", **more)
    return _describe(loader, order, batch_size, mapper)


def _describe(loader: Any, order: SeededSampler, batch_size: int, mapper: Any) -> TrainData:
    batches = getattr(loader, "batch_sampler", None)
    if not isinstance(batches, Batches):
        steps = math.ceil(order.length / batch_size)
        return TrainData(loader, order.length, batch_size, steps, mapper)
    size = max(1, round(batches.mean_batch_size))
    return TrainData(loader, order.length, size, batches.steps_per_epoch, mapper)


class FirstBatches:
    """The first ``count`` batches of a loader, for a trial run."""

    def __init__(self, loader: Any, count: int):
        self.loader, self.count = loader, count

    def __len__(self) -> int:
        return min(self.count, len(self.loader))

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.loader), self.count)


def build_test_loader(node: DictConfig, first_batches: int | None = None) -> Any:
    """Build ``dataloader.test``; ``first_batches`` cuts it short."""
    with dataset_errors("dataloader.test"):
        _check_names(node, "dataloader.test")
        _check_workers(node, "dataloader.test")
        loader = instantiate(node)
    if getattr(loader, "worker_init_fn", start_worker) is None:
        loader.worker_init_fn = start_worker
    return loader if first_batches is None else FirstBatches(loader, first_batches)


def build_evaluator(node: Any) -> DatasetEvaluator:
    """Build ``dataloader.evaluator``: one lazy call or a list of them."""
    with dataset_errors("dataloader.evaluator"):
        _check_names(node, "dataloader.evaluator")
        built = instantiate(node)
    return DatasetEvaluators(list(built)) if isinstance(built, (ListConfig, list)) else built


@contextmanager
def dataset_errors(key: str) -> Iterator[None]:
    """Turn a missing file of a dataset into one sentence."""
    try:
        yield
    except UserError:
        raise
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UserError(
            f"{key}: {error.filename or error!s} cannot be read ({error.strerror or 'missing'}): "
            "put the dataset there, set the folder (for detectron2's own datasets the variable "
            f"DETECTRON2_DATASETS), or change the dataset's name under {key}"
        ) from error


@contextmanager
def errors_of_workers() -> Iterator[None]:
    """Give back the sentence that torch wraps into a traceback of a process that reads images."""
    try:
        yield
    except UserError as error:
        message = str(error)
        if not message.startswith("Caught UserError in DataLoader"):
            raise
        last = message.strip().splitlines()[-1]
        raise UserError(last.removeprefix("detrex_mammo.errors.UserError: ")) from error


def class_table(names: list[str]) -> dict[str, list]:
    """Names of the classes in the model's order, and their category ids in the dataset.

    Returns:
        dict: ``names`` (list[str]) and ``ids`` (list[int]); empty if no dataset has a table.
    """
    for name in names:
        metadata = MetadataCatalog.get(name)
        classes = list(metadata.get("thing_classes", None) or [])
        if classes:
            ids = metadata.get("thing_dataset_id_to_contiguous_id", None) or {}
            by_index = {int(index): int(category) for category, index in ids.items()}
            return {"names": classes, "ids": [by_index.get(i, i) for i in range(len(classes))]}
    return {"names": [], "ids": []}


def annotation_files(names: list[str]) -> dict[str, str]:
    """Annotation file of each data set, or of each of its parts, that has one and is there."""
    files: dict[str, str | None] = {}
    for name in names:
        metadata = MetadataCatalog.get(name)
        files[name] = metadata.get("json_file", None)
        for part, file in metadata.get("json_files", {}).items():
            files[f"{name}/{part}"] = file
    return {name: file for name, file in files.items() if file and os.path.isfile(file)}


def dataset_names(node: Any) -> list[str]:
    """Names of data sets in a loader's or evaluator's node.

    ``dataset.names`` (detectron2's, registered before), ``dataset.name`` (of a function that
    registers what it loads, be it in several ``parts``), ``dataset_name`` (an evaluator's).
    """
    if isinstance(node, (ListConfig, list)):
        return [name for item in node for name in dataset_names(item)]
    if not isinstance(node, DictConfig):
        return []
    inner = node.get("dataset")
    inner = inner if isinstance(inner, DictConfig) else {}
    value = inner.get("names") or inner.get("name") or node.get("dataset_name")
    return [value] if isinstance(value, str) else [v for v in value or [] if isinstance(v, str)]


def check_classes(model: Any, names: list[str]) -> None:
    """Refuse a model whose classes are not those of its data set; the model keeps their names.

    The first data set, that of training, says what the model's outputs mean; one that counts the
    same classes in another order would score every prediction as another class.

    Raises:
        UserError: predictions could not be scored, or targets not be learned.
    """
    found = class_table(names)["names"]
    actual = getattr(model, "num_classes", None)
    if not found or actual is None:
        return
    if actual != len(found):
        raise UserError(
            f"model.num_classes is {actual}, but the data set {names[0]!r} has {len(found)} "
            f"class(es): set model.num_classes={len(found)}"
        )
    known = getattr(model, "class_names", None)
    if known is None:
        model.class_names = found
    elif known != found:
        listed, first = ", ".join(found), ", ".join(known)
        if set(known) & set(found):
            raise UserError(
                f"the data set {names[0]!r} has the classes {listed}, but the model's are {first}: "
                "give each dataset the same classes (a list in their order) and, where names "
                "differ, a class_map"
            )
        logger.warning(
            "the data set %r has the classes %s, the model's are %s: they are taken in this order",
            names[0],
            listed,
            first,
        )


def _check_workers(node: Any, key: str) -> None:
    number = node.get("num_workers", 0) if isinstance(node, DictConfig) else 0
    if type(number) is not int or number < 0:
        raise UserError(
            f"{key}.num_workers is {number!r}; give the processes that load images, 0 for none"
        )


def _check_names(node: Any, key: str) -> None:
    if isinstance(node, DictConfig) and "name" in (node.get("dataset") or {}):
        return  # that function registers what it loads
    known = DatasetCatalog.list()
    for name in dataset_names(node):
        if name not in known:
            near = nearest(name, known)
            hint = f"the nearest registered one is {near!r}" if near else "register it first"
            raise UserError(f"{key} names the dataset {name!r}, which is not registered: {hint}")
