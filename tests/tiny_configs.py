# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Any shipped config, cut down so that it runs in a second: tiny images, tiny model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from omegaconf import DictConfig, ListConfig

from detrex_mammo.config import find_shipped
from detrex_mammo.engine.evaluation import by_name

CLASSES = ("mass", "calcification")


def shipped_configs() -> list[str]:
    """Every run config that the repository ships, relative to its root."""
    root = Path(find_shipped("configs/common/train.py")).parents[2]
    found = sorted(root.glob("projects/*/configs/*.py"))
    return [str(path.relative_to(root)) for path in found]


def write_coco(folder: Path, num_images: int = 6, height_step: int = 4) -> Path:
    """Write COCO JSON and grey images, of different sizes or one; the last image has no box.

    Returns:
        Path: the JSON; the images are beside it.
    """
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(num_images):
        height, width = 48 + height_step * (number % 3), 40
        pixels = rng.integers(0, 5, (height, width), dtype=np.uint8)
        pixels[4:-4, :30] = 90  # a breast at the left wall
        name = f"image_{number}.png"
        if number < num_images - 1:
            x, y, side = 6 + number, 12, 9
            pixels[y : y + side, x : x + side] = 220
            annotations.append(
                {
                    "id": number + 1,
                    "image_id": number + 1,
                    "category_id": 10 + number % 2,
                    "bbox": [x, y, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                }
            )
        cv2.imwrite(str(folder / name), pixels)
        images.append(
            {
                "id": number + 1,
                "file_name": name,
                "height": height,
                "width": width,
                "patient_id": f"p{number}",
            }
        )
    categories = [{"id": 10 + index, "name": name} for index, name in enumerate(CLASSES)]
    path = folder / "coco.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return path


def nodes(config: Any) -> Iterator[DictConfig]:
    """Every group of settings inside a config."""
    if isinstance(config, DictConfig):
        yield config
    values = config.values() if isinstance(config, DictConfig) else config
    for value in values:
        if isinstance(value, (DictConfig, ListConfig)):
            yield from nodes(value)


def shrink(cfg: DictConfig, json_file: Path, output: Path) -> None:
    """Make a run's config tiny, in place; its structure stays."""
    cfg.train.output_dir = str(output)
    cfg.train.init_checkpoint = ""
    cfg.train.device = "cpu"
    cfg.model.num_classes = len(CLASSES)
    cfg.model.num_queries = 12
    cfg.model.embed_dim = 64
    for node in nodes(cfg):
        smaller = {
            "depth": 14,
            "num_heads": 4,
            "num_encoder_layers": 1,
            "num_decoder_layers": 2,
            "feedforward_dim": 32,
            "max_size": 64,
            "num_workers": 0,
            "total_batch_size": 2,
        }
        for key, value in smaller.items():
            if isinstance(node.get(key), int):
                node[key] = value
        if "depth" in node and "freeze_at" in node:
            node.update(stem_out_channels=8, res2_out_channels=16)
        _shrink_augmentation(node)
    for loader in (cfg.dataloader.train, *by_name(cfg.dataloader.test).values()):
        _point_at(loader.dataset, json_file)


def _shrink_augmentation(node: DictConfig) -> None:
    if "short_edges" in node:
        node.short_edges = [32, 40]
    if "crop_size" in node:
        node.crop_size = [24, 32]
    if "height" in node and "width" in node:
        node.height, node.width = 64, 48


def _point_at(dataset: DictConfig, json_file: Path) -> None:
    if "classes" in dataset:
        dataset.update(classes=list(CLASSES), class_map=None)
    if "parts" in dataset:
        part = dict(json_file=str(json_file), image_root=str(json_file.parent))
        dataset.update(name=f"tiny_mixed_{json_file}", parts=dict(one=part, two=part))
        return
    if "json_file" in dataset:
        dataset.update(
            name=f"tiny_{json_file}", json_file=str(json_file), image_root=str(json_file.parent)
        )
        return
    name = f"registered_{json_file}"
    if name not in DatasetCatalog.list():
        register_coco_instances(name, {}, str(json_file), str(json_file.parent))
        MetadataCatalog.get(name).set(thing_classes=list(CLASSES))
    dataset.names = name
