# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""transformers' own models, live and random, with our kernels and without."""

import importlib
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")

from detrex_mammo.errors import UserError  # noqa: E402
from detrex_mammo.ops import huggingface  # noqa: E402
from detrex_mammo.ops.huggingface import patch_transformers, unpatch_transformers  # noqa: E402
from tests.modeling.hf_oracle import perturb, tiny_oracle  # noqa: E402

SMALL = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "d_model": 32, "num_queries": 7}
SMALL |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_layers": 2}
SWIN = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 4}


def images():
    """Two of unlike sizes in one batch that is not square."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(2, 64, 96, dtype=torch.long)
    mask[1, 40:], mask[1, :, 70:] = 0, 0
    pixels = torch.randn(2, 3, 64, 96, generator=generator) * mask[:, None]
    return {"pixel_values": pixels, "pixel_mask": mask}


def deformable_detr():
    return tiny_oracle(with_box_refine=True, two_stage=True), images()


def single_stage():
    return tiny_oracle(), images()


def grounding_dino():
    text = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        vocab_size=50,
    )  # fmt: skip
    vision = transformers.SwinConfig(**SWIN, out_features=["stage2", "stage3", "stage4"])
    config = transformers.GroundingDinoConfig(
        **SMALL, backbone_config=vision, text_config=text, encoder_layers=1, dropout=0.0,
        fusion_dropout=0.0, fusion_droppath=0.0, max_text_len=16,
    )  # fmt: skip
    words = torch.tensor([[2, 5, 6, 3], [2, 7, 8, 3]])
    return transformers.GroundingDinoForObjectDetection(config), {**images(), "input_ids": words}


def mask2former():
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(**SWIN, out_features=stages), feature_size=32,
        mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16, encoder_layers=2,
        decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=7, num_labels=3,
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(config), images()


def rt_detr(name="RTDetr", **options):
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = getattr(transformers, f"{name}Config")(
        **SMALL, **options, backbone_config=backbone, encoder_hidden_dim=32, num_denoising=0,
        encoder_in_channels=[16, 24, 32], decoder_in_channels=[32] * 3, anchor_image_size=None,
        num_labels=3,
    )  # fmt: skip
    inputs = {"pixel_values": images()["pixel_values"]}  # it knows no masks
    return getattr(transformers, f"{name}ForObjectDetection")(config), inputs


def rt_detr_v2():
    return rt_detr("RTDetrV2")


def rt_detr_v2_discrete():
    return rt_detr("RTDetrV2", decoder_method="discrete")


# Model, and how often it calls the operator: once a layer.
MODELS = {
    deformable_detr: 5,
    single_stage: 5,
    grounding_dino: 3,
    mask2former: 2,
    rt_detr: 2,
    rt_detr_v2: 2,
    rt_detr_v2_discrete: 0,
}


@pytest.fixture(autouse=True)
def clean():
    unpatch_transformers()
    yield
    unpatch_transformers()


@pytest.fixture
def calls(monkeypatch):
    """The operator's calls."""
    seen = []
    operator = huggingface.ms_deform_attn

    def watched(*inputs):
        seen.append(inputs)
        return operator(*inputs)

    monkeypatch.setattr(huggingface, "ms_deform_attn", watched)
    return seen


def outputs_and_gradients(model, inputs):
    """All tensors of the output, and the gradient of every parameter and of the image."""
    pixels = inputs["pixel_values"].clone().requires_grad_()
    found = model(**{**inputs, "pixel_values": pixels})
    outputs = {key: item for key, item in found.items() if isinstance(item, torch.Tensor)}
    total = 0
    for key in ("logits", "pred_boxes", "class_queries_logits", "masks_queries_logits"):
        if key in outputs:
            tensor = outputs[key].masked_fill(~outputs[key].isfinite(), 0)
            total = total + (tensor * torch.linspace(-1, 1, tensor.numel()).view_as(tensor)).sum()
    leaves = [("image", pixels), *model.named_parameters()]
    gradients = torch.autograd.grad(total, [leaf for _, leaf in leaves], allow_unused=True)
    return outputs, {name: grad for (name, _), grad in zip(leaves, gradients) if grad is not None}


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_outputs_and_gradients_of_live_models(build, calls):
    torch.manual_seed(0)
    model, inputs = build()
    model.eval().requires_grad_(True)
    if build not in (deformable_detr, single_stage):
        perturb(model, seed=0, std=0.05)
    outputs, gradients = outputs_and_gradients(model, inputs)
    assert calls == []
    patch_transformers()  # made before, patched after
    patched_outputs, patched_gradients = outputs_and_gradients(model, inputs)
    assert len(calls) == MODELS[build]
    assert outputs.keys() == patched_outputs.keys()
    for name, expected in outputs.items():
        torch.testing.assert_close(patched_outputs[name], expected, rtol=0, atol=1e-5)
    assert gradients.keys() == patched_gradients.keys() and len(gradients) > 50
    unpatch_transformers()
    in_double = {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()}
    exact = outputs_and_gradients(model.double(), in_double)[1]
    for name, found in patched_gradients.items():
        # The noise of float32 through a whole model reaches 2e-4 of the largest number.
        noise = (gradients[name] - exact[name]).abs().max().item()
        atol = 4 * noise + 1e-5 * max(1.0, exact[name].abs().max().item())
        torch.testing.assert_close(found, exact[name].float(), rtol=0, atol=atol)
    sampling = [name for name in gradients if re.search("sampling_offsets|attention_weights", name)]
    assert all(gradients[name].count_nonzero() for name in sampling) and sampling


def test_shapes_are_integers_so_that_nothing_waits_for_a_gpu(calls):
    model, inputs = single_stage()
    with patch_transformers(), torch.no_grad():
        model(**inputs)
    for _, shapes, starts, _, _ in calls:
        assert all(type(size) is int for shape in shapes for size in shape) and starts is None


def current(name="deformable_detr"):
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    if name == "mask2former":
        return module.multi_scale_deformable_attention
    return module.MultiScaleDeformableAttention.forward


def test_patched_twice_is_undone_once():
    before = current(), current("mask2former")
    patch_transformers()
    after = current(), current("mask2former")
    assert after[0] is not before[0] and after[1] is not before[1]
    patch_transformers()
    assert (current(), current("mask2former")) == after
    unpatch_transformers()
    assert (current(), current("mask2former")) == before
    unpatch_transformers()
    assert (current(), current("mask2former")) == before


def test_a_context_restores_what_was_before_it():
    before = current()
    with patch_transformers() as outer:
        patched = current()
        assert patched is not before and "deformable_detr" in outer.models
        with patch_transformers() as inner:
            assert inner.models == outer.models
        assert current() is patched
    assert current() is before
    patch_transformers()
    with patch_transformers():
        pass
    assert current() is patched
    unpatch_transformers()
    with pytest.raises(KeyError), patch_transformers():
        raise KeyError
    assert current() is before
    with patch_transformers():
        unpatch_transformers()
    assert current() is before


def test_every_model_of_this_transformers_is_known():
    """Whoever samples as we do must be in the list, and is patched."""
    folder = Path(transformers.__file__).parent / "models"
    rx = re.compile(
        r"^class MultiScaleDeformableAttention\(|^def multi_scale_deformable_attention", re.M
    )
    texts = {path.name: "" for path in folder.iterdir()}
    for file in folder.glob("*/modeling_*.py"):
        texts[file.parent.name] += file.read_text()
    users = {name for name, text in texts.items() if rx.search(text)}
    keeps = re.compile(r"self\.\w+ = multi_scale_deformable_attention")
    users -= {name for name in users if keeps.search(texts[name])}
    assert set(patch_transformers().models) == users
    assert users <= set(huggingface.MODELS)


def test_an_unknown_signature_is_left_alone(monkeypatch):
    from transformers.models.rt_detr import modeling_rt_detr as module

    def forward(self, value, something_new):
        pass

    monkeypatch.setattr(module.MultiScaleDeformableAttention, "forward", forward)
    assert "rt_detr" not in patch_transformers().models
    assert module.MultiScaleDeformableAttention.forward is forward


def test_unlike_numbers_of_points_are_left_to_the_original(calls):
    module = importlib.import_module("transformers.models.rt_detr_v2.modeling_rt_detr_v2")
    inputs = torch.randn(2, 17, 2, 4), [(3, 5), (2, 1)], torch.rand(2, 3, 2, 3, 2)
    inputs += torch.rand(2, 3, 2, 3), [2, 1]
    expected = module.multi_scale_deformable_attention_v2(*inputs)
    with patch_transformers():
        found = module.multi_scale_deformable_attention_v2(*inputs)
    assert calls == []
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_tensors_of_shapes_as_older_versions_pass_them():
    module = importlib.import_module("transformers.models.mask2former.modeling_mask2former")
    torch.manual_seed(0)
    shapes = torch.tensor([[3, 5], [2, 1]])
    inputs = (
        torch.randn(2, 17, 2, 4),
        shapes,
        torch.rand(2, 3, 2, 2, 2, 2),
        torch.rand(2, 3, 2, 2, 2),
    )
    expected = module.multi_scale_deformable_attention(inputs[0], [(3, 5), (2, 1)], *inputs[2:])
    with patch_transformers():
        found = module.multi_scale_deformable_attention(*inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_without_transformers_there_is_a_sentence():
    code = """
import sys
sys.modules["transformers"] = None
from importlib.util import find_spec
from detrex_mammo.ops.huggingface import patch_transformers
try:
    patch_transformers()
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("patch_transformers needs the package transformers"), done.stderr


def test_a_transformers_without_such_models_is_a_sentence(monkeypatch):
    def import_module(name):
        if name != "transformers":
            raise ModuleNotFoundError(name)
        return types.SimpleNamespace(__version__="3.0")

    monkeypatch.setattr(huggingface.importlib, "import_module", import_module)
    with pytest.raises(UserError, match="nothing to patch in transformers 3.0"):
        patch_transformers()
