# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The criterion by hand; against transformers it stands in test_parity_with_transformers.py."""

import math

import pytest
import torch

from detrex_mammo.errors import UserError
from detrex_mammo.modeling import HungarianMatcher, SetCriterion
from detrex_mammo.modeling.criterion import global_num_boxes

EMPTY = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}


def criterion(**settings):
    return SetCriterion(3, HungarianMatcher(), **settings)


def random_output(images=2, queries=5, dtype=torch.float32):
    return {
        "pred_logits": torch.randn(images, queries, 3, dtype=dtype),
        "pred_boxes": (torch.rand(images, queries, 4) * 0.5 + 0.2).to(dtype),
    }


def random_targets(counts):
    return [
        {"labels": torch.randint(0, 3, (n,)), "boxes": torch.rand(n, 4) * 0.5 + 0.2} for n in counts
    ]


def test_losses_by_hand():
    """Two queries, three classes, all logits 0; one target, which is the first query's box + 0.1.

    Focal: five negatives of 3/16 log 2 and one positive of 1/16 log 2 = log 2. L1 0.1.
    GIoU of half-overlapping equal boxes 1/3. Weights 2, 5, 2 and one box.
    """
    boxes = torch.tensor([[[0.6, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]])
    output = {"pred_logits": torch.zeros(1, 2, 3), "pred_boxes": boxes}
    target = {"labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
    losses = criterion()([output], None, [target])
    expected = {"loss_class": 2 * math.log(2), "loss_bbox": 0.5, "loss_giou": 4 / 3}
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(value, abs=1e-6), name


def test_quality_by_hand():
    """As above, with the IoU 1/3 of the matched boxes to the power 2 as its score: 1/9.

    Five negatives 5 * 3/16 log 2 and |1/9 - 1/2|^2 / 4 log 2 = 49/1296 log 2; box losses stay.
    """
    boxes = torch.tensor([[[0.6, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]], requires_grad=True)
    output = {"pred_logits": torch.zeros(1, 2, 3), "pred_boxes": boxes}
    target = {"labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
    losses = criterion(iou_power=2.0)([output], None, [target])
    expected = 2 * (15 / 16 + 49 / 1296) * math.log(2)
    assert float(losses["loss_class"]) == pytest.approx(expected, abs=1e-6)
    assert not losses["loss_class"].requires_grad  # boxes are not moved to suit the score
    plain = criterion()([output], None, [target])
    for name in ("loss_bbox", "loss_giou"):
        assert torch.equal(losses[name], plain[name])


def test_quality_of_perfect_boxes_is_the_plain_loss():
    """IoU 1 to any power, and any IoU to a power of almost 0; images without boxes too."""
    targets = random_targets((3, 0))
    output = random_output()
    output["pred_boxes"][0, :3] = targets[0]["boxes"]
    output["pred_logits"][0, :3] = torch.nn.functional.one_hot(targets[0]["labels"], 3) * 6.0
    plain = criterion()([output], output, targets)
    for power in (0.5, 2.0):
        found = criterion(iou_power=power)([output], None, targets)
        torch.testing.assert_close(found["loss_class"], plain["loss_class"], rtol=0, atol=1e-5)
    output = random_output()
    plain = criterion()([output], output, targets)
    found = criterion(iou_power=1e-9)([output], output, targets)
    for name in ("loss_class", "loss_bbox", "loss_giou_enc"):
        torch.testing.assert_close(found[name], plain[name], rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="focal_alpha of the criterion is 3"):
        criterion(focal_alpha=3)
    with pytest.raises(UserError, match="iou_power of the criterion is -1"):
        criterion(iou_power=-1)


def test_names_and_weights():
    """Three layers and the encoder: 4 x 3 terms; weights scale their own terms only."""
    outputs, encoder = [random_output() for _ in range(3)], random_output(queries=8)
    targets = random_targets((2, 1))
    plain = criterion(weight_class=1, weight_bbox=1, weight_giou=1)(outputs, encoder, targets)
    names = {f"loss_{n}{s}" for n in ("class", "bbox", "giou") for s in ("", "_0", "_1", "_enc")}
    assert plain.keys() == names
    weighted = criterion(weight_class=2, weight_bbox=3, weight_giou=4)(outputs, encoder, targets)
    for name in names:
        weight = {"class": 2, "bbox": 3, "giou": 4}[name.split("_")[1]]
        torch.testing.assert_close(weighted[name], weight * plain[name])
    last = criterion(weight_class=1, weight_bbox=1, weight_giou=1)(outputs[-1:], None, targets)
    for name, value in last.items():
        torch.testing.assert_close(value, plain[name])


def test_encoder_loss_does_not_see_classes():
    outputs, encoder = [random_output()], random_output(queries=8)
    targets = random_targets((2, 1))
    others = [{**t, "labels": (t["labels"] + 1) % 3} for t in targets]
    one, two = criterion()(outputs, encoder, targets), criterion()(outputs, encoder, others)
    for name in ("loss_class_enc", "loss_bbox_enc", "loss_giou_enc"):
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=0)
    assert not torch.equal(one["loss_class"], two["loss_class"])


def test_images_without_boxes():
    """All negative: class loss by hand, box losses 0, and gradients; some negative: finite."""
    output = random_output()
    output = {name: tensor.requires_grad_() for name, tensor in output.items()}
    losses = criterion()([output], output, [EMPTY, EMPTY])
    p = output["pred_logits"].detach().sigmoid()
    expected = 2 * (0.75 * p**2 * -(1 - p).log()).sum()  # num_boxes is clamped at 1
    torch.testing.assert_close(losses["loss_class"], expected)
    assert losses["loss_bbox"].item() == losses["loss_giou"].item() == 0
    sum(losses.values()).backward()
    assert output["pred_logits"].grad.abs().sum() > 0
    assert output["pred_boxes"].grad.isfinite().all()
    mixed = criterion()([random_output()], None, [EMPTY, *random_targets((2,))])
    assert all(loss.isfinite() for loss in mixed.values())


def test_batch_is_the_mean_of_its_images():
    """With as many boxes in each image, the batch's loss is the mean of the images' losses."""
    output, targets = random_output(), random_targets((2, 2))
    batch = criterion()([output], None, targets)
    singles = [
        criterion()([{n: t[i : i + 1] for n, t in output.items()}], None, targets[i : i + 1])
        for i in range(2)
    ]
    for name, value in batch.items():
        torch.testing.assert_close(value, (singles[0][name] + singles[1][name]) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_whatever_the_autocast(dtype):
    output, targets = random_output(dtype=dtype), random_targets((2, 1))
    wide = {name: tensor.float() for name, tensor in output.items()}
    expected = criterion()([wide], wide, targets)
    with torch.autocast("cpu", torch.bfloat16):
        found = criterion()([output], output, targets)
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_extreme_logits_are_finite():
    output = random_output()
    output["pred_logits"] = torch.tensor([100.0, -100.0]).repeat(15).view(2, 5, 3).requires_grad_()
    losses = criterion()([output], None, random_targets((2, 1)))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert output["pred_logits"].grad.isfinite().all()


def test_num_boxes_is_the_mean_over_ranks(monkeypatch):
    """This rank has 3 boxes and the other 4: 3.5 each; none on both: 1."""
    assert global_num_boxes(3, torch.device("cpu")) == 3.0
    assert global_num_boxes(0, torch.device("cpu")) == 1.0
    others = 4.0
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.add_(others))
    assert float(global_num_boxes(3, torch.device("cpu"))) == 3.5
    others = 0.0
    assert float(global_num_boxes(0, torch.device("cpu"))) == 1.0
