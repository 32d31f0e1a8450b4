# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Predicted memory against sums by hand and against a process that really trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances

from detrex_mammo.config import find_shipped, instantiate, load_config, without_pretrained
from detrex_mammo.engine.batch_size import fit
from detrex_mammo.engine.freezing import freeze
from detrex_mammo.engine.memory import ERROR, StorageCounter, blank_image, predict_peak, step
from detrex_mammo.engine.optimizer import build_optimizer

ROOT = Path(find_shipped("configs/common/train.py")).parents[2]
DEMO = "projects/mammography/configs/demo.py"
SIZE, BATCH = (384, 224), 8

REAL = """
import sys, torch
from detrex_mammo.benchmark.memory import peak_of
from detrex_mammo.config import instantiate, load_config
from detrex_mammo.engine import memory
from detrex_mammo.engine.training import build_optimizer

cfg = load_config(sys.argv[1])
size, batch = (int(sys.argv[2]), int(sys.argv[3])), int(sys.argv[4])

def train():
    model = instantiate(cfg.model).train()
    optimizer = build_optimizer(cfg.optimizer, model)
    images = [memory.blank_image(size) for _ in range(batch)]
    for _ in range(2):
        memory.step(model, optimizer, images, None)

torch.nn.Conv2d(3, 8, 3)(torch.zeros(1, 3, 64, 64)).sum().backward()  # loads libraries
print(peak_of(train).extra)
"""


def test_storages_are_counted_from_use_to_release() -> None:
    """Float32: x has 100 numbers (400 bytes); exp keeps its result (400) for the backward pass.

    The sum has 4 bytes. A view takes nothing.
    """
    x = torch.zeros(100, requires_grad=True)
    with StorageCounter() as counter:
        y = x.exp().view(10, 10)
        assert counter.held == 800
        z = y.sum()
        del y
        assert counter.held == 804  # the graph still holds the result of exp
        del z
        assert counter.held == 400
        assert counter.highest == 804
        z = x.exp().sum()
        z.backward()
        assert x.grad is not None and counter.held == 804  # x, its gradient, z; exp is let go
    del z


@pytest.mark.filterwarnings("error:Accessing the data pointer")
def test_parts_of_the_prediction() -> None:
    """AdamW keeps two numbers a parameter, and one count a tensor."""
    cfg = load_config(DEMO)
    one, two = predict_peak(cfg, SIZE, 4), predict_peak(cfg, SIZE, 8)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    counts = sum(1 for p in model.parameters() if p.requires_grad)
    assert one.optimizer == two.optimizer == 4 * (2 * trained + counts)
    assert one.weights >= 4 * sum(p.numel() for p in model.parameters())
    assert one.peak > one.weights + one.optimizer
    assert 1.8 < two.activations / one.activations < 2.0  # gradients do not grow with the batch
    cfg.train.amp.enabled = True
    assert predict_peak(cfg, SIZE, 8).activations < 0.85 * two.activations


def test_room_for_denoising_queries() -> None:
    """Predicted without boxes, against a step that is computed, with as many as a group takes."""
    cfg = load_config(
        "projects/deformable_detr/configs/deformable_detr_r50_two_stage_dn_50ep.py",
        ["model.num_classes=3", "model.transformer.num_encoder_layers=1"],
    )
    size = (64, 96)
    model = instantiate(without_pretrained(cfg.model)).train()
    freeze(model, cfg.train.freeze)
    optimizer = build_optimizer(cfg.optimizer, model)
    image = blank_image(size)
    boxes = torch.rand(20, 4) * 20 + torch.tensor([0, 0, 30, 30])
    image["instances"] = Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.arange(20) % 3)
    with StorageCounter() as counter:
        for tensor in (*model.parameters(), *model.buffers()):
            counter.count(tensor)
        step(model, optimizer, [image], None)
        counter.highest = counter.held
        step(model, optimizer, [image], None)
    predicted = predict_peak(cfg, size, 1)
    held = counter.held  # weights, gradients and the optimizer's state, which are not the question
    assert (predicted.peak - held) / (counter.highest - held) == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_a_process_that_trains_needs_what_was_predicted() -> None:
    """On a CPU, in a fresh process whose C library gives back what is freed, within ERROR."""
    arguments = [DEMO, *map(str, SIZE), str(BATCH)]
    command = [sys.executable, "-c", REAL, *arguments]
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=env)
    ratio = int(done.stdout) / predict_peak(load_config(DEMO), SIZE, BATCH).peak
    assert 1 - ERROR < ratio < 1 + ERROR


def run_tool(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools/analyze_model.py"), "--config-file", DEMO]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_the_tool() -> None:
    memory = ["--memory", "2GB", "--processes", "4", "train.batch_size=auto"]
    done = run_tool("--size", "128x96", "--batch", "1", "3", "model.num_classes=5", *memory)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    parts = ("backbone", "transformer", "input_proj", "class_embed", "bbox_embed")
    count = {name: int(rows[name][0].replace(",", "")) for name in (*parts, "total")}
    assert sum(count[name] for name in parts) == count["total"]
    assert "128x96" in done.stdout and {"1", "3"} <= set(rows)
    cfg = load_config(DEMO, ["model.num_classes=5"])
    found = fit(cfg, "cuda", 2 * 10**9, 4)
    assert (
        f"with 1.9 GiB free: {found.images} image(s) of up to {found.size[0]}x{found.size[1]} in "
        f"each process, {4 * found.images} over 4 processes" in done.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--size", "800"], "--size is '800', but must be HEIGHTxWIDTH"),
        (["--batch", "0"], "--batch is '0'"),
        (["--memory", "24"], "--memory is '24', but must be an amount such as 24GB"),
        (["--processes", "0"], "--processes is 0"),
        (["train.batch_size=auto"], "give the --memory of one process"),
        (["model.num_clases=1"], "unknown key 'model.num_clases'"),
        (["--size", "1x1"], "cannot be predicted, because a step of 1x1 without numbers fails"),
    ],
)
def test_a_wrong_request_is_one_sentence(arguments: list[str], told: str) -> None:
    done = run_tool(*arguments)
    assert done.returncode == 2
    assert told in done.stderr and "Traceback" not in done.stderr
