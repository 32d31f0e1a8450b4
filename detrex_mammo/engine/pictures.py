# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Example predictions of a run, drawn at every evaluation, for TensorBoard."""

import logging
from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context

from detrex_mammo.engine import rng
from detrex_mammo.engine.evaluation import Evaluation
from detrex_mammo.engine.loaders import class_table, dataset_names
from detrex_mammo.inference.drawing import draw_predictions

logger = logging.getLogger(__name__)


class PredictionPictures(HookBase):
    """The first images of every test loader with truth and predictions, after each evaluation.

    Only in the main process; what fails here is logged once, and the run goes on.

    Args:
        evaluation: of the run, built with ``train.tensorboard_images``; register this hook after
            that of the evaluation.
        count: images of each test loader.
    """

    def __init__(self, evaluation: Evaluation, count: int):
        self.evaluation, self.count = evaluation, count
        self.seen = evaluation.results
        self.has_failed = False

    def after_step(self) -> None:
        """Draw if there was an evaluation."""
        if self.evaluation.results is not self.seen and not self.has_failed:
            self.seen = self.evaluation.results
            model = self.evaluation.model
            was_training = model.training
            try:
                with rng.undisturbed():
                    self._draw()
            except Exception as error:  # a picture is not worth a run
                self.has_failed = True
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                logger.warning("train.tensorboard_images: no pictures from here on: %s", reason)
            finally:
                model.train(was_training)  # detectron2's context does not after an error

    before_train = after_train = after_step

    def _draw(self) -> None:
        model = self.evaluation.model
        for part in self.evaluation.parts:
            names = class_table(dataset_names(part.test_node))["names"]
            images = (item for batch in part.target_loader for item in batch)
            with inference_context(model), torch.no_grad():
                for number, item in enumerate(islice(images, self.count)):
                    output = model([item])[0]["instances"].to("cpu")
                    picture = picture_of(item, output, names or ["lesion"])
                    place = "/".join(filter(None, ("predictions", part.name, str(number))))
                    self.trainer.storage.put_image(
                        place, torch.from_numpy(picture.transpose(2, 0, 1))
                    )


def picture_of(item: Mapping[str, Any], output: Any, class_names: list[str]) -> np.ndarray:
    """Truth and predictions of one image of a loader.

    Args:
        item: with ``image`` (3, h, w) in [0, 255]; with ``instances`` the truth is drawn too.
        output: detectron2's ``Instances`` in pixels of (height, width).
        class_names: of the model's classes.

    Returns:
        np.ndarray: (H, W, 3) uint8 RGB.
    """
    image = item["image"].cpu().permute(1, 2, 0).float().numpy()
    height, width = output.image_size
    scale = np.array([image.shape[1] / width, image.shape[0] / height] * 2)
    predictions = {
        "boxes": output.pred_boxes.tensor.float().numpy() * scale,
        "scores": output.scores.float().numpy(),
        "classes": output.pred_classes.numpy(),
    }
    truth = None
    if "instances" in item:
        boxes = item["instances"].gt_boxes.tensor.cpu().numpy()
        truth = {"boxes": boxes, "classes": item["instances"].gt_classes.cpu().numpy()}
    title = str(item.get("image_id", ""))
    return np.ascontiguousarray(
        draw_predictions(image, predictions, truth, class_names, title=title)
    )
