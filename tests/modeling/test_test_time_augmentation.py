# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Versions of an image: boxes come back exactly, and agreement is averaged."""

import copy

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from detrex_mammo.config import instantiate
from detrex_mammo.errors import UserError
from detrex_mammo.modeling.test_time_augmentation import TestTimeAugmentation
from detrex_mammo.modeling.tiling import Tiles
from tests.modeling.tiny_detector import make_inputs, perturb, tiny_detector

NAME = "detrex_mammo.modeling.test_time_augmentation.TestTimeAugmentation"


def answer(size, rows):
    """Instances of rows (x0, y0, x1, y1, score, class)."""
    rows = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    found = Instances(size)
    found.pred_boxes = Boxes(rows[:, :4].float())
    found.scores, found.pred_classes = rows[:, 4].float(), rows[:, 5].long()
    return found


def bright(images, sizes):
    """A planted detector: the box around the bright pixels of an image, scaled to its size."""
    found = []
    for image, (height, width) in zip(images, sizes):
        rows, columns = (image[0] > 0.5).nonzero().T
        box = torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        scale = torch.tensor([width, height] * 2) / torch.tensor(image.shape[:0:-1]).repeat(2)
        found.append(answer((height, width), [[*(box * scale).tolist(), 0.8, 1]]))
    return found


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_boxes_come_back(data):
    """One lesion anywhere in two images of other sizes, all flips, four scales: <= 0.5 px.

    At scale 1 the way back is exact, so the four flips alone are within rounding.
    """
    images, boxes, sizes = [], [], []
    for _ in range(2):
        height, width = data.draw(st.integers(40, 90)), data.draw(st.integers(40, 90))
        x, y = data.draw(st.integers(0, width - 20)), data.draw(st.integers(0, height - 20))
        w, h = data.draw(st.integers(10, 20)), data.draw(st.integers(10, 20))
        images.append(torch.zeros(3, height, width))
        images[-1][:, y : y + h, x : x + w] = 1
        boxes.append([x, y, x + w, y + h])
        sizes.append((height, width))
    for scales, tolerance in (((1.0,), 1e-4), ((1.0, 2.0, 1.5, 1.2), 0.5)):
        augmented = TestTimeAugmentation(("none", "horizontal", "vertical", "both"), scales)
        for found, box in zip(augmented.detect(bright, images, sizes, 5), boxes):
            assert len(found) == 1 and found.pred_classes.tolist() == [1]
            torch.testing.assert_close(found.scores, torch.tensor([0.8]))
            expected = torch.tensor([box], dtype=torch.float32)
            torch.testing.assert_close(found.pred_boxes.tensor, expected, rtol=0, atol=tolerance)


def test_each_version_is_what_it_says():
    """Pixels seen at scale 1 are those of the image, turned; 5 x 4 at 1.5 is 8 x 6."""
    seen = []

    def detect(images, sizes):
        seen.extend(images)
        assert sizes == [(50, 40)]
        return [answer(sizes[0], [])]

    image = torch.rand(3, 5, 4)
    augmented = TestTimeAugmentation(["none", "horizontal", "vertical", "both"], [1.0, 1.5])
    augmented.detect(detect, [image], [(50, 40)], 5)
    for got, axes in zip(seen, ((), (2,), (1,), (1, 2)), strict=False):
        assert torch.equal(got, image.flip(axes) if axes else image)
    assert [tuple(got.shape) for got in seen[4:]] == [(3, 8, 6)] * 4


def test_merging_by_hand():
    """The numbers of the class's docstring; further, another class and a second box stay apart.

    Version 2 also finds the first box in class 1 with 0.3 (alone: 0.15), and version 1 a near copy
    of its own best with 0.2, which version 2's box cannot join any more (alone: 0.1).
    """
    answers = [
        answer((100, 100), [[0, 0, 10, 10, 0.9, 0], [0, 0, 10, 11, 0.2, 0]]),
        answer(
            (100, 100),
            [[0, 0, 10, 12, 0.6, 0], [50, 50, 60, 60, 0.4, 0], [0, 0, 10, 10, 0.3, 1]],
        ),
    ]
    augmented = TestTimeAugmentation(["none"], [1.0, 1.1], merge_iou=0.55)
    detect = lambda images, sizes: [answers.pop(0)]  # noqa: E731
    (found,) = augmented.detect(detect, [torch.zeros(3, 100, 100)], [(100, 100)], 10)
    np.testing.assert_allclose(found.scores, [0.75, 0.2, 0.15, 0.1], atol=1e-6)
    assert found.pred_classes.tolist() == [0, 0, 1, 0]
    expected = [[0, 0, 10, 10.8], [50, 50, 60, 60], [0, 0, 10, 10], [0, 0, 10, 11]]
    np.testing.assert_allclose(found.pred_boxes.tensor, expected, atol=1e-5)


def slow_groups(rows, merge_iou):
    """The same rule in plain loops over (box, score, class, version)."""
    rest, groups = sorted(rows, key=lambda row: -row[4]), []
    while rest:
        group = [rest.pop(0)]
        for row in list(rest):
            w = min(group[0][2], row[2]) - max(group[0][0], row[0])
            h = min(group[0][3], row[3]) - max(group[0][1], row[1])
            common = max(w, 0) * max(h, 0)
            areas = sum((r[2] - r[0]) * (r[3] - r[1]) for r in (group[0], row))
            is_new = row[6] not in [member[6] for member in group]
            if row[5] == group[0][5] and is_new and common / (areas - common) >= merge_iou:
                group.append(row)
                rest.remove(row)
        groups.append(group)
    return groups


def test_merging_agrees_with_plain_loops():
    rng = np.random.default_rng(0)
    for _ in range(30):
        versions, answers, rows = 3, [], []
        for version in range(versions):
            corner, side = rng.uniform(0, 30, (12, 2)), rng.uniform(8, 25, (12, 2))
            table = np.column_stack(
                (corner, corner + side, rng.uniform(0.01, 1, 12), rng.integers(2, size=12))
            ).astype(np.float32)
            answers.append(answer((60, 60), table.tolist()))
            rows += [[*map(float, row), version] for row in table]
        groups = slow_groups(rows, 0.4)
        expected = sorted(sum(row[4] for row in group) / versions for group in groups)[::-1]
        assert len(groups) < len(rows)
        augmented = TestTimeAugmentation(["none"], [1.0, 1.1, 1.2], merge_iou=0.4)
        detect = lambda images, sizes: [answers.pop(0)]  # noqa: B023, E731
        (found,) = augmented.detect(detect, [torch.zeros(3, 60, 60)], [(60, 60)], 100)
        np.testing.assert_allclose(found.scores, expected, atol=1e-6)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return perturb(tiny_detector()).eval()


def run(detector, inputs, **settings):
    changed = copy.copy(detector)
    for name, value in settings.items():
        setattr(changed, name, value)
    with torch.no_grad():
        return [output["instances"] for output in changed(inputs)]


@pytest.mark.parametrize("tiles", [None, Tiles(48, 48)])
def test_the_image_as_it_is_alone_changes_nothing(detector, tiles):
    """In a batch of two sizes, bit for bit; also with tiles."""
    inputs = make_inputs()
    plain = run(detector, inputs, tiles=tiles)
    alone = TestTimeAugmentation(["none"], [1.0])
    for one, other in zip(plain, run(detector, inputs, tiles=tiles, test_time_augmentation=alone)):
        assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
        assert torch.equal(one.scores, other.scores) and len(one)
        assert torch.equal(one.pred_classes, other.pred_classes)


def test_a_symmetric_image_is_found_symmetric(detector):
    """An image and its mirror image get mirrored boxes, which the plain detector does not give."""
    inputs = make_inputs(sizes=((64, 96),), counts=(0,))
    turned = [{**inputs[0], "image": inputs[0]["image"].flip(1)}]
    both = TestTimeAugmentation(["none", "vertical"])
    for augmented, is_same in ((both, True), (None, False)):
        one = run(detector, inputs, test_time_augmentation=augmented, topk=4)[0]
        other = run(detector, turned, test_time_augmentation=augmented, topk=4)[0]
        boxes = other.pred_boxes.tensor[:, [0, 3, 2, 1]] * torch.tensor([1, -1, 1, -1])
        boxes = boxes + torch.tensor([0, 128, 0, 128])
        near = len(one) == len(other) and torch.allclose(one.pred_boxes.tensor, boxes, atol=1e-3)
        assert near == is_same


def test_detections_are_cut_at_topk_and_nothing_found_is_nothing(detector):
    inputs = make_inputs()
    found = run(detector, inputs, test_time_augmentation=TestTimeAugmentation(), topk=3)
    assert [len(one) for one in found] == [3, 3]
    nothing = TestTimeAugmentation().detect(
        lambda images, sizes: [answer(size, []) for size in sizes],
        [torch.zeros(3, 8, 8)], [(8, 8)], 5,
    )  # fmt: skip
    assert len(nothing[0]) == 0


def test_from_a_lazy_node():
    node = {"_target_": NAME, "flips": ["none", "vertical"], "scales": [1, 1.2]}
    built = instantiate(OmegaConf.create(node))
    assert built.versions == [("none", 1.0), ("vertical", 1.0), ("none", 1.2), ("vertical", 1.2)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"flips": ["up"]}, "flips is"),
        ({"flips": "none"}, "flips is 'none'"),
        ({"flips": []}, "flips is"),
        ({"flips": ["none", "none"]}, "each once"),
        ({"scales": [0.0]}, "scales is"),
        ({"scales": ["1"]}, "scales is"),
        ({"merge_iou": "half"}, "merge_iou is 'half'"),
        ({"merge_iou": 0}, r"merge_iou is 0; it must be in \(0, 1\]"),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(UserError, match=words):
        TestTimeAugmentation(**settings)
