# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A detector, data and evaluator small enough to train in a second, for tests of the engine."""

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from detrex_mammo.errors import UserError

CONFIG = """
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader
from detrex_mammo.config import get_config
from detrex_mammo.data.loader import build_train_loader
from detrex_mammo.engine.optimizer import param_groups
from detrex_mammo.engine.schedule import MultiStepSchedule
from tests.engine.tiny import TinyDetector, TinyEvaluator, TinyMapper, tiny_dataset
import torch

train = get_config("configs/common/train.py").train
train.output_dir = "{output}"
train.epochs = 3
train.log_period = 1
train.device = "cpu"
model = L(TinyDetector)(width=8, nan_at=-1)
optimizer = L(torch.optim.AdamW)(
    params=L(param_groups)(lr="${{..lr}}", rules=[dict(pattern="head", lr_multiplier=0.5)]),
    lr=1e-2,
)
lr_multiplier = L(MultiStepSchedule)(milestones=[2])
dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(tiny_dataset)(num_images=12), mapper=L(TinyMapper)(), total_batch_size=4,
        num_workers=0,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(tiny_dataset)(num_images=5), mapper=L(TinyMapper)(), num_workers=0,
    ),
    evaluator=L(TinyEvaluator)(output_dir="${{train.output_dir}}/inference"),
)
"""


def write_config(folder: Path, output: str = "run") -> str:
    """Write a runnable config into a folder; returns its path."""
    path = folder / "tiny_config.py"
    path.write_text(CONFIG.format(output=folder / output))
    return str(path)


def read_lines(path: Path, key: str) -> list[float]:
    """Values of one metric in a metrics.json, in order."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def tiny_dataset(num_images: int) -> list[dict]:
    """Images of different width that hold nothing but their own number."""
    return [{"image_id": i, "height": 6, "width": 5 + i % 2} for i in range(num_images)]


class TinyMapper:
    """Makes the image from its number; number ``fail_at`` is a user's mistake.

    With ``noise`` it is augmented by random numbers of NumPy and of torch.
    """

    preprocessing = {"window": "none"}

    def __init__(self, fail_at: int = -1, noise: float = 0.0):
        self.fail_at, self.noise = fail_at, noise

    def __call__(self, item: dict) -> dict:
        if item["image_id"] == self.fail_at:
            raise UserError(f"image {self.fail_at} cannot be used")
        rng = np.random.default_rng(item["image_id"])
        pixels = rng.normal(size=(3, item["height"], item["width"])).astype("float32")
        image = torch.from_numpy(pixels)
        if self.noise:
            image = image + self.noise * (np.random.normal() + torch.randn(()))
        return {**item, "image": image, "truth": float(pixels.mean() * 3)}


class TinyDetector(nn.Module):
    """Predicts one number per image.

    Args:
        width: channels.
        nan_at: training step at which the loss becomes NaN in the last process; -1 never.
        dropout: of the channels.
    """

    def __init__(self, width: int = 8, nan_at: int = -1, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.backbone = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Linear(width, 1)
        self.nan_at = nan_at
        self.calls = itertools.count()

    def forward(self, batch: list[dict]):
        device = self.head.weight.device
        features = [self.backbone(item["image"].to(device)).relu().mean((-1, -2)) for item in batch]
        values = self.head(self.dropout(torch.stack(features)))[:, 0]
        if not self.training:
            return [{"value": float(value)} for value in values]
        truth = torch.tensor([item["truth"] for item in batch], device=device)
        error = values.float() - truth
        if next(self.calls) == self.nan_at and comm.get_rank() == comm.get_world_size() - 1:
            error = error * float("nan")
        return {"loss_bbox": error.abs().mean(), "loss_class": (error**2).mean()}


class TinyEvaluator(DatasetEvaluator):
    """Mean absolute error over the whole dataset."""

    def __init__(self, output_dir: str):
        self.output_dir = Path(output_dir)

    def reset(self) -> None:
        self.errors: list[float] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for item, output in zip(inputs, outputs):
            self.errors.append(abs(item["truth"] - output["value"]))

    def evaluate(self) -> dict:
        gathered = [error for errors in comm.gather(self.errors) for error in errors]
        if not comm.is_main_process():
            return {}
        self.output_dir.mkdir(parents=True, exist_ok=True)
        (self.output_dir / "predictions.json").write_text(json.dumps(gathered))
        return {"tiny": {"error": float(np.mean(gathered)), "count": len(gathered)}}
