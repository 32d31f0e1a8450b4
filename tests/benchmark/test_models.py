# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Whole detectors: the same work for both, a batch in parts, and who is compared."""

from pathlib import Path

import pytest
import torch

from detrex_mammo import ops
from detrex_mammo.benchmark import models, peers
from detrex_mammo.benchmark.models import (
    OURS,
    OURS_COMPILED,
    OURS_OFFICIAL,
    PATCHED,
    STEP,
    Contender,
    Detect,
    TrainingStep,
    find_contender,
    find_contenders,
)
from detrex_mammo.benchmark.peers import Operator
from detrex_mammo.benchmark.session import Session
from detrex_mammo.benchmark.subjects import (
    Images,
    Subject,
    draw_images,
    our_compiled_subject,
    our_subject,
    transformers_subject,
)
from detrex_mammo.layers import MultiScaleDeformableAttention
from tests.benchmark.example import make_results


def line(learning_rate: float = 1.0) -> Subject:
    """The mean of w * x over a batch, from w = 1."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    return Subject(
        model,
        torch.optim.SGD(model.parameters(), lr=learning_rate),
        lambda images: images.pixels.flatten()[:, None],
        model,
        lambda inputs: model(inputs).mean(),
    )


def numbers(*values: float) -> Images:
    pixels = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)
    return Images(pixels, torch.zeros(len(values), 0, 4), torch.zeros(len(values), 0))


def test_a_step_clips_and_steps_from_a_clean_gradient() -> None:
    """The gradient is the mean, 2.5; clipped to 0.1, it moves w = 1 to 0.9, then to 0.8."""
    subject = line()
    step = TrainingStep(subject, numbers(1, 2, 3, 4), None)
    for expected in (0.9, 0.8):
        step()
        assert subject.model.weight.item() == pytest.approx(expected, abs=1e-4)
    assert step.note == "batch 4"


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four numbers of which one at a time fits; the same gradient, 0.01 * 2.5 unclipped."""
    monkeypatch.setattr(models, "MAX_NORM", 1e9)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    subject = line(learning_rate=0.01)
    sizes = []

    def loss(inputs):
        sizes.append(len(inputs))
        if len(inputs) > 1:
            raise torch.OutOfMemoryError("no room")
        return subject.model(inputs).mean()

    step = TrainingStep(
        Subject(subject.model, subject.optimizer, subject.prepare, subject.detect, loss),
        numbers(1, 2, 3, 4),
        None,
    )
    step()
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert step.note == "batch 4 in parts of 1"
    assert subject.model.weight.item() == pytest.approx(1 - 0.025)


def test_one_image_that_does_not_fit_is_an_error() -> None:
    def loss(inputs):
        raise torch.OutOfMemoryError("no room")

    subject = line()
    step = TrainingStep(
        Subject(subject.model, subject.optimizer, subject.prepare, subject.detect, loss),
        numbers(1),
        None,
    )
    with pytest.raises(torch.OutOfMemoryError):
        step()


def test_inference_is_without_gradients_in_evaluation_and_half_precision() -> None:
    subject = line()
    seen = []

    def detect(inputs):
        out = subject.model(inputs)
        seen.append((subject.model.training, out.requires_grad, out.dtype))

    watched = Subject(subject.model, subject.optimizer, subject.prepare, detect, subject.loss)
    Detect(watched, numbers(1, 2), torch.bfloat16)()
    Detect(watched, numbers(1, 2), None)()
    assert seen == [(False, False, torch.bfloat16), (False, False, torch.float32)]


def test_contenders_of_a_cpu() -> None:
    found, missing = find_contenders("cpu")
    assert [c.name for c in found] == ["transformers", PATCHED, OURS]
    assert missing == {OURS_OFFICIAL: "it needs a GPU", OURS_COMPILED: "train.compile is for GPUs"}
    assert find_contender(OURS_COMPILED, "cuda").build is our_compiled_subject
    assert found[0].build is found[1].build


def test_without_transformers_ours_is_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    found, missing = find_contenders("cpu")
    assert [c.name for c in found] == [OURS]
    assert (
        missing["transformers"] == missing[PATCHED] == "the package transformers is not installed"
    )


def test_our_module_runs_with_somebody_elses_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in gives ten times the result, so that it is seen to be used, and then left."""

    def fused(value, shapes, *rest):
        return 10 * ops.ms_deform_attn_fused(value, shapes, None, *rest, "reference")

    official = Operator("official", fused, fused)
    monkeypatch.setattr(models, "find_operator", lambda name, device: official)
    module, query = MultiScaleDeformableAttention(16, 2, 1, 2), torch.rand(1, 6, 16)
    inputs = (query, torch.rand(1, 6, 1, 2), query, ((2, 3),))
    with torch.no_grad():
        module.output_proj.bias.zero_()
        expected = module(*inputs)
        with find_contender(OURS_OFFICIAL, "cuda").around():
            torch.testing.assert_close(module(*inputs), 10 * expected)
        torch.testing.assert_close(module(*inputs), expected)


def test_a_detector_that_cannot_be_built_is_a_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(device: str) -> Subject:
        raise RuntimeError("no such thing")

    contenders = [Contender("broken", broken), Contender("line", lambda device: line())]
    monkeypatch.setattr(models, "find_contenders", lambda device: (contenders, {}))
    monkeypatch.setattr(models, "in_child", lambda function, **arguments: (1000, "noted"))
    session = Session("train", "cpu", True, 1, make_results(tmp_path, "train"))
    models.run_train(session)
    case = "R50 two-stage, fp32"
    assert session.results.row(case, STEP, "broken").error == "RuntimeError: no such thing"
    good = session.results.row(case, STEP, "line")
    assert (len(good.values), good.note, good.error) == (2, "batch 1", "")
    assert session.results.row(case, models.MEMORY, "line").values == [1000]


def test_both_detectors_train_the_same_number_of_weights_on_the_same_boxes() -> None:
    images = draw_images(64, 96, 2, "cpu")
    counts, boxes = [], []
    for build in (our_subject, transformers_subject):
        subject = build("cpu")
        counts.append(sum(p.numel() for p in subject.model.parameters() if p.requires_grad))
        in_optimizer = [p for g in subject.optimizer.param_groups for p in g["params"]]
        assert sum(p.numel() for p in in_optimizer) == counts[-1]
        prepared = subject.prepare(images)
        if build is our_subject:
            boxes.append(subject.model.prepare_targets(prepared)[1]["boxes"])
        else:
            boxes.append(prepared[1][1]["boxes"])
    assert counts[0] == counts[1]
    torch.testing.assert_close(boxes[0], boxes[1])
