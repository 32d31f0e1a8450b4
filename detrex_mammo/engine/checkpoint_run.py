# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A checkpoint over a data set that no config names: with the preprocessing that is in the file."""

import logging
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detrex_mammo.checkpoint.load_model import load_model
from detrex_mammo.checkpoint.reading import read_source, require_source
from detrex_mammo.config import instantiate, load_config, load_config_text
from detrex_mammo.config_check import targets
from detrex_mammo.data.datasets import load_coco_json
from detrex_mammo.data.loader import start_worker
from detrex_mammo.engine.evaluation import by_name
from detrex_mammo.engine.loaders import dataset_errors, errors_of_workers
from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.predictions import (
    instances_to_records,
    read_annotations,
    with_dataset_categories,
)
from detrex_mammo.progress import counted

logger = logging.getLogger(__name__)
# What the config in a stranger's file may build between an image and the model.
_MAY_BUILD = {
    f"detrex_mammo.data.{name}"
    for name in (
        "augmentation.ResizeToFit",
        "augmentation_resize.ResizeShortEdge",
        "augmentation_resize.ResizeToSpacing",
        "coco_mapper.COCOMapper",
        "coco_mapper.ResizeShortEdge",
        "mapper.MammographyMapper",
        "preprocessing.Preprocessing",
    )
}


class CheckpointRun:
    """A model with all that lies between a file and its input.

    Args:
        path: checkpoint of any format; of ours, its config tells the size of the network's input.
        device: "cpu" or "cuda".
        config_file: whose ``dataloader.test.mapper`` to use in place of the checkpoint's.

    Attributes:
        classes: ``names`` and ``ids`` of the model's classes; empty if the file has none.

    Raises:
        UserError: the file is missing, damaged or unknown, or does not say how images are read.
    """

    def __init__(self, path: str | Path, device: str = "cpu", config_file: str | None = None):
        require_source(path)
        self.path, self.device = str(path), device
        content = read_source(path).content
        self._mapper = _mapper(content, self.path, config_file)
        self.model = load_model(path, device)
        self.classes = self.model.checkpoint_classes

    def predict(
        self,
        json_file: str | Path,
        image_root: str | Path,
        workers: int = 0,
        title: str = "predicting",
    ) -> list[dict[str, Any]]:
        """Detect in every image of an annotation file.

        Args:
            json_file: COCO JSON with the model's classes, in any order.
            image_root: folder that ``file_name`` is relative to.
            workers: processes that read images; 0 reads in this one.
            title: of the progress that is shown.

        Returns:
            list[dict]: COCO results in original pixels, with the file's category ids.

        Raises:
            UserError: the classes are not the model's, or an image is missing or damaged.
        """
        self._check_classes(json_file)
        names = self.classes["names"] or None
        with _registered(json_file, image_root, names) as (dataset, metadata):
            ids = metadata.thing_dataset_id_to_contiguous_id
            dataset_ids = sorted(ids, key=ids.__getitem__)
            loader = build_detection_test_loader(dataset, mapper=self._mapper, num_workers=workers)
            loader.worker_init_fn = start_worker
            records: list[dict[str, Any]] = []
            with torch.inference_mode(), errors_of_workers():
                for inputs in counted(loader, title):
                    for sample, output in zip(inputs, self.model(inputs), strict=True):
                        records += instances_to_records(output["instances"], sample)
        return with_dataset_categories(records, dataset_ids)

    def _check_classes(self, json_file: str | Path) -> None:
        categories = read_annotations(json_file)["categories"]
        theirs = sorted(str(category.get("name")) for category in categories)
        ours = sorted(self.classes["names"])
        number = getattr(self.model, "num_classes", len(theirs))
        if (ours and ours != theirs) or number != len(theirs):
            raise UserError(
                f"checkpoint {self.path!r} finds {', '.join(ours) or f'{number} classes'}, but "
                f"{str(json_file)!r} has {', '.join(theirs)}: a model is scored on the classes "
                "that it was trained for, so rename them in the file or train on them"
            )


def _mapper(content: Mapping[str, Any], path: str, config_file: str | None) -> Any:
    """What turns a record into the model's input, never from a cache of another machine."""
    if config_file is not None:
        return instantiate(_test_mapper(load_config(config_file), config_file))
    if not isinstance(content.get("config"), str):
        raise UserError(
            f"checkpoint {path!r} has no config of ours in it, so the size of its input is not "
            "known: name a config with --config-file"
        )
    source = f"the config of {path}"
    node = _test_mapper(load_config_text(content["config"], source), source)
    for target in targets(node):
        if target not in _MAY_BUILD:
            raise UserError(
                f"{source} reads images with {target!r}, which is not run because a stranger's "
                "file could run anything: name your own config with --config-file"
            )
    if isinstance(content.get("preprocessing"), Mapping) and "preprocessing" in node:
        node["preprocessing"] = dict(content["preprocessing"])
    return instantiate(node)


def _test_mapper(cfg: DictConfig, source: str) -> dict[str, Any]:
    """Plain data of the first ``dataloader.test.mapper``."""
    try:
        parts = by_name(cfg.dataloader.get("test"))
        node = next((part["mapper"] for part in parts.values() if part.get("mapper")), None)
        plain = None if node is None else OmegaConf.to_container(node, resolve=True)
    except (OmegaConfBaseException, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{source} has no readable dataloader.test.mapper ({reason})") from error
    if not isinstance(plain, dict):
        raise UserError(f"{source} has no dataloader.test.mapper, so no image can be read")
    return {**plain, **({"cache_dir": ""} if "cache_dir" in plain else {})}


@contextmanager
def _registered(json_file: str | Path, image_root: str | Path, names: list[str] | None):
    """Records and metadata of an annotation file, in the catalogs for as long as it is used."""
    name = f"checkpoint_run_{uuid4().hex}"
    try:
        with dataset_errors("the data set"):
            dataset = load_coco_json(name, str(json_file), str(image_root), names)
        yield dataset, MetadataCatalog.get(name)
    finally:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)
