# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""train.batch_size: a number, or what fits; and what is told where nothing does."""

from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import DictConfig

from detrex_mammo.config import load_config, save_config
from detrex_mammo.engine import batch_size
from detrex_mammo.engine.batch_size import MARGIN, Fit, fit, fits_really, halved, settle_batch_size
from detrex_mammo.engine.main import main
from detrex_mammo.engine.memory import PredictedPeak, predict_peak
from detrex_mammo.errors import UserError
from tests.engine.tiny import read_lines
from tests.tiny_configs import shrink, write_coco

RECIPE = "projects/mammography/configs/demo.py"
COCO = "projects/deformable_detr/configs/deformable_detr_r50_two_stage_50ep.py"


def small(folder: Path, num_images: int = 6) -> DictConfig:
    """A two-stage detector on frames of 64x48; 6 images."""
    cfg = load_config(RECIPE)
    shrink(cfg, write_coco(folder, num_images), folder / "run")
    cfg.train.update(max_iter=3, eval_period_epochs=0, log_period=1, report=False)
    cfg.dataloader.evaluator = None
    target = "detrex_mammo.data.augmentation.ResizeToFit"
    cfg.dataloader.train.mapper.augmentations = [dict(_target_=target, height=64, width=48)]
    return cfg


def run(cfg: DictConfig, folder: Path, *arguments: str) -> None:
    save_config(cfg, str(folder / "small.yaml"))
    main(["--config-file", str(folder / "small.yaml"), *arguments])


def test_a_number_is_taken_and_null_leaves_the_loaders(tmp_path: Path) -> None:
    cfg = small(tmp_path)
    settle_batch_size(cfg, "cpu")
    assert cfg.dataloader.train.total_batch_size == 2
    cfg.train.batch_size = 4
    settle_batch_size(cfg, "cpu")
    assert cfg.dataloader.train.total_batch_size == 4 and cfg.train.batch_size is None


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", True])
def test_other_values_are_one_sentence(tmp_path: Path, value) -> None:
    cfg = small(tmp_path)
    cfg.train.batch_size = value
    with pytest.raises(UserError, match="train.batch_size is .* or null for dataloader") as caught:
        settle_batch_size(cfg, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("before", "after"), [(8, "auto"), ("auto", 8)])
def test_the_command_line_turns_one_into_the_other(tmp_path: Path, before, after) -> None:
    cfg = small(tmp_path)
    cfg.train.batch_size = before
    save_config(cfg, str(tmp_path / "small.yaml"))
    again = load_config(str(tmp_path / "small.yaml"), [f"train.batch_size={after}"])
    assert again.train.batch_size == after


def predicted(monkeypatch, peak) -> list[tuple[int, tuple[int, int]]]:
    """Replace the prediction by a function of the number of images; returns what is asked for."""
    asked = []

    def predict(cfg, size, images, num_processes) -> PredictedPeak:
        asked.append((images, size))
        return PredictedPeak(0, 0, peak(images))

    monkeypatch.setattr(batch_size, "predict_peak", predict)
    return asked


def test_what_is_found_fits_and_one_more_does_not(tmp_path: Path, monkeypatch) -> None:
    """Against every number of images from 1 to 5, predicted one by one."""
    cfg = small(tmp_path)
    cfg.train.merge_with({"accumulate": 3, "ema": {"enabled": True}})
    peaks = {n: predict_peak(cfg, (64, 48), n, 2).peak for n in range(1, 6)}
    predicted(monkeypatch, peaks.__getitem__)
    for free in (peaks[1], peaks[2] - 1, peaks[2], peaks[4] + 1, peaks[5]):
        found = fit(cfg, "cuda", MARGIN["cuda"] * free, num_processes=2)
        assert found.images == max(n for n, peak in peaks.items() if peak <= free)
        assert found.need == MARGIN["cuda"] * peaks[found.images] and found.size == (64, 48)


@pytest.mark.parametrize("bend", [lambda n: n + n**2 // 10, lambda n: n + 9 * (n > 6)])
def test_need_that_does_not_grow_evenly_still_fits(tmp_path: Path, monkeypatch, bend) -> None:
    predicted(monkeypatch, bend)
    for free in range(3, 40):
        found = fit(small(tmp_path), "cuda", MARGIN["cuda"] * free)
        assert bend(found.images) <= free


def test_average_weights_exchange_and_accumulation_are_counted(tmp_path: Path) -> None:
    """The average has every weight; the exchange, and what waits, every trained one."""
    cfg = small(tmp_path)
    plain = predict_peak(cfg, (64, 48), 1)
    exchanged = predict_peak(cfg, (64, 48), 1, num_processes=2)
    cfg.train.ema.enabled = True
    averaged = predict_peak(cfg, (64, 48), 1)
    trained = plain.optimizer // 2  # and a count of 4 bytes a tensor
    assert averaged.besides == averaged.peak - plain.peak
    assert plain.weights * 0.95 < averaged.besides <= plain.weights
    assert 0.98 * trained < exchanged.besides == exchanged.peak - plain.peak <= trained
    cfg.train.update(accumulate=2)
    two = predict_peak(cfg, (64, 48), 8)
    cfg.train.update(accumulate=32)
    assert predict_peak(cfg, (64, 48), 8) == two
    cfg.train.update(accumulate=1)
    assert 0 <= two.peak - predict_peak(cfg, (64, 48), 8).peak <= 1.01 * trained


def test_no_more_than_there_are_images(tmp_path: Path, monkeypatch) -> None:
    cfg = small(tmp_path)
    records = [{"height": 64, "width": 48}] * 7
    predicted(monkeypatch, lambda images: 10 * images)
    assert fit(cfg, "cuda", 1e9, 2, records) == Fit(3, 37.5, (64, 48), True)
    assert fit(cfg, "cuda", 1e9, 8, records).images == 1


def test_images_of_both_orientations_share_a_padded_batch(monkeypatch) -> None:
    """COCO's short edge of 800 and long one of 1333: one image alone, and several together."""
    asked = predicted(monkeypatch, lambda images: 10 * images)
    assert fit(load_config(COCO), "cuda", 50) == Fit(4, 50, (1333, 1333), False)
    assert asked[0][0] == 1 and sorted(asked[0][1]) == [800, 1333]
    assert {size for images, size in asked if images > 1} == {(1333, 1333)}
    assert fit(load_config(COCO), "cuda", 13).images == 1


@pytest.mark.parametrize(
    ("change", "free", "told"),
    [
        (lambda cfg: None, 10_000, "one image of 64x48 already needs"),
        (lambda cfg: cfg.dataloader.train.update(token_budget=5000), 2**40, "token_budget already"),
        (
            lambda cfg: cfg.dataloader.train.mapper.update(augmentations=[]),
            2**40,
            "no resize that limits",
        ),
        (lambda cfg: None, -1, "take fewer dataloader.train.num_workers"),
    ],
)
def test_where_none_can_be_found_it_is_one_sentence(tmp_path: Path, change, free, told) -> None:
    cfg = small(tmp_path)
    change(cfg)
    with pytest.raises(UserError, match=told) as caught:
        fit(cfg, "cpu", free)
    assert str(caught.value).startswith("train.batch_size is 'auto', but ")
    assert "\n" not in str(caught.value)


def out_of_memory_above(most: int):
    """Stands for a GPU on which so many images are too many."""

    def steps(cfg, size, images, device) -> None:
        torch.rand(3)
        if images > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return steps


def test_it_is_halved_until_a_real_step_has_memory(tmp_path: Path, monkeypatch, caplog) -> None:
    cfg = small(tmp_path)
    monkeypatch.setattr(batch_size, "_real_steps", out_of_memory_above(3))
    state = torch.get_rng_state()
    assert halved(14, lambda number: fits_really(cfg, (64, 48), number, "cpu")) == 3
    assert caplog.text.count("ran out of memory") == 2  # 14, 7
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(batch_size, "_real_steps", out_of_memory_above(0))
    with pytest.raises(UserError, match="a real step ran out of memory with one image"):
        halved(4, lambda number: fits_really(cfg, (64, 48), number, "cpu"))


def test_the_real_step_is_one(tmp_path: Path, monkeypatch) -> None:
    """Two steps of a whole model, with boxes to match, that no random number of the run sees."""
    cfg = small(tmp_path)
    cfg.train.ema.enabled = True
    seen = []
    real = batch_size.step

    def step(model, optimizer, images, *more) -> None:
        before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        real(model, optimizer, images, *more)
        after = [p for p in model.parameters() if p.requires_grad]
        changed = sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        seen.append((len(images), len(images[0]["instances"]), changed / len(after)))

    monkeypatch.setattr(batch_size, "step", step)
    state = torch.get_rng_state()
    assert fits_really(cfg, (64, 48), 3, "cpu")
    assert [item[:2] for item in seen] == [(3, 20), (3, 20)] and seen[1][2] > 0.9
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_finds_it_writes_it_and_keeps_it(tmp_path: Path, monkeypatch) -> None:
    """Started where 3 images fit, run again from its config.yaml and resumed where 2 do."""
    cfg = small(tmp_path)
    cfg.train.output_dir = str(tmp_path / "run")
    need = {n: int(MARGIN["cpu"] * predict_peak(cfg, (64, 48), n).peak) + 2 for n in (2, 3)}
    monkeypatch.setattr(batch_size, "available_bytes", lambda device: need[3])
    run(cfg, tmp_path, "train.batch_size=auto", "train.max_iter=2")
    written = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert written["dataloader"]["train"]["total_batch_size"] == 3
    assert written["train"]["batch_size"] is None
    log = (tmp_path / "run/log.txt").read_text()
    assert "train.batch_size=auto: 3 images at a time (1 process(es) x 3) of up to 64x48" in log
    monkeypatch.setattr(batch_size, "available_bytes", lambda device: need[2])
    again = f"train.output_dir={tmp_path / 'again'}"
    main(["--config-file", str(tmp_path / "run/config.yaml"), again])
    losses = [read_lines(tmp_path / n / "metrics.json", "total_loss") for n in ("run", "again")]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    run(cfg, tmp_path, "train.batch_size=auto", "train.max_iter=4", "--resume")
    assert (
        "train.batch_size=auto: 3, as in the run that goes on"
        in (tmp_path / "run/log.txt").read_text()
    )
    assert len(read_lines(tmp_path / "run/metrics.json", "total_loss")) == 4


def test_a_number_that_it_overrules_is_told(tmp_path: Path) -> None:
    overrides = ["train.batch_size=1", "dataloader.train.total_batch_size=3"]
    run(small(tmp_path), tmp_path, *overrides, "train.max_iter=1")
    log = (tmp_path / "run/log.txt").read_text()
    assert "total_batch_size=3 has no effect, because train.batch_size is 1, which wins" in log
