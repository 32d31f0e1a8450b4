# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Several small batches in a step, against the true large batch and against arithmetic by hand.

The detectors are in double precision: in single precision the two sums differ by rounding, which
AdamW (that divides a gradient by its own size) and the matching of boxes make large in a few steps.
"""

import contextlib
import copy
import functools
import itertools
import logging
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from torch import nn

from detrex_mammo.engine.accumulation import count_boxes, summed_losses
from detrex_mammo.engine.launch import World, launch
from detrex_mammo.engine.main import main
from detrex_mammo.engine.trainer import Trainer
from detrex_mammo.engine.training import distribute
from detrex_mammo.errors import UserError
from detrex_mammo.modeling.hybrid_matching import HybridMatching
from tests.engine.small_detector import images, make_detector
from tests.engine.tiny import TinyDetector, TinyMapper, read_lines, tiny_dataset, write_config

STEPS = 10
RECIPE_DN = "projects/deformable_detr/configs/deformable_detr_r50_two_stage_dn_50ep.py"
DDP = {"broadcast_buffers": False, "find_unused_parameters": False}


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> nn.Module:
    return make_detector(tmp_path_factory.mktemp("detector"))


def batches(items: list[dict], size: int) -> Iterator[list[dict]]:
    return itertools.cycle([items[i : i + size] for i in range(0, len(items), size)])


def adamw(model: nn.Module, fused: bool = True) -> torch.optim.Optimizer:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trainable, lr=1e-4, fused=fused)


def trained(model: nn.Module, loader: Iterator, steps: int = STEPS, **settings) -> Trainer:
    model = copy.deepcopy(model)
    trainer = Trainer(model, loader, adamw(model), max_norm=0.1, **settings)
    trainer.train(0, steps)
    return trainer


def history(trainer: Trainer, name: str) -> list[float]:
    return [value for value, _ in trainer.storage.history(name).values()]


def assert_same(one: nn.Module, other: nn.Module, atol: float) -> None:
    for (name, value), expected in zip(one.named_parameters(), other.parameters()):
        difference = float((value - expected).detach().abs().max())
        assert difference <= atol, f"{name}: {difference}"


def moved(model: nn.Module, start: nn.Module) -> float:
    pairs = zip(model.parameters(), start.parameters())
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("size", [1, 2])
def test_ten_steps_equal_those_of_the_large_batch(detector, size: int) -> None:
    """Images with 3, 0, 1 and 5 boxes: a mean of their own losses would weigh them wrongly."""
    large = trained(detector, batches(images(), 4))
    small = trained(detector, batches(images(), size), accumulate=4 // size)
    assert_same(small.model, large.model, atol=1e-9)
    assert moved(large.model, detector) > 5e-4
    for name in ("total_loss", "loss_class", "loss_bbox_0", "loss_giou_enc", "grad_norm"):
        assert history(small, name) == pytest.approx(history(large, name), rel=1e-5), name
        assert len(history(small, name)) == STEPS


def by_hand(model: nn.Module, size: int, steps: int) -> nn.Module:
    """The same with torch alone: each loss times its share of the 9 boxes; the empty one counts 1.

    Divided by its own number of boxes, max(n, 1), a loss becomes that of the large batch when it is
    multiplied by max(n, 1) / 9.
    """
    model = copy.deepcopy(model).train()
    optimizer, loader = adamw(model, fused=False), batches(images(equal=False), size)
    for _ in range(steps):
        optimizer.zero_grad()
        for batch in itertools.islice(loader, 4 // size):
            share = max(count_boxes(batch), 1) / 9
            (share * sum(model(batch).values())).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    return model


def test_queries_of_training_only_equal_those_of_the_large_batch(tmp_path: Path) -> None:
    """Denoising without noise, as no two batches draw the same, and hybrid matching."""
    model = make_detector(tmp_path, recipe=RECIPE_DN)
    model.hybrid = HybridMatching(64, True, num_queries_one2many=8, k_one2many=2)
    model.denoising.label_noise = model.denoising.box_noise = 0.0
    model.criterion.iou_power = 2.0
    large = trained(model, batches(images(), 4), steps=4)
    small = trained(model, batches(images(), 1), steps=4, accumulate=4)
    assert_same(small.model, large.model, atol=1e-9)
    for name in ("loss_class_dn", "loss_giou_dn_0", "loss_bbox_one2many", "loss_class_enc"):
        assert history(small, name) == pytest.approx(history(large, name), rel=1e-5), name


def test_images_of_other_sizes_are_padded_in_their_small_batch_only(detector) -> None:
    """Each small batch is padded by itself, and padding reaches the result: group norms count it.

    So a step is, to the last digit, the sum over small batches, but not that of one padded batch.
    """
    items = images(equal=False)
    small = trained(detector, batches(items, 2), accumulate=2, steps=3)
    assert_same(small.model, by_hand(detector, 2, steps=3), atol=1e-9)
    large = trained(detector, batches(items, 4), steps=3)
    assert 1e-6 < moved(small.model, large.model) < 1e-3


def train_in_a_process(folder: Path, accumulate: int) -> None:
    """Rank r has images r, r + 2, ... of every small batch of two."""
    torch.set_num_threads(1)
    rank, size = comm.get_rank(), comm.get_world_size()
    share = 4 // size // accumulate
    model = make_detector(folder)
    items = images()[rank::size] if size > 1 else images()
    wrapped = distribute(model, "cpu", DDP)
    trainer = Trainer(
        wrapped, batches(items, share), adamw(model), max_norm=0.1, accumulate=accumulate
    )
    trainer.train(0, STEPS)
    if rank == 0:
        torch.save(
            {"model": model.state_dict(), "loss": history(trainer, "total_loss")},
            folder / "result.pth",
        )


@pytest.mark.slow
def test_two_processes_with_small_batches_equal_one_large_batch(detector, tmp_path: Path) -> None:
    large = trained(detector, batches(images(), 4))
    launch(functools.partial(train_in_a_process, tmp_path, 2), World(num_processes=2))
    result = torch.load(tmp_path / "result.pth", weights_only=True)
    assert result["loss"] == pytest.approx(history(large, "total_loss"), rel=1e-5)
    other = copy.deepcopy(detector)
    other.load_state_dict(result["model"])
    assert_same(other, large.model, atol=1e-6)


def test_gradients_are_exchanged_once_a_step(monkeypatch) -> None:
    """All backward passes but the last are inside DistributedDataParallel's ``no_sync``."""
    seen: list[str] = []

    @contextlib.contextmanager
    def no_sync() -> Iterator[None]:
        seen.append("silent")
        yield
        seen.append("over")

    model = TinyDetector()
    model.no_sync = no_sync
    model.register_forward_hook(lambda *_: seen.append("forward"))
    model.head.weight.register_post_accumulate_grad_hook(lambda _: seen.append("backward"))
    trainer = Trainer(model, tiny_batches(2), adamw(model), accumulate=3)
    monkeypatch.setattr("detrex_mammo.engine.trainer.comm.get_world_size", lambda: 2)
    monkeypatch.setattr("detrex_mammo.engine.trainer.dist.all_reduce", lambda values: None)
    trainer.train(0, 1)
    both = ["forward", "backward"]
    assert seen == ["silent", *both, "over"] * 2 + both


def tiny_batches(size: int) -> Iterator[list[dict]]:
    return batches([TinyMapper()(item) for item in tiny_dataset(12)], size)


@pytest.mark.parametrize("amp_dtype", [None, torch.float16])
def test_a_model_of_means_is_averaged(amp_dtype) -> None:
    """TinyDetector has no criterion: its losses are means over images."""
    torch.manual_seed(0)
    model = TinyDetector()
    large = trained(model, tiny_batches(6), amp_dtype=amp_dtype)
    small = trained(model, tiny_batches(2), accumulate=3, amp_dtype=amp_dtype)
    assert_same(small.model, large.model, atol=1e-6 if amp_dtype is None else 5e-4)
    assert history(small, "total_loss") == pytest.approx(history(large, "total_loss"), rel=1e-2)


def test_no_small_batch_outlives_its_turn() -> None:
    """When the model is called with one, all earlier images have been freed."""
    born: list[weakref.ref] = []
    alive: list[int] = []

    def endless() -> Iterator[list[dict]]:
        for item in itertools.cycle(tiny_dataset(12)):
            mapped = TinyMapper()(item)
            born.append(weakref.ref(mapped["image"]))
            batch, mapped = [mapped], None
            yield batch
            batch = None

    model = TinyDetector()
    model.register_forward_pre_hook(
        lambda module, inputs: alive.append(sum(ref() is not None for ref in born))
    )
    Trainer(model, endless(), adamw(model), accumulate=8).train(0, 2)
    assert len(alive) == 16 and set(alive) <= {1, 2}  # the loader itself holds on to the last one


@pytest.mark.parametrize("fused", [False, True])
def test_a_small_batch_that_is_not_finite_is_named(fused: bool, caplog, monkeypatch) -> None:
    """Call 7 is the second of step 2: images 14 and 15 of 12, which are 2 and 3."""
    monkeypatch.setattr(logging.getLogger("detrex_mammo"), "propagate", True)
    model = TinyDetector(nan_at=7)
    two_steps = copy.deepcopy(model)
    trainer = Trainer(model, tiny_batches(2), adamw(model, fused), accumulate=3)
    with caplog.at_level(logging.ERROR), pytest.raises(UserError, match="stopped at step 2"):
        trainer.train(0, 5)
    assert "with the images 2, 3" in caplog.text
    Trainer(two_steps, tiny_batches(2), adamw(two_steps, fused), accumulate=3).train(0, 2)
    assert_same(model, two_steps, atol=0.0)


def test_criterion_divides_by_itself_again_afterwards(detector) -> None:
    model = copy.deepcopy(detector)
    with pytest.raises(RuntimeError), summed_losses(model) as has_sums:
        assert has_sums and model.criterion.num_boxes == 1.0
        raise RuntimeError
    assert model.criterion.num_boxes is None
    with summed_losses(TinyDetector()) as has_sums:
        assert not has_sums


def test_setting_equals_a_larger_batch_and_counts_optimizer_steps(tmp_path: Path) -> None:
    """12 images, 3 epochs, 2 x 2 images a step: 9 steps; also when stopped after 4 and resumed.

    detectron2's loader takes the images as they come; ours would make batches of equal sizes.
    """
    config = write_config(tmp_path)
    path = Path(config)
    unsorted = "L(build_detection_train_loader)(aspect_ratio_grouping=False,"
    text = path.read_text().replace("L(build_train_loader)(", unsorted)
    path.write_text("from detectron2.data import build_detection_train_loader\n" + text)

    def call(*arguments: str) -> None:
        main(["--config-file", config, *arguments])

    small = ["train.accumulate=2", "dataloader.train.total_batch_size=2"]
    call()
    call(f"train.output_dir={tmp_path / 'small'}", *small)
    resumed = f"train.output_dir={tmp_path / 'resumed'}"
    call(resumed, *small, "train.max_iter=4")
    call(resumed, *small, "--resume")
    for key in ("total_loss", "grad_norm", "lr", "tiny/error"):
        expected = read_lines(tmp_path / "run/metrics.json", key)
        found = read_lines(tmp_path / "small/metrics.json", key)
        assert found == pytest.approx(expected, rel=1e-5), key
        if key != "tiny/error":
            assert len(found) == 9
            assert read_lines(tmp_path / "resumed/metrics.json", key) == found
    state = torch.load(tmp_path / "small/model_final.pth", weights_only=True)["trainer"]
    assert state["iteration"] == 8
    assert {int(entry["step"]) for entry in state["optimizer"]["state"].values()} == {9}


def test_wrong_number_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.accumulate is 0, but must be a whole number"):
        main(["--config-file", write_config(tmp_path), "train.accumulate=0"])
