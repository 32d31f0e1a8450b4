# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Denoising queries: by hand, and against those of transformers' RT-DETR from the same draws."""

import numpy as np
import pytest
import torch
from transformers.models.rt_detr import modeling_rt_detr

from detrex_mammo.errors import UserError
from detrex_mammo.layers import box_cxcywh_to_xyxy
from detrex_mammo.modeling.denoising import Denoising
from detrex_mammo.modeling.query_groups import ExtraQueries


def denoising(**settings):
    return Denoising(settings.pop("num_classes", 4), 8, **settings)


def targets_of(*counts, size=0.3):
    """Boxes that stay inside the image whatever the noise, of classes 0 to 3."""
    return [
        {
            "labels": torch.arange(count) % 4,
            "boxes": torch.cat((torch.rand(count, 2) * 0.2 + 0.4, torch.full((count, 2), size)), 1),
        }
        for count in counts
    ]


def test_noise_of_one_box_by_hand(monkeypatch):
    """A box from (0.4, 0.45) to (0.6, 0.55), half its size (0.1, 0.05), box_noise 0.5.

    Amounts 0.2, 0.4, 0.6, 0.8 and signs -, +, +, - move the corners by half the amount of half the
    size: -0.01, +0.01, +0.03, -0.02. The negative moves one amount more: -0.06, +0.035, +0.08,
    -0.045: from (0.34, 0.485) to (0.68, 0.505). A label changes where its draw is below 0.3.
    """
    draws = torch.tensor([0.0, 0.99, 0.2, 0.4, 0.6, 0.8, 0.1, 0.9, 0.5, 0.49]).repeat(1, 2, 1, 1)
    draws[0, 1, 0, 0] = 0.3
    monkeypatch.setattr(torch, "rand", lambda *_: draws)
    target = {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.1]])}
    noised = denoising(num_groups=1, label_noise=0.3, box_noise=0.5)([target])
    assert noised.labels.tolist() == [[3, 1]]  # floor(0.99 * 4); kept
    corners = torch.tensor([[[0.39, 0.46, 0.63, 0.53], [0.34, 0.485, 0.68, 0.505]]])
    torch.testing.assert_close(box_cxcywh_to_xyxy(noised.boxes), corners)


def test_layout_by_hand():
    """Images of 2, 0 and 1 boxes, 2 groups: each is 2 places to put right and 2 to tell apart.

    Real places of the first image 0 .. 7, of the third 0, 2, 4, 6; together 12. To be put right:
    places 0, 1, 4, 5 of the first and 0, 4 of the third; boxes 0, 1 and 2 of the batch.
    """
    noised = denoising(num_groups=2)(targets_of(2, 0, 1))
    assert noised.labels.shape == (3, 8) and noised.boxes.shape == (3, 8, 4)
    expected = [[0] * 8, [1] * 8, [0, 1] * 4]
    assert noised.is_padding.int().tolist() == expected
    assert noised.places.tolist() == [[0] * 8 + [2] * 4, [*range(8), 0, 2, 4, 6]]
    ((queries, boxes),) = noised.matching
    assert queries.tolist() == [0, 1, 4, 5, 8, 10]
    assert boxes.tolist() == [0, 1, 0, 1, 2, 2]
    plain = denoising(num_groups=2, contrastive=False)(targets_of(2, 0, 1))
    assert plain.labels.shape == (3, 4)
    assert plain.matching[0][0].tolist() == [0, 1, 2, 3, 4, 5]
    assert plain.matching[0][1].tolist() == [0, 1, 0, 1, 2, 2]


def test_images_with_as_many_boxes_have_no_padding():
    assert denoising()(targets_of(3, 3)).is_padding is None


def test_a_batch_without_boxes_is_one_padded_box():
    noised = denoising()(targets_of(0, 0))
    assert noised.is_padding.all() and noised.labels.shape == (2, 10)
    assert noised.places.shape == (2, 0) and len(noised.matching[0][0]) == 0


def test_without_noise_the_boxes_come_back():
    targets = targets_of(3, 2)
    noised = denoising(label_noise=0.0, box_noise=0.0, contrastive=False)(targets)
    ((_, boxes),) = noised.matching
    image, query = noised.places
    together = {name: torch.cat([t[name] for t in targets]) for name in ("labels", "boxes")}
    assert torch.equal(noised.labels[image, query], together["labels"][boxes])
    torch.testing.assert_close(noised.boxes[image, query], together["boxes"][boxes])


def test_bounds_and_shares_of_the_noise():
    """Sides move by 0 to 1 and by 1 to 2 halves of the size; a quarter of labels is drawn from 4.

    So 3/16 change; of 20000 within five deviations (0.0138).
    """
    target = {"labels": torch.arange(10) % 4, "boxes": torch.tensor([[0.5, 0.5, 0.1, 0.1]] * 10)}
    noised = denoising(num_groups=1000, boxes_per_group=10)([target])
    boxes = noised.boxes.view(1000, 2, 10, 4)
    change = (box_cxcywh_to_xyxy(boxes) - box_cxcywh_to_xyxy(target["boxes"])) / 0.05
    right = change[:, 0].abs()
    assert right.max() <= 1 + 1e-5 and right.max() > 0.99 and right.min() < 0.01
    grown = change[:, 1].abs()[boxes[:, 1, :, 2:].min(-1).values > 1e-6]  # no side passed another
    assert grown.max() <= 2 + 1e-5 and grown.max() > 1.99 and 1 - 1e-5 <= grown.min() < 1.01
    changed = (noised.labels.view(1000, 2, 10) != target["labels"]).float().mean()
    assert abs(float(changed) - 3 / 16) < 0.0138


def test_crowded_images_are_sampled():
    """50 boxes, 20 a group: each group takes 20 different ones, with noise of those."""
    (target,) = targets_of(50, size=0.01)
    target["boxes"][:, 0] = torch.linspace(0.1, 0.9, 50)
    noised = denoising(num_groups=3, box_noise=0.1)([target, *targets_of(1)])
    ((queries, boxes),) = noised.matching
    boxes = boxes[:60].reshape(3, 20)
    assert all(len(set(group)) == 20 for group in boxes.tolist())
    assert len(set(boxes.flatten().tolist())) > 20
    found = noised.boxes[0].view(3, 2, 20, 4)[:, :, :, 0]
    expected = target["boxes"][torch.from_numpy(boxes), 0][:, None]
    assert (found - expected).abs().max() < 0.0011  # a tenth of twice half a box, and rounding


def test_each_image_has_its_own_noise_from_the_host():
    """A batch has the noise of its images one after another; images without boxes draw none."""
    targets = targets_of(3, 0, 2)
    module = denoising()
    torch.manual_seed(3)
    batch = module(targets)
    after = torch.rand(1)
    torch.manual_seed(3)
    alone = [module([target]) for target in targets]
    assert torch.equal(torch.rand(1), after)
    for image, (single, count) in enumerate(zip(alone, (3, 0, 2))):
        boxes = batch.boxes[image].view(5, 2, 3, 4)[:, :, :count]
        assert torch.equal(boxes, single.boxes[0].view(5, 2, -1, 4)[:, :, :count])


def test_transformers_makes_the_same_queries(monkeypatch):
    """Labels, boxes, mask and places from the same random draws; their queries stand in front."""
    count, groups, num_queries = 3, 2, 4
    target = {"labels": torch.tensor([1, 0, 3]), "boxes": torch.rand(3, 4) * 0.4 + 0.3}
    torch.manual_seed(1)
    draws = torch.rand(groups, 2, count, 10).view(1, -1, 10)
    uniform = iter((draws[..., 0], draws[..., 2:6]))
    integers = iter((draws[..., 1], draws[..., 6:]))
    monkeypatch.setattr(torch, "rand_like", lambda *_, **__: next(uniform).clone())
    monkeypatch.setattr(
        torch,
        "randint_like",
        lambda _, low, high, dtype=None: (next(integers) * high).floor().to(dtype or torch.float),
    )
    labels, boxes, mask, meta = modeling_rt_detr.get_contrastive_denoising_training_group(
        [{"class_labels": target["labels"], "boxes": target["boxes"]}],
        num_classes=4, num_queries=num_queries, class_embed=lambda ids: ids,
        num_denoising_queries=count * groups, label_noise_ratio=0.5, box_noise_scale=1.0,
    )  # fmt: skip
    ours = denoising(num_groups=groups)
    torch.manual_seed(1)
    noised = ours([target])
    assert torch.equal(noised.labels, labels.long())
    torch.testing.assert_close(noised.boxes, boxes.sigmoid(), rtol=0, atol=2e-5)
    assert noised.matching[0][0].tolist() == meta["dn_positive_idx"][0].tolist()
    total, size = mask.shape[0], mask.shape[0] - num_queries
    extra = ExtraQueries(num_queries, boxes=noised.boxes, group_size=size // groups)
    order = torch.cat((torch.arange(size, total), torch.arange(size)))
    expected = mask.isinf()[order][:, order]
    assert torch.equal(extra.masks(total, mask.device)["self_attn_mask"], expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_groups": 0}, "num_groups of the denoising queries is 0"),
        ({"boxes_per_group": 0}, "boxes_per_group 0"),
        ({"num_groups": 1.5}, "num_groups of the denoising queries is 1.5"),
        ({"boxes_per_group": 2.5}, "boxes_per_group 2.5"),
        ({"label_noise": 1.5}, "label_noise of the denoising queries is 1.5"),
        ({"box_noise": -1}, "box_noise -1"),
        ({"weight": -1}, "weight -1"),
        ({"num_groups": None}, "is None"),
        ({"boxes_per_group": "ten"}, "boxes_per_group ten"),
        ({"label_noise": None}, "is None"),
        ({"box_noise": [1.0]}, r"box_noise \[1.0\]"),
        ({"weight": float("inf")}, "weight inf"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        denoising(**settings)


def test_losses_are_of_real_queries_only():
    """Predictions of padding do not count: with them replaced, the group is the same."""
    targets = targets_of(2, 1)
    module = denoising()
    noised = module(targets)
    output = {
        "pred_logits": torch.randn(2, 20, 4),
        "pred_boxes": torch.rand(2, 20, 4),
    }
    group = module.loss_group(noised, [output], targets)
    other = {name: t.clone() for name, t in output.items()}
    for tensor in other.values():
        tensor[noised.is_padding] = torch.nan
    again = module.loss_group(noised, [other], targets)
    torch.testing.assert_close(again.outputs, group.outputs, rtol=0, atol=0)
    assert group.outputs[0]["pred_boxes"].shape == (1, 30, 4)
    assert (group.copies, group.suffix, len(group.targets[0]["labels"])) == (5, "_dn", 3)
    assert isinstance(group.matching[0][0], np.ndarray)
