# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The operators as torch sees them: schema, fake kernel, autograd, compile, export, autocast."""

import pytest
import torch

from detrex_mammo.ops import c_kernel, ms_deform_attn, ms_deform_attn_fused
from tests.ops.attention_cases import CASES, draw, draw_fused

pytestmark = pytest.mark.skipif(bool(c_kernel.why_not()), reason=c_kernel.why_not())

CASE = CASES[0]
FLAT = [7, 9, 4, 5]


def unfused_arguments():
    value, locations, weights = draw(CASE)
    return value.requires_grad_(), FLAT, locations.requires_grad_(), weights.requires_grad_(), "c"


def fused_arguments():
    value, references, offsets, logits = draw_fused(CASE, 4)
    tensors = references, offsets.requires_grad_(), logits.requires_grad_()
    return value.requires_grad_(), FLAT, *tensors, "c"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name, arguments", [("", unfused_arguments), ("_fused", fused_arguments)], ids=["", "fused"]
)
def test_torchs_own_checks(name, arguments, dtype):
    operator = getattr(torch.ops.detrex_mammo, f"ms_deform_attn{name}").default
    value, *rest = arguments()
    value = value.detach().to(dtype).requires_grad_()
    assert set(torch.library.opcheck(operator, (value, *rest)).values()) == {"SUCCESS"}
    backward = getattr(torch.ops.detrex_mammo, f"ms_deform_attn{name}_backward").default
    tensors = [t.detach() if isinstance(t, torch.Tensor) else t for t in (value, *rest)]
    done = torch.library.opcheck(backward, (torch.randn(2, 5, 48), *tensors))
    assert set(done.values()) == {"SUCCESS"}


class Attention(torch.nn.Module):
    """Both forms, with work before and after that a compiler can fuse."""

    def forward(self, value, references, offsets, logits):
        weights = logits.flatten(3).softmax(-1).view(logits.shape)
        locations = references[:, :, None, :, None, :2] + offsets * 0.1
        first = ms_deform_attn(value * 2, CASE.shapes, None, locations, weights)
        second = ms_deform_attn_fused(value, CASE.shapes, None, references, offsets, logits)
        return torch.relu(first) + second


def test_compiles_in_one_graph_with_gradients():
    inputs = draw_fused(CASE, 2)
    graphs = []

    def backend(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    results = []
    for model in (Attention(), torch.compile(Attention(), fullgraph=True, backend=backend)):
        leaves = [t.clone().requires_grad_(i != 1) for i, t in enumerate(inputs)]
        output = model(*leaves)
        output.sum().backward()
        results.append([output, *(t.grad for t in leaves if t.grad is not None)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert len(graphs) == 1
    names = [name for name in graphs[0] if "detrex_mammo" in name]
    assert len(names) == 2 and not any("grid_sample" in name for name in graphs[0])


@pytest.mark.parametrize("strict", [True, False])
def test_exports_opaque(strict):
    inputs = draw_fused(CASE, 2)
    program = torch.export.export(Attention(), inputs, strict=strict)
    targets = {str(node.target) for node in program.graph.nodes}
    assert {"detrex_mammo.ms_deform_attn.default", "detrex_mammo.ms_deform_attn_fused.default"} <= (
        targets
    )
    torch.testing.assert_close(program.module()(*inputs), Attention()(*inputs), rtol=0, atol=1e-5)


class ImageAttention(torch.nn.Module):
    """Attention over one level, whose size is the image's."""

    def forward(self, image):
        height, width = image.shape[-2:]
        value = image.flatten(2).transpose(1, 2).unsqueeze(2)
        locations = image.new_full((1, 3, 1, 1, 2, 2), 0.4)
        weights = image.new_full((1, 3, 1, 1, 2), 0.5)
        return ms_deform_attn(value, ((height, width),), None, locations, weights)


@pytest.mark.parametrize("strict", [True, False])
def test_exports_for_any_image_size(strict):
    sizes = {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
    program = torch.export.export(
        ImageAttention(), (torch.randn(1, 8, 4, 6),), dynamic_shapes=(sizes,), strict=strict
    )
    image = torch.randn(1, 8, 7, 5)
    torch.testing.assert_close(program.module()(image), ImageAttention()(image), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_the_value_and_nothing_else(dtype):
    value, references, offsets, logits = draw_fused(CASE, 2)
    offsets.requires_grad_()
    value.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        found = ms_deform_attn_fused(value, CASE.shapes, None, references, offsets, logits, "c")
    rounded = value.detach().to(dtype).float().requires_grad_()
    expected = ms_deform_attn_fused(
        rounded, CASE.shapes, None, references, offsets.detach(), logits, "c"
    )
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=0)
    found.float().sum().backward()
    expected.sum().backward()
    assert value.grad.dtype == offsets.grad.dtype == torch.float32
    torch.testing.assert_close(value.grad, rounded.grad, rtol=1e-2, atol=1e-3)


def test_nothing_but_the_inputs_is_kept_for_the_backward_pass():
    value, references, offsets, logits = draw_fused(CASE, 2)
    inputs = value.requires_grad_(), references, offsets.requires_grad_(), logits.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ms_deform_attn_fused(inputs[0], CASE.shapes, None, *inputs[1:], "c")
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in inputs}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_jit_trace_takes_plain_pytorch():
    graph = str(torch.jit.trace(Attention(), draw_fused(CASE, 2)).graph)
    assert "aten::grid_sampler" in graph and "detrex_mammo::" not in graph
