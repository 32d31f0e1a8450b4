# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The two detectors that are compared: R50 two-stage of this project and of transformers.

Random weights, the same images and boxes. Ours also normalises the pixels and, in inference,
selects detections; in training it also has the loss of its first stage, which transformers lacks.

B batch, H and W the image, T true boxes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from detrex_mammo.config import instantiate, instantiate_with, load_config
from detrex_mammo.layers import box_xyxy_to_cxcywh

CONFIG = "projects/deformable_detr/configs/deformable_detr_r50_two_stage_50ep.py"
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
NUM_BOXES, NUM_CLASSES = 7, 80
SEED = 0


@dataclass(frozen=True)
class Subject:
    """A detector that can be measured.

    Attributes:
        model: on its device.
        optimizer: over its trainable parameters.
        prepare: a batch to what the model takes; not part of the time.
        detect: inference on a prepared batch.
        loss: of a prepared batch, scalar.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    prepare: Callable[["Images"], Any]
    detect: Callable[[Any], Any]
    loss: Callable[[Any], Tensor]


@dataclass(frozen=True)
class Images:
    """A batch.

    Attributes:
        pixels: (B, 3, H, W) float32 RGB in [0, 255].
        boxes_xyxy: (B, T, 4) in pixels.
        labels: (B, T).
    """

    pixels: Tensor
    boxes_xyxy: Tensor
    labels: Tensor

    def part(self, first: int, last: int) -> "Images":
        """Some of the images."""
        return Images(*(t[first:last] for t in (self.pixels, self.boxes_xyxy, self.labels)))


def draw_images(height: int, width: int, batch: int, device: str) -> Images:
    """Random pixels and boxes, sides from a twentieth to half of the image."""
    generator = torch.Generator().manual_seed(SEED)
    pixels = torch.rand(batch, 3, height, width, generator=generator) * 255
    sides = 0.05 + 0.45 * torch.rand(batch, NUM_BOXES, 2, generator=generator)
    corners = torch.rand(batch, NUM_BOXES, 2, generator=generator) * (1 - sides)
    boxes = torch.cat((corners, corners + sides), -1)
    boxes = boxes * torch.tensor([width, height, width, height])
    labels = torch.randint(NUM_CLASSES, (batch, NUM_BOXES), generator=generator)
    return Images(*(tensor.to(device) for tensor in (pixels, boxes, labels)))


def detectron2_inputs(images: Images) -> list[dict[str, Any]]:
    """A batch as detectron2's models take it."""
    height, width = images.pixels.shape[-2:]
    inputs = []
    for pixels, boxes, labels in zip(images.pixels, images.boxes_xyxy, images.labels):
        truth = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=labels)
        size = {"height": height, "width": width}
        inputs.append({"image": pixels, **size, "instances": truth})
    return inputs


def our_subject(device: str, overrides: Sequence[str] = ()) -> Subject:
    """The shipped configuration, with its own optimizer.

    Args:
        device: "cpu" or "cuda".
        overrides: ``key=value`` of the configuration.
    """
    torch.manual_seed(SEED)
    config = load_config(CONFIG, overrides)
    model = instantiate(config.model).to(device)
    groups = instantiate_with(config.optimizer.params, "optimizer.params", model=model)
    optimizer = instantiate_with(config.optimizer, "optimizer", params=groups)

    def loss(inputs: Any) -> Tensor:
        return sum(model(inputs).values())

    return Subject(model, optimizer, detectron2_inputs, model, loss)


def our_compiled_subject(device: str) -> Subject:
    """Ours as the setting ``train.compile`` makes it."""
    subject = our_subject(device)
    for part in subject.model.parts_to_compile():
        part.compile(dynamic=True)
    return subject


def transformers_subject(device: str) -> Subject:
    """transformers' model of the same sizes, with the optimizer that its Trainer takes."""
    model = _transformers_model().to(device)
    for name, parameter in model.model.backbone.named_parameters():
        if name.startswith(("model.conv1.", "model.embedder.")):
            parameter.requires_grad_(False)  # the stem, as in ours
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-4, fused=True)

    def prepare(images: Images) -> Any:
        mean, std = (images.pixels.new_tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        pixels = (images.pixels - mean) / std
        height, width = pixels.shape[-2:]
        boxes = box_xyxy_to_cxcywh(images.boxes_xyxy)
        boxes = boxes / boxes.new_tensor([width, height, width, height])
        labels = [{"class_labels": t, "boxes": b} for t, b in zip(images.labels, boxes)]
        mask = torch.ones_like(pixels[:, 0], dtype=torch.int64)
        return {"pixel_values": pixels, "pixel_mask": mask}, labels

    def detect(prepared: Any) -> Any:
        return model(**prepared[0])

    def loss(prepared: Any) -> Tensor:
        return model(**prepared[0], labels=prepared[1]).loss

    return Subject(model, optimizer, prepare, detect, loss)


def _transformers_model() -> nn.Module:
    from transformers import (
        DeformableDetrConfig,
        DeformableDetrForObjectDetection,
        ResNetConfig,
        TimmBackboneConfig,
    )

    if find_spec("timm") is not None:  # as in the published checkpoints
        backbone = TimmBackboneConfig(
            backbone="resnet50", out_indices=[2, 3, 4], use_pretrained_backbone=False
        )
    else:
        backbone = ResNetConfig(out_features=["stage2", "stage3", "stage4"])
    torch.manual_seed(SEED)
    config = DeformableDetrConfig(
        backbone_config=backbone,
        num_labels=NUM_CLASSES,
        with_box_refine=True,
        two_stage=True,
        auxiliary_loss=True,
        class_cost=2,
    )
    return DeformableDetrForObjectDetection(config)
