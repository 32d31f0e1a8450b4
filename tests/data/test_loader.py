# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The training loader: the same pixels whatever the workers, and after any interruption."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import SequentialSampler

from detrex_mammo.data.augmentation import RandomIntensity, ResizeToFit
from detrex_mammo.data.batching import Plan
from detrex_mammo.data.datasets import load_coco_json
from detrex_mammo.data.loader import build_train_loader, seeded
from detrex_mammo.data.mapper import MammographyMapper
from detrex_mammo.data.order import Order
from detrex_mammo.data.sampling import Sampling
from detrex_mammo.errors import UserError


def noisy(record: dict) -> dict:
    """Everything that is random in a mapper: NumPy, Python and torch."""
    size = (record["height"], record["width"])
    image = torch.rand(size) + torch.from_numpy(np.random.normal(size=size))
    return {"image_id": record["image_id"], "image": image + random.random()}


RECORDS = [{"image_id": i, "height": 3 + i % 3, "width": 4 + i % 2} for i in range(10)]


def take(count: int, start_iter: int = 0, num_workers: int = 0, dataset=RECORDS, **more):
    order = Order(dataset, 7, None, start_iter)
    loader = build_train_loader(dataset, noisy, 4, sampler=order, num_workers=num_workers, **more)
    return list(islice(loader, count))


def assert_same(found: list[list[dict]], expected: list[list[dict]]) -> None:
    assert [[item["image_id"] for item in batch] for batch in found] == [
        [item["image_id"] for item in batch] for batch in expected
    ]
    for one, other in zip(sum(found, []), sum(expected, [])):
        assert torch.equal(one["image"], other["image"])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("more", [{}, {"token_budget": 50, "max_padding": 0.3}])
def test_run_entered_at_a_step_goes_on_bit_for_bit(num_workers: int, more: dict) -> None:
    whole = take(9, **more)
    assert_same(take(9, num_workers=num_workers, **more), whole)
    for start in (1, 2, 5):  # 2.5 steps an epoch
        rest = take(3, start_iter=start, num_workers=num_workers, **more)
        assert_same(rest, whole[start : start + 3])


def test_an_image_is_augmented_anew_each_time() -> None:
    seen: dict[int, list[torch.Tensor]] = {}
    for item in sum(take(10), []):
        seen.setdefault(item["image_id"], []).append(item["image"])
    assert {len(images) for images in seen.values()} == {4}
    for first, *others in seen.values():
        assert not any(torch.equal(first, other) for other in others)


def test_random_numbers_of_the_process_are_left_alone() -> None:
    def draw() -> tuple:
        return random.random(), np.random.random(), float(torch.rand(()))

    def restart() -> None:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)

    restart()
    expected = [draw() for _ in range(3)]
    restart()
    batches = iter(build_train_loader(RECORDS, noisy, 4, num_workers=0))
    found = []
    for _ in range(3):
        next(batches)
        found.append(draw())
    assert found == expected
    restart()
    with pytest.raises(KeyError), seeded(3):
        draw()
        raise KeyError
    assert draw() == expected[0]


def test_another_seed_is_another_run() -> None:
    one, other = (
        next(iter(build_train_loader(RECORDS, noisy, 10, sampler=Order(RECORDS, s), num_workers=0)))
        for s in (1, 2)
    )
    assert [item["image_id"] for item in one] != [item["image_id"] for item in other]


def test_sampling_without_a_run() -> None:
    records = [{**r, "annotations": [{"category_id": 0}] * (r["image_id"] < 2)} for r in RECORDS]
    sampling = Sampling(negatives_per_positive=0)
    loader = build_train_loader(records, noisy, 2, sampling=sampling, num_workers=0)
    shown = [item["image_id"] for batch in islice(loader, 3) for item in batch]
    assert set(shown) == {0, 1}


def test_sampler_that_cannot_be_entered_is_one_sentence() -> None:
    with pytest.raises(UserError, match="is a SequentialSampler, but this loader needs"):
        build_train_loader(RECORDS, noisy, 2, sampler=SequentialSampler(RECORDS))


def write_mammograms(folder: Path, count: int) -> Path:
    """Films of two formats with breasts of all shapes, and their breast boxes."""
    rng = np.random.default_rng(2)
    images = []
    for number in range(count):
        height, width = (240, 160) if number % 2 else (200, 180)
        top, bottom = rng.integers(5, 50), rng.integers(120, 195)
        right = rng.integers(50, 150)
        pixels = np.zeros((height, width), np.uint8)
        pixels[top:bottom, :right] = rng.integers(60, 200, (bottom - top, right))
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
        box = [0, int(top), int(right), int(bottom)]
        images.append(
            {"id": number, "file_name": f"{number}.png", "height": height, "width": width,
             "breast_box": box, "chest_wall": "left"}
        )  # fmt: skip
    path = folder / "coco.json"
    categories = [{"id": 1, "name": "mass"}]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    return path


class Sized(MammographyMapper):
    """The mapper with the network size of a record as a resize without chance makes it."""

    def nominal_size(self, record: dict) -> tuple[int, int]:
        return tuple(self(record)["image"].shape[1:])


def make(folder: Path, count: int = 24, **more):
    path = write_mammograms(folder, count)
    dataset = load_coco_json(f"loader_{path}", str(path), str(folder))
    mapper = Sized(True, [ResizeToFit(height=96, width=64), RandomIntensity()])
    return build_train_loader(dataset, mapper, num_workers=0, **more)


def padding_of(batches: list[list[dict]]) -> tuple[float, list[float]]:
    """Share of padding of mapped batches, in all and of each."""
    own = [sum(item["image"][0].numel() for item in batch) for batch in batches]
    padded = [
        len(batch)
        * max(i["image"].shape[1] for i in batch)
        * max(i["image"].shape[2] for i in batch)
        for batch in batches
    ]
    return 1 - sum(own) / sum(padded), [1 - o / p for o, p in zip(own, padded)]


def test_mapped_batches_keep_budget_and_padding(tmp_path: Path) -> None:
    loader = make(tmp_path, total_batch_size=8, token_budget=5 * 96 * 64, max_padding=0.15)
    plan = loader.batch_sampler
    batches = list(islice(loader, plan.steps_per_epoch))
    share, shares = padding_of(batches)
    assert max(shares) <= 0.15
    assert share == pytest.approx(plan.plan(0).padding(plan.sizes), abs=1e-12)
    assert sorted(item["image_id"] for batch in batches for item in batch) == list(range(24))
    assert plan.mean_batch_size >= 2


def test_mapped_batches_of_fixed_size_have_less_padding_than_unsorted(tmp_path: Path) -> None:
    loader = make(tmp_path, count=96, total_batch_size=2)
    plan = loader.batch_sampler
    share, _ = padding_of(list(islice(loader, plan.steps_per_epoch)))
    unsorted = Plan(plan.order.images(0, 96), np.arange(0, 97, 2), 0).padding(plan.sizes)
    assert share < 0.05 and share < unsorted / 2


def test_sizes_without_a_word_of_the_mapper_are_those_of_the_images() -> None:
    loader = build_train_loader(RECORDS, noisy, 4, num_workers=0)
    assert loader.batch_sampler.sizes.tolist() == [[r["height"], r["width"]] for r in RECORDS]


LATE = """
import os, sys, time
from torch.utils.data import DataLoader
from detrex_mammo.data.loader import start_worker

def late(worker):
    print(os.getpid(), flush=True)
    while os.getppid() == parent:
        time.sleep(0.01)
    start_worker(worker)

parent = os.getpid()
list(DataLoader(range(3), num_workers=1, worker_init_fn=late, multiprocessing_context="fork"))
"""


SERVED = """
import os, time
from torch.utils.data import DataLoader
from detrex_mammo.data.loader import start_worker

def tell(worker):
    print(os.getpid(), flush=True)
    start_worker(worker)

if __name__ == "__main__":
    next(iter(DataLoader(range(3), num_workers=1, worker_init_fn=tell,
                         multiprocessing_context="forkserver")))
    time.sleep(60)
"""


@pytest.mark.parametrize("script", [LATE, SERVED])
def test_a_parent_that_was_killed_is_noticed(script: str, tmp_path: Path) -> None:
    """While its worker started, or behind a server of forks; output ends when all have ended."""
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py")]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    worker = int(started.stdout.readline())
    started.kill()
    started.wait()
    timer = threading.Timer(60, os.kill, (worker, signal.SIGKILL))
    timer.start()
    started.stdout.read()
    assert timer.is_alive()
    timer.cancel()
