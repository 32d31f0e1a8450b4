# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Test-time augmentation: an image is looked at in several versions, flipped and resized.

What the versions find is taken back to the image and averaged.

B images, N detections, V versions, h and w the image. Boxes are xyxy pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor

from detrex_mammo.errors import UserError
from detrex_mammo.layers import at_least_float32
from detrex_mammo.modeling.tiling import Detect

# Which axes of (3, h, w) are turned round.
FLIPS = {"none": (), "horizontal": (-1,), "vertical": (-2,), "both": (-2, -1)}


@dataclass(frozen=True)
class TestTimeAugmentation:
    """Which versions of an image are looked at: every flip at every scale.

    Detections of one class in different versions are one lesion if they overlap by IoU >=
    ``merge_iou``. From the highest score down, a detection takes the best free one of every other
    version; of these the box is the mean weighted by score, and the score is the mean over all
    versions, where one that found nothing counts as 0.

    By hand: version 1 finds [0, 0, 10, 10] with 0.9, version 2 finds [0, 0, 10, 12] with 0.6 and
    [50, 50, 60, 60] with 0.4. IoU of the first two is 100 / 120. Box [0, 0, 10, (0.9 * 10 +
    0.6 * 12) / 1.5 = 10.8] with (0.9 + 0.6) / 2 = 0.75, and [50, 50, 60, 60] with 0.4 / 2 = 0.2.

    With a single version nothing is merged: ``flips=["none"], scales=[1.0]`` is the detector alone.
    Mammograms that are turned to one side in preprocessing are not to be flipped horizontally.

    Attributes:
        flips: of ``none``, ``horizontal`` (left and right change places), ``vertical``, ``both``.
        scales: factors on height and width of the network's input, in [0.1, 10].
        merge_iou: see above.

    Raises:
        UserError: a setting is not possible.
    """

    __test__ = False  # no test, whatever its name lets pytest believe

    flips: Sequence[str] = ("none", "vertical")
    scales: Sequence[float] = (1.0,)
    merge_iou: float = 0.55

    def __post_init__(self) -> None:
        allowed = {
            "flips": (
                f"a list of {', '.join(FLIPS)}, each once",
                _is_list(self.flips) and all(flip in FLIPS for flip in self.flips),
            ),
            "scales": (
                "a list of numbers in [0.1, 10], each once",
                _is_list(self.scales)
                and all(type(s) in (int, float) and 0.1 <= s <= 10 for s in self.scales),
            ),
            "merge_iou": (
                "in (0, 1]",
                type(self.merge_iou) in (int, float) and 0 < self.merge_iou <= 1,
            ),
        }
        for name, (words, fits) in allowed.items():
            if not fits:
                value = getattr(self, name)
                raise UserError(
                    f"model.test_time_augmentation.{name} is {value!r}; it must be {words}"
                )

    @property
    def versions(self) -> list[tuple[str, float]]:
        """V pairs of flip and scale."""
        return [(flip, float(scale)) for scale in self.scales for flip in self.flips]

    def detect(
        self,
        detect: Detect,
        images: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        topk: int,
    ) -> list[Instances]:
        """Detections of a batch; a version of all its images is one pass through the detector.

        Args:
            detect (Callable): the detector without this.
            images (Sequence[Tensor]): B images (3, h, w), normalised.
            sizes (Sequence[tuple[int, int]]): B pairs (height, width) that boxes are scaled to.
            topk (int): detections of an image to keep.

        Returns:
            list[Instances]: as the detector gives them.
        """
        found = []
        for flip, scale in self.versions:
            changed = [_version(image, flip, scale) for image in images]
            answers = detect(changed, sizes)
            found.append([_flipped_back(answer, flip) for answer in answers])
        if len(found) == 1:
            return found[0]
        return [self._merged(answers, topk) for answers in zip(*found)]

    def _merged(self, found: Sequence[Instances], topk: int) -> Instances:
        numbers = _numbers(found)
        groups = _groups(numbers, self.merge_iou)
        merged = np.empty((len(groups), 6))
        for row, group in enumerate(groups):
            members = numbers[group]
            total = members[:, 4].sum()
            weights = members[:, 4] / total if total > 0 else np.full(len(group), 1 / len(group))
            merged[row] = (*(weights @ members[:, :4]), total / len(found), members[0, 5])
        merged = merged[np.argsort(-merged[:, 4], kind="stable")[:topk]]
        device, like = found[0].scores.device, Instances(found[0].image_size)
        like.pred_boxes = Boxes(torch.from_numpy(merged[:, :4]).float()).to(device)
        like.scores = torch.from_numpy(merged[:, 4]).float().to(device)
        like.pred_classes = torch.from_numpy(merged[:, 5].astype(np.int64)).to(device)
        return like


def _is_list(value) -> bool:
    is_list = not isinstance(value, str) and isinstance(value, Sequence) and len(value) > 0
    return is_list and len(set(value)) == len(value)


def _version(image: Tensor, flip: str, scale: float) -> Tensor:
    """(3, h, w) to the flipped image of another size; at scale 1 the very pixels."""
    size = [max(1, math.floor(side * scale + 0.5)) for side in image.shape[-2:]]
    if size != list(image.shape[-2:]):
        resized = F.interpolate(
            at_least_float32(image)[None], size, mode="bilinear", antialias=True
        )
        image = resized[0].to(image.dtype)
    return image.flip(FLIPS[flip]) if FLIPS[flip] else image


def _flipped_back(found: Instances, flip: str) -> Instances:
    """Detections of a flipped image in the image; their scale is the detector's business."""
    height, width = found.image_size
    boxes = found.pred_boxes.tensor
    if -1 in FLIPS[flip]:
        boxes = torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1)
    if -2 in FLIPS[flip]:
        boxes = torch.stack(
            (boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]), 1
        )
    found.pred_boxes = Boxes(boxes)
    return found


def _numbers(found: Sequence[Instances]) -> np.ndarray:
    """(N, 7) box, score, class and version of all detections, highest score first."""
    columns = []
    for version, answer in enumerate(found):
        scores = answer.scores.double()[:, None]
        classes = answer.pred_classes.double()[:, None]
        version = torch.full_like(scores, version)
        boxes = answer.pred_boxes.tensor.double()
        columns.append(torch.cat((boxes, scores, classes, version), dim=1).cpu())
    numbers = torch.cat(columns).numpy()
    return numbers[np.argsort(-numbers[:, 4], kind="stable")]


def _groups(numbers: np.ndarray, merge_iou: float) -> list[list[int]]:
    """Rows that are one lesion, its best first; at most one of each version."""
    boxes, classes, version = numbers[:, :4], numbers[:, 5], numbers[:, 6]
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)
    free, groups = np.ones(len(numbers), dtype=bool), []
    for leader in range(len(numbers)):
        if not free[leader]:
            continue
        free[leader] = False
        others = np.flatnonzero(free & (classes == classes[leader]) & (version != version[leader]))
        low = np.maximum(boxes[leader, :2], boxes[others, :2])
        high = np.minimum(boxes[leader, 2:], boxes[others, 2:])
        common = (high - low).clip(min=0).prod(axis=1)
        union = areas[leader] + areas[others] - common
        others = others[(common > 0) & (common >= merge_iou * union)]
        _, first = np.unique(version[others], return_index=True)  # rows fall in score
        members = others[first]
        free[members] = False
        groups.append([leader, *members.tolist()])
    return groups
