# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The detector from detectron2's dicts to losses and detections."""

import copy
import pickle

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from detrex_mammo.errors import UserError
from detrex_mammo.modeling import DeformableDETR, HungarianMatcher, SetCriterion, build_resnet
from tests.modeling.tiny_detector import make_inputs, perturb, tiny_detector

VARIANTS = {
    "single_scale": {"in_features": ["res5"], "num_feature_levels": 1},
    "dc5": {"in_features": ["res5"], "num_feature_levels": 1},
    "multi_scale": {},
    "refine": {"with_box_refine": True},
    "two_stage": {"with_box_refine": True, "two_stage": True},
}


def build(variant):
    settings = dict(VARIANTS[variant])
    if variant == "dc5":
        settings["backbone"] = build_resnet(
            14, ["res5"], 0, "GN", dc5=True, stem_out_channels=8, res2_out_channels=16
        )
    return tiny_detector(**settings)


def test_is_registered():
    assert META_ARCH_REGISTRY.get("DeformableDETR") is DeformableDETR


@pytest.mark.parametrize("variant", VARIANTS)
def test_trains_and_predicts(variant):
    """Finite losses of every layer, a gradient for every parameter, detections in every image."""
    detector = build(variant)
    losses = detector(make_inputs())
    suffixes = ["", "_0"] + (["_enc"] if variant == "two_stage" else [])
    assert losses.keys() == {f"loss_{n}{s}" for n in ("class", "bbox", "giou") for s in suffixes}
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    missing = [name for name, p in detector.named_parameters() if p.grad is None]
    assert not missing
    for inputs, output in zip(make_inputs(), detector.eval()(make_inputs())):
        instances = output["instances"]
        assert instances.image_size == (inputs["height"], inputs["width"])
        assert len(instances) == 10 and instances.pred_boxes.tensor.isfinite().all()
        assert (instances.scores.diff() <= 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_images_without_boxes_train(variant):
    """A batch of negatives: finite losses, box losses 0, gradients for the class head."""
    detector = build(variant)
    losses = detector(make_inputs(counts=(0, 0)))
    assert all(loss.isfinite() for loss in losses.values())
    assert float(losses["loss_bbox"].detach()) == float(losses["loss_giou"].detach()) == 0
    sum(losses.values()).backward()
    assert detector.class_embed[0].weight.grad.abs().sum() > 0
    # Every parameter has one: distributed training waits for those that do not.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_equals_its_single_images(variant):
    """Two images of one size together and alone. (Of two sizes: see test_transformer.py.)"""
    detector = perturb(build(variant)).eval()
    inputs = make_inputs(((64, 96), (64, 96)))
    with torch.no_grad():
        together = detector(inputs)
        for index, expected in enumerate(together):
            found = detector(inputs[index : index + 1])[0]["instances"]
            expected = expected["instances"]
            torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
            # normalised boxes to 1e-5: they are scaled to 192 pixels
            torch.testing.assert_close(
                found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=192e-5
            )


def test_mask_is_used_in_evaluation_as_in_training():
    """Without dropout the last layer's raw predictions are those of training, padding and all."""
    detector = perturb(tiny_detector())
    for module in detector.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    seen = []
    detector.transformer.register_forward_hook(
        lambda _, arguments, result: seen.append((arguments[1], result[0][-1]["pred_boxes"]))
    )
    inputs = make_inputs()
    detector(inputs)
    with torch.no_grad():
        detector.eval()(inputs)
    (train_masks, train_boxes), (eval_masks, eval_boxes) = seen
    assert train_masks[0].any()
    assert all(torch.equal(one, two) for one, two in zip(train_masks, eval_masks))
    torch.testing.assert_close(train_boxes, eval_boxes, rtol=0, atol=1e-6)


def test_targets_by_hand():
    """Box (10, 20, 30, 60) in 100 high x 200 wide: centre (0.1, 0.4), size (0.1, 0.4)."""
    inputs = make_inputs(((100, 200), (50, 50)), (1, 0))
    inputs[0]["instances"].gt_boxes.tensor = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    one, none = tiny_detector().prepare_targets(inputs)
    torch.testing.assert_close(one["boxes"], torch.tensor([[0.1, 0.4, 0.1, 0.4]]))
    assert one["labels"].tolist() == [0] and none["boxes"].shape == (0, 4)


def test_training_without_instances_says_so():
    inputs = make_inputs()
    del inputs[1]["instances"]
    with pytest.raises(ValueError, match="instances"):
        tiny_detector()(inputs)


def test_class_that_does_not_exist_is_named():
    inputs = make_inputs()
    inputs[0]["instances"].gt_classes[1] = 3
    with pytest.raises(UserError, match="has class 3, but model.num_classes is 3"):
        tiny_detector()(inputs)


def test_autocast_keeps_losses_float32():
    """bfloat16 inside, float32 losses, close to those without autocast."""
    detector = perturb(build("two_stage"), 0.02).eval()
    inputs = make_inputs()
    detector.training = True  # losses, but no dropout
    exact = detector(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(inputs)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())
    for name in ("loss_class", "loss_bbox"):
        torch.testing.assert_close(losses[name], exact[name], rtol=0.1, atol=0.1)


def test_an_image_that_is_not_a_number_shows_in_the_losses():
    """They are what the engine checks, in all processes together; nothing is raised on the way."""
    detector = tiny_detector()
    inputs = make_inputs()
    inputs[0]["image"][0, 3, 4] = float("nan")
    losses = detector(inputs)
    assert losses["loss_class"].isnan() and losses["loss_bbox"].isnan()


def test_extreme_logits_give_no_nan():
    detector = tiny_detector()
    with torch.no_grad():
        detector.class_embed[0].bias.copy_(torch.tensor([100.0, -100.0, 100.0]))
    losses = detector(make_inputs())
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


def test_topk_is_capped_with_a_warning():
    """7 queries x 1 class: 7 detections although 300 are asked for."""
    with pytest.warns(UserWarning, match="topk is 300.*at most 7"):
        detector = tiny_detector(num_classes=1, topk=300)
    assert len(detector.eval()(make_inputs())[0]["instances"]) == 7


def test_two_stage_with_fewer_tokens_than_queries():
    """32x32 pixels: 4 + 1 + 1 tokens for 50 queries; 6 x 3 detections, and training works."""
    detector = tiny_detector(True, True, num_queries=50, topk=100, embed_dim=64)
    inputs = make_inputs(((32, 32),), (1,))
    assert all(loss.isfinite() for loss in detector(inputs).values())
    assert len(detector.eval()(inputs)[0]["instances"]) == 18


def test_settings_that_contradict_each_other_are_refused():
    for settings, message in (
        ({"two_stage": True}, "with_box_refine=True"),
        ({"criterion": SetCriterion(4, HungarianMatcher())}, "num_classes is 3.*is 4"),
        ({"in_features": ["res4", "res9"]}, "in_features is .*offers"),
    ):
        backbone = build_resnet(10, ["res4", "res5"], stem_out_channels=8, res2_out_channels=8)
        with pytest.raises(UserError, match=message):
            tiny_detector(backbone=backbone, **settings)
    transformer = tiny_detector().transformer
    with pytest.raises(UserError, match="embed_dim is 64 but model.transformer.embed_dim is 32"):
        DeformableDETR(build_resnet(10, ["res5"]), ["res5"], transformer, None, 3, embed_dim=64,
                       num_feature_levels=3)  # fmt: skip


def test_aux_loss_is_a_setting():
    losses = tiny_detector(aux_loss=False)(make_inputs())
    assert losses.keys() == {"loss_class", "loss_bbox", "loss_giou"}


@pytest.mark.parametrize("variant", ["multi_scale", "two_stage"])
def test_every_parameter_is_stored_once(variant):
    """No aliases in the checkpoint, no pixel statistics, and published names of the heads."""
    detector = build(variant)
    state = detector.state_dict()
    assert len({t.data_ptr() for t in state.values()}) == len(state)
    assert not any("pixel" in name for name in state)
    heads = {name.split(".")[1] for name in state if name.startswith("class_embed")}
    assert heads == ({"0", "1", "2"} if variant == "two_stage" else {"0"})
    assert ("query_embed.weight" in state) == (variant == "multi_scale")
    assert "bbox_embed.0.layers.2.bias" in state and "input_proj.0.1.weight" in state


def test_survives_copy_and_pickle():
    detector = perturb(tiny_detector()).eval()
    inputs = make_inputs()
    expected = detector(inputs)[0]["instances"].scores
    for other in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        torch.testing.assert_close(other(inputs)[0]["instances"].scores, expected, rtol=0, atol=0)


def test_follows_the_device_of_its_parameters():
    """On the meta device every tensor that the model makes is made there too."""
    detector = tiny_detector().to("meta")
    assert detector.device.type == "meta"
    (output,), _ = detector.predict(torch.empty(1, 3, 96, 64, device="meta"))
    assert output["pred_boxes"].device.type == "meta"


def test_integer_images_are_accepted():
    detector = tiny_detector().eval()
    inputs = make_inputs()
    whole = [{**i, "image": i["image"].round().to(torch.uint8)} for i in inputs]
    same = [{**i, "image": i["image"].float()} for i in whole]
    found, expected = detector(whole)[0]["instances"], detector(same)[0]["instances"]
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=0)


def test_images_normalised_by_their_own_statistics():
    """Mean 0 and deviation 1 of each image, whatever its exposure, beside any other in the batch.

    Grey values 10 and 30 in equal parts: mean 20, deviation 10, so -1 and 1. Of one grey value, or
    of noise below one grey value, nothing is made louder.
    """
    detector = perturb(tiny_detector(pixel_mean=None, pixel_std=None)).eval()
    image = torch.tensor([10.0, 30.0]).repeat(3, 8, 4)
    torch.testing.assert_close(detector.normalize(image), (image - 20) / 10, rtol=0, atol=1e-6)
    assert (detector.normalize(torch.full((3, 8, 8), 77.7)).abs() < 1e-4).all()
    faint = torch.tensor([5.0, 5.5]).repeat(3, 8, 4)
    torch.testing.assert_close(detector.normalize(faint), faint - 5.25, rtol=0, atol=1e-6)
    inputs = make_inputs()
    darker = [{**i, "image": i["image"] * 0.5 + 20} for i in inputs]
    for one, other in zip(detector(inputs), detector(darker)):
        one, other = one["instances"].scores, other["instances"].scores
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    fixed = perturb(tiny_detector()).eval()
    found, changed = (fixed(images)[0]["instances"].scores for images in (inputs, darker))
    assert (found - changed).abs().max() > 1e-4  # with the data set's statistics they differ


def test_one_of_two_statistics_is_refused():
    with pytest.raises(UserError, match="model.pixel_mean is None and model.pixel_std .*null"):
        tiny_detector(pixel_mean=None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_queries": 0}, "model.num_queries is 0"),
        ({"topk": -1}, "model.topk is -1"),
        ({"pixel_mean": [1, 2]}, "model.pixel_mean is .1, 2.; it must be three numbers"),
        ({"pixel_std": 5}, "model.pixel_std is 5; it must be three numbers"),
        ({"backbone": "r50"}, "model.backbone is 'r50'; it must be a node"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        tiny_detector(**settings)


def test_training_without_a_criterion_is_refused():
    with pytest.raises(UserError, match="model.criterion is null"):
        tiny_detector(criterion=None).train()(make_inputs())
