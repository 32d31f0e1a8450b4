# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A small detector in double precision, and images for it that need no file."""

from pathlib import Path

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from detrex_mammo.config import instantiate, load_config
from tests.tiny_configs import shrink, write_coco

RECIPE = "projects/deformable_detr/configs/deformable_detr_r50_two_stage_50ep.py"


def make_detector(folder: Path, dropout: float = 0.0, recipe: str = RECIPE) -> nn.Module:
    """A detector, two-stage if not told otherwise, all parameters random, but always the same."""
    cfg = load_config(recipe)
    shrink(cfg, write_coco(folder), folder)
    cfg.model.transformer.dropout = dropout
    cfg.model.topk = 12
    torch.manual_seed(0)
    model = instantiate(cfg.model).double()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def image(number: int, size: tuple[int, int], num_boxes: int) -> dict:
    """A mapped image of noise with boxes anywhere."""
    generator = torch.Generator().manual_seed(number)
    height, width = size
    corners = torch.rand(num_boxes, 2, generator=generator) * 0.5
    sides = 0.2 + 0.3 * torch.rand(num_boxes, 2, generator=generator)
    instances = Instances(size)
    scale = torch.tensor([width, height, width, height])
    instances.gt_boxes = Boxes(torch.cat((corners, corners + sides), dim=1) * scale)
    instances.gt_classes = torch.arange(num_boxes) % 2
    pixels = 255 * torch.rand(3, height, width, generator=generator)
    return {"image": pixels, "instances": instances, "file_name": f"image_{number}.png"}


def images(equal: bool = True) -> list[dict]:
    """Eight images of one size, or of four; of each four, they have 3, 0, 1 and 5 boxes."""
    sizes = [(48, 40)] * 4 if equal else [(48, 40), (40, 48), (32, 32), (56, 24)]
    return [image(i, sizes[i % 4], (3, 0, 1, 5)[i % 4]) for i in range(8)]
