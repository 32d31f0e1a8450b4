# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Detectors with queries that only training has: nothing else may change by them."""

import copy

import pytest
import torch
from torch import nn

from detrex_mammo.errors import UserError
from detrex_mammo.modeling import HungarianMatcher, SetCriterion
from detrex_mammo.modeling.denoising import Denoising
from detrex_mammo.modeling.hybrid_matching import HybridMatching
from detrex_mammo.modeling.training_queries import make_queries
from tests.modeling.tiny_detector import make_inputs, perturb, tiny_detector

KINDS = {"hybrid": (False, True), "two-stage hybrid": (True, True), "denoising": (True, False),
         "both": (True, "both")}  # fmt: skip


def parts(kind, weight=1.0, num_further=9):
    two_stage, hybrid = KINDS[kind]
    found = {}
    if hybrid:
        found["hybrid"] = HybridMatching(32, two_stage, num_further, 2, weight)
    if hybrid is False or hybrid == "both":
        found["denoising"] = Denoising(3, 32, num_groups=2, weight=weight)
    return found


def detectors(kind, weight=1.0, **settings):
    """One with and one without, of equal weights, in double precision, without dropout."""
    two_stage = KINDS[kind][0]
    settings |= {"two_stage": two_stage, "with_box_refine": two_stage}
    extended = perturb(tiny_detector(**settings, **parts(kind, weight))).double()
    plain = tiny_detector(**settings).double()
    for detector in (extended, plain):
        for module in detector.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
    state = {k: v for k, v in extended.state_dict().items() if k in plain.state_dict()}
    plain.load_state_dict(state)
    return extended, plain


def step(detector, inputs, seed=0):
    detector.zero_grad()
    torch.manual_seed(seed)
    losses = detector(inputs)
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in detector.named_parameters()}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


@pytest.mark.parametrize("counts", [(2, 0), (3, 3), (0, 0), (1, 25)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_other_losses_and_their_gradients_stay(kind, counts):
    """Losses of the plain model to 1e-12; its gradients too where the new losses weigh nothing."""
    extended, plain = detectors(kind, weight=0.0)
    inputs = make_inputs(counts=counts)
    losses, gradients = step(extended, inputs)
    expected_losses, expected = step(plain, inputs)
    for name, value in expected_losses.items():
        torch.testing.assert_close(losses[name], value, rtol=0, atol=1e-12)
    new = {name for name in losses if name not in expected_losses}
    assert new and all(float(losses[name]) == 0 for name in new)
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=0, atol=1e-10, msg=name)
    assert all(not gradients[name].any() for name in gradients if name not in expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_from_the_new_losses(kind):
    """Names by layer; a gradient for all, also of a batch without boxes, as DDP needs."""
    extended, plain = detectors(kind)
    losses, gradients = step(extended, make_inputs())
    suffixes = [{"hybrid": "_one2many", "denoising": "_dn"}[name] for name in parts(kind)]
    terms = [f"loss_{name}{suffix}" for name in ("class", "bbox", "giou") for suffix in suffixes]
    new = {term + layer for term in terms for layer in ("", "_0")}
    assert losses.keys() - step(plain, make_inputs())[0].keys() == new
    assert all(gradient.any() for name, gradient in gradients.items() if "bias" not in name)
    empty, gradients = step(extended, make_inputs(counts=(0, 0)))
    assert all(value.isfinite() for value in empty.values())
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("kind", KINDS)
def test_inference_is_that_of_the_plain_model(kind):
    """Predictions to the last bit, from the same published names and a few more."""
    extended, plain = detectors(kind)
    new = extended.state_dict().keys() - plain.state_dict().keys()
    assert (
        new
        == {
            "hybrid": {"hybrid.query_embed.weight"},
            "two-stage hybrid": set(),
            "denoising": {"denoising.label_embed.weight"},
            "both": {"denoising.label_embed.weight"},
        }[kind]
    )
    inputs = make_inputs()
    with torch.no_grad():
        for found, expected in zip(extended.eval()(inputs), plain.eval()(inputs)):
            found, expected = found["instances"], expected["instances"]
            assert torch.equal(found.scores, expected.scores)
            assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_has_the_plain_losses(kind):
    """There only the detector itself is in training mode; no random number is drawn."""
    extended, plain = detectors(kind)
    for detector in (extended, plain):
        detector.eval().training = True
    inputs = make_inputs()
    state = torch.random.get_rng_state()
    with torch.no_grad():
        torch.testing.assert_close(extended(inputs), plain(inputs), rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_has_the_losses_of_its_images(kind):
    """Sums over boxes add up, so that accumulation over small batches is exact; new losses too.

    Images of 3, 0 and 1 boxes, of one size. (Noise is drawn image after image.)
    """
    extended, _ = detectors(kind)
    extended.criterion.num_boxes = 1.0
    inputs = make_inputs(((64, 96),) * 3, (3, 0, 1))
    torch.manual_seed(2)
    with torch.no_grad():
        batch = extended(inputs)
        torch.manual_seed(2)
        singles = [extended(inputs[i : i + 1]) for i in range(3)]
    for name, value in batch.items():
        torch.testing.assert_close(value, sum(s[name] for s in singles), rtol=1e-9, atol=1e-9)
    extended.criterion.num_boxes = None
    torch.manual_seed(2)
    for name, value in extended(inputs).items():
        torch.testing.assert_close(value.detach(), batch[name] / 4, rtol=1e-9, atol=1e-9)


def test_one_seed_one_loss():
    extended, _ = detectors("both")
    inputs = make_inputs()
    first, again, other = (step(extended, inputs, seed)[0] for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first["loss_bbox_dn"], other["loss_bbox_dn"])
    assert torch.equal(first["loss_bbox_one2many"], other["loss_bbox_one2many"])


@pytest.mark.parametrize("kind", KINDS)
def test_recomputation_changes_no_number(kind):
    extended, _ = detectors(kind)
    inputs = make_inputs()
    expected = step(extended, inputs)
    extended.transformer.decoder.checkpointing = True
    torch.testing.assert_close(step(extended, inputs), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_keeps_losses_float32(kind):
    detector = copy.deepcopy(detectors(kind)[0]).float()
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(make_inputs())
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters())


def test_fewer_tokens_than_queries():
    """32x32 pixels: 6 tokens for 7 + 9 queries; none is left for one-to-many matching."""
    for num_queries, expected in ((7, False), (4, True)):
        detector = tiny_detector(True, True, num_queries=num_queries, **parts("both"))
        losses = detector(make_inputs(((32, 32),) * 2, (1, 0)))
        assert all(loss.isfinite() for loss in losses.values())
        assert bool(losses["loss_bbox_one2many"] > 0) == expected
        sum(losses.values()).backward()


def test_without_aux_losses_the_last_layer_alone():
    losses = tiny_detector(True, True, aux_loss=False, **parts("both"))(make_inputs())
    suffixes = ("", "_enc", "_dn", "_one2many")
    assert losses.keys() == {f"loss_{n}{s}" for n in ("class", "bbox", "giou") for s in suffixes}


def test_groups_of_denoising_queries_do_not_see_one_another():
    """2 boxes, 2 groups: each is 2 places to put right and 2 to tell apart, 4 of the 8."""
    targets = [{"labels": torch.tensor([2, 0]), "boxes": torch.rand(2, 4)}]
    extra = make_queries(targets, 3, Denoising(3, 32, num_groups=2), None).extra
    hidden = extra.masks(3 + 8, torch.device("cpu"))["self_attn_mask"][3:, 3:]
    group = torch.tensor([0] * 4 + [1] * 4)
    assert torch.equal(hidden, group[:, None] != group)


def test_one_to_many_matching_by_hand():
    """Targets come k times, image by image; the loss of all is divided by k."""
    targets = [
        {"labels": torch.tensor([2, 0]), "boxes": torch.rand(2, 4)},
        {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    group = HybridMatching(32, True, 9, 3, 0.5).loss_group([], targets)
    assert group.targets[0]["labels"].tolist() == [2, 0, 2, 0, 2, 0]
    assert torch.equal(group.targets[0]["boxes"], torch.cat([targets[0]["boxes"]] * 3))
    assert group.targets[1]["boxes"].shape == (0, 4)
    assert (group.copies, group.weight, group.suffix) == (3, 0.5, "_one2many")


def test_settings_that_contradict_each_other_are_refused():
    for arguments, settings, message in (
        ((False, True), {"denoising": Denoising(3, 32)}, "two_stage=True and .*denoising=null"),
        ((True, True), {"denoising": Denoising(4, 32)}, "num_classes is 3 but model.denoising"),
        ((True, True), {"denoising": Denoising(3, 16)}, "embed_dim is 32 but model.denoising"),
        ((True, True), {"hybrid": HybridMatching(16, True)}, "embed_dim is 32 but model.hybrid"),
        ((False, False), {"hybrid": HybridMatching(32, True)}, "two_stage is False but model.hyb"),
        ((True, True), {"hybrid": {"k_one2many": 6}}, "model.hybrid is .*must be null or a node"),
    ):
        with pytest.raises(UserError, match=message):
            tiny_detector(*arguments, **settings)
    for settings in (
        {"num_queries_one2many": 0}, {"num_queries_one2many": 2.5}, {"k_one2many": 0},
        {"k_one2many": 1.5}, {"lambda_one2many": -1.0}, {"num_queries_one2many": None},
        {"k_one2many": "six"}, {"lambda_one2many": None}, {"lambda_one2many": float("nan")},
    ):  # fmt: skip
        with pytest.raises(UserError, match="model.hybrid=null"):
            HybridMatching(32, True, **settings)


def test_the_matcher_is_asked_once_for_all():
    """Its answer takes a copy to the host, for which the device has to be waited for."""

    class Counting(HungarianMatcher):
        calls = 0

        def forward(self, *arguments):
            self.calls += 1
            return super().forward(*arguments)

    matcher = Counting()
    detector = tiny_detector(True, True, criterion=SetCriterion(3, matcher), **parts("both"))
    detector(make_inputs())
    assert matcher.calls == 1
