# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Folders as runs leave them: one really trained and evaluated, others written by hand."""

import hashlib
import json
from pathlib import Path
from typing import Any

from detrex_mammo.config import config_to_text, load_config
from detrex_mammo.engine.main import main
from tests.tiny_configs import shrink, write_coco

DEMO = "projects/mammography/configs/demo.py"


def train_tiny(folder: Path) -> Path:
    """Train the demo's detector, cut down, for an epoch on six images, and evaluate it.

    Returns:
        Path: the run's folder, ``folder/run``.
    """
    config = tiny_config(folder)
    main(["--config-file", config])
    return folder / "run"


def tiny_config(folder: Path) -> str:
    """The demo's config, cut down, as a file."""
    cfg = load_config(DEMO)
    shrink(cfg, write_coco(folder), folder / "run")
    cfg.train.epochs = 1
    cfg.dataloader.evaluator.note = ""  # the demo's says that lesions are simulated
    path = folder / "tiny.yaml"
    path.write_text(config_to_text(cfg))
    return str(path)


def evaluate_tiny(run: Path) -> Path:
    """Evaluate what :func:`train_tiny` trained; returns ``run/eval``."""
    config = str(run / "config.yaml")
    checkpoint = run / "model_final.pth"
    main(["--eval-only", "--config-file", config, f"train.init_checkpoint={checkpoint}"])
    return run / "eval"


# One image with one box of class "a" and none of class "b".
ANNOTATIONS = {
    "images": [{"id": 1, "file_name": "1.png", "height": 100, "width": 100}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400}
    ],
    "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
}


def write_by_hand(folder: Path, topk: int = 300, **metrics: Any) -> Path:
    """A folder as an old evaluation left it: no run.json, froc.json, predictions."""
    folder.mkdir(parents=True)
    cfg = load_config(DEMO)
    cfg.model.topk, cfg.model.num_queries = topk, 300
    cfg.train.init_checkpoint = "projects/mammography/checkpoints/demo_small.pth"
    (folder / "config.yaml").write_text(config_to_text(cfg))
    numbers = {"bbox/AP": 12.5, **metrics}
    (folder / "metrics.json").write_text(json.dumps(numbers) + "\n")
    return folder


def add_predictions(folder: Path, records: list[dict], annotations: dict | None = None) -> Path:
    """Give a folder written by hand predictions, and a run.json that names their truth."""
    truth = folder / "truth.json"
    truth.write_text(json.dumps(annotations or ANNOTATIONS))
    (folder / "coco_instances_results.json").write_text(json.dumps(records))
    digest = hashlib.sha256(truth.read_bytes()).hexdigest()
    record = {"sessions": [], "data": {"test": {"hand": {"file": str(truth), "sha256": digest}}}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def below_a_hundred_others() -> list[dict]:
    """The box of class "a" found by the 101st best prediction; 100 of class "b" lie elsewhere."""
    others = [
        {"image_id": 1, "category_id": 2, "bbox": [60, 60, 5, 5], "score": 0.9 - 0.001 * n}
        for n in range(100)
    ]
    return [*others, {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.5}]
