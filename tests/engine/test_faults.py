# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Faults at the worst moments: between two files, before the first, in processes that load."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall
from detectron2.data import build_detection_test_loader
from torch import nn

from detrex_mammo.config import load_config, save_config
from detrex_mammo.engine.history import EvaluationHistory
from detrex_mammo.engine.loaders import build_test_loader
from detrex_mammo.engine.replay import Replay
from detrex_mammo.engine.supervision import End, raise_end
from detrex_mammo.errors import UserError
from tests.engine.faults import exit_code, faulty_config, run, start
from tests.engine.test_interruption import KEYS, RANDOM, assert_equal, assert_same_run
from tests.engine.tiny import TinyDetector, TinyMapper, read_lines, tiny_dataset
from tests.tiny_configs import shrink, write_coco

STOPPING = ["train.early_stopping.metric=tiny/count", "train.early_stopping.patience=1"]
RECIPE = "projects/mammography/configs/deformable_detr_r50_two_stage_mammography_50ep.py"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of 9 steps, evaluated after 3, 6 and 9, that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    run(faulty_config(folder), *RANDOM)
    return folder / "run"


def killed_at(name: str, count: int, is_done: bool, *arguments: str) -> int:
    """The exit code of a run that is killed when it replaces a file for the n-th time.

    Args:
        name: of the file.
        count: n.
        is_done: after it is replaced, else before.
        arguments: see ``start``.
    """
    replace, times = os.replace, []

    def deadly(source, target) -> None:
        times.extend([1] * (Path(target).name == name))
        is_now = len(times) == count and Path(target).name == name
        if is_done or not is_now:
            replace(source, target)
        if is_now:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", deadly)
        child = start(*arguments)
    return exit_code(child)


def test_signal_reaches_no_process_beside_the_run(tmp_path: Path) -> None:
    """The faults planted here stay in their run, whatever processes these tests have besides."""
    other = multiprocessing.Process(target=time.sleep, args=(60,))
    other.start()
    signals = ["model.signal_at=0", "model.name=SIGKILL"]
    assert exit_code(start(faulty_config(tmp_path), *RANDOM, *signals)) == -9
    assert other.is_alive()
    other.terminate()
    other.join()


def test_kill_before_the_first_checkpoint_leaves_no_step_twice(whole: Path, tmp_path: Path) -> None:
    """Two steps stand in metrics.json, and there is nothing to resume from."""
    config = faulty_config(tmp_path)
    assert exit_code(start(config, *RANDOM, "model.signal_at=2", "model.name=SIGKILL")) == -9
    assert len(read_lines(tmp_path / "run/metrics.json", "total_loss")) == 2
    run(config, *RANDOM, "--resume")
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("evaluations.json", 1),
        ("evaluations.json", 3),
        ("model_0000005.pth", 1),
        ("last_checkpoint", 2),
        ("model_final.pth", 1),
    ],
)
def test_kill_around_each_file(
    name: str, count: int, is_done: bool, whole: Path, tmp_path: Path
) -> None:
    config = faulty_config(tmp_path)
    assert killed_at(name, count, is_done, config, *RANDOM) == -9
    run(config, *RANDOM, "--resume")
    assert_same_run(tmp_path / "run", whole)
    assert numbers(tmp_path / "run") == numbers(whole)


def numbers(folder: Path) -> list[tuple]:
    """All that metrics.json holds of losses and evaluations, with the steps."""
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    found = [(line["iteration"], key, line.get(key)) for line in lines for key in KEYS]
    return sorted(one for one in found if one[2] is not None)


def test_evaluation_that_a_full_disk_kept_from_its_file_is_there_once(
    whole: Path, tmp_path: Path
) -> None:
    """Its numbers were on the way to metrics.json, and it is made again."""

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    config = faulty_config(tmp_path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="No space left"):
        patch.setattr(EvaluationHistory, "add", full)
        run(config, *RANDOM)
    run(config, *RANDOM, "--resume")
    assert_same_run(tmp_path / "run", whole)
    assert numbers(tmp_path / "run") == numbers(whole)


def test_run_that_is_done_keeps_its_numbers_when_it_is_resumed(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    run(faulty_config(tmp_path), *RANDOM, "--resume")
    assert numbers(tmp_path / "run") == numbers(whole)


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("name", ["evaluations.json", "model_final.pth"])
def test_kill_where_early_stopping_ends_the_run(name: str, is_done: bool, tmp_path: Path) -> None:
    """The count of images never grows, so the second evaluation, after step 5, ends the run."""
    config, settings = faulty_config(tmp_path), [*RANDOM, *STOPPING]
    run(config, *settings, f"train.output_dir={tmp_path / 'whole'}")
    count = 2 if name == "evaluations.json" else 1
    assert killed_at(name, count, is_done, config, *settings) == -9
    run(config, *settings, "--resume")
    assert len(read_lines(tmp_path / "run/metrics.json", "total_loss")) == 6
    assert_same_run(tmp_path / "run", tmp_path / "whole")


class RootDetector(TinyDetector):
    """Takes the square root of 0 at one image: a finite loss with an infinite gradient.

    Args:
        image: its number.
    """

    def __init__(self, image: int = -1):
        super().__init__()
        self.image, self.root = image, Root()

    def forward(self, batch: list[dict]):
        losses = super().forward(batch)
        if isinstance(losses, dict) and self.image in [item["image_id"] for item in batch]:
            losses["loss_class"] = losses["loss_class"] + self.root(losses["loss_bbox"] * 0)
        return losses


class Root(nn.Module):
    def forward(self, value):
        return value.sqrt()


@pytest.mark.parametrize("image", range(4))
def test_gradient_that_is_not_finite_is_found_in_any_small_batch(
    image: int, tmp_path: Path
) -> None:
    """Of three small batches in a step, the one with the image is kept, and shows it again."""
    path = Path(faulty_config(tmp_path))
    text = path.read_text().replace("L(FaultyDetector)(width=8, nan_at=-1)", "L(RootDetector)()")
    path.write_text("from tests.engine.test_faults import RootDetector\n" + text)
    with pytest.raises(UserError, match="grad_norm=nan"):
        run(str(path), f"model.image={image}", "train.accumulate=3")
    (place,) = (tmp_path / "run").glob("nan_step_*")
    content = torch.load(place / "batch_0.pth", weights_only=True)
    shown = [[item["image_id"] for item in batch["items"]] for batch in content["batches"]]
    found = [one.gradients for one in Replay(place, config_file=str(place / "config.yaml")).run(0)]
    assert [image in row for row in shown] == [bool(names) for names in found]
    assert any(found)


def test_signal_to_a_process_that_loads_test_images_does_not_end_it() -> None:
    """As Slurm sends it to all processes of a job: not from the parent."""
    node = LazyCall(build_detection_test_loader)(
        dataset=LazyCall(tiny_dataset)(num_images=40), mapper=LazyCall(TinyMapper)(), num_workers=1
    )
    batches = iter(build_test_loader(node))
    first = next(batches)
    for name in ("TERM", "USR1"):
        subprocess.run(["kill", f"-{name}", str(batches._workers[0].pid)], check=True)
        time.sleep(0.1)
    assert [item["image_id"] for batch in (first, *batches) for item in batch] == list(range(40))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_signal_while_processes_start_is_no_lack_of_memory(number: int, code: int) -> None:
    """They end by the signal itself, as long as they cannot listen; the exit code is the stated."""
    with pytest.raises(SystemExit) as ended:
        raise_end(End(1, -number, 2), ["", ""])
    assert ended.value.code == code


def test_process_that_loads_images_ends_when_its_parent_ends_it() -> None:
    """As Python does at its exit, and waits: not a minute later, as after a signal of others."""
    node = LazyCall(build_detection_test_loader)(
        dataset=LazyCall(tiny_dataset)(num_images=40), mapper=LazyCall(TinyMapper)(), num_workers=1
    )
    batches = iter(build_test_loader(node))
    next(batches)
    worker = batches._workers[0]
    worker.terminate()
    worker.join(20)
    assert not worker.is_alive()


def detector_config(folder: Path) -> str:
    """Deformable DETR with all that has a state: dropout, augmentation, workers, EMA, best, ..."""
    cfg = load_config(RECIPE)
    shrink(cfg, write_coco(folder, num_images=8), folder / "run")
    cfg.model.transformer.dropout, cfg.model.topk, cfg.optimizer.lr = 0.1, 20, 1e-4
    cfg.dataloader.train.num_workers = 2
    cfg.dataloader.evaluator = LazyCall(DETECTION)(
        dataset_name="${..test.dataset.name}", output_dir="${train.output_dir}"
    )
    cfg.train.update(accumulate=2, epochs=4, log_period=1, eval_loss=True)
    cfg.train.checkpointer.period_epochs = 0.5
    cfg.train.ema.update(enabled=True, decay=0.99, warmup=5)
    cfg.train.best.update(metric="ema/val/loss", mode="min")
    cfg.train.early_stopping.update(metric="val/loss", patience=9, mode="min")
    save_config(cfg, str(folder / "config.yaml"))
    return str(folder / "config.yaml")


DETECTION = "detectron2.evaluation.COCOEvaluator"


def assert_same_detector(found: Path, expected: Path) -> None:
    for key in ("total_loss", "grad_norm", "bbox/AP", "ema/bbox/AP", "val/loss", "ema/val/loss"):
        assert read_lines(found / "metrics.json", key) == read_lines(expected / "metrics.json", key)
    for name in ("model_final.pth", "model_best.pth"):
        one, other = (torch.load(at / name, weights_only=True) for at in (found, expected))
        for content in (one, other):
            content.get("trainer", {}).pop("metrics", None)
        for key in ("model", "ema", "trainer", "best"):
            assert_equal(one.get(key), other.get(key), key)


def kill_at_random(config: str, folder: Path, kill: Callable[[int], None], count: int) -> None:
    moments, begin = random.Random(3), time.monotonic()
    run(config, f"train.output_dir={folder / 'whole'}")
    length = time.monotonic() - begin
    for _ in range(count):
        child = start(config, "--resume")
        time.sleep(moments.uniform(0.02, 0.7 * length))
        kill(child)
        exit_code(child)
    run(config, "--resume")
    assert_same_detector(folder / "run", folder / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGUSR1"])
def test_deformable_detr_goes_on_as_if_nothing_had_been(name: str, tmp_path: Path) -> None:
    number = getattr(signal, name)
    kill_at_random(detector_config(tmp_path), tmp_path, lambda pid: os.kill(pid, number), 5)


def command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_processes_whose_parent_is_killed_at_once_do_not_wait_for_it(tmp_path: Path) -> None:
    """Before they have joined, torch does not end them with it yet."""
    launcher = start(faulty_config(tmp_path), "--num-gpus", "2")
    children: list[str] = []
    while len(children) < 2:
        there = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        # One more keeps track of semaphores, unless these tests have one that does.
        children = [child for child in there if b"spawn_main" in command_line(child)]
        time.sleep(0.02)
    os.kill(launcher, signal.SIGKILL)
    assert exit_code(launcher) == -signal.SIGKILL
    deadline = time.monotonic() + 120  # they import torch first
    while any(is_alive(int(child)) for child in children) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(is_alive(int(child)) for child in children)
