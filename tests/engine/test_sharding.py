# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""FSDP2: the numbers, the files and the predictions of a run in which each process has all weights.

The detectors are in double precision, see test_accumulation.
"""

import copy
import functools
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from torch import nn

from detrex_mammo.config import load_config
from detrex_mammo.engine.launch import World, launch
from detrex_mammo.engine.main import Job, main
from detrex_mammo.engine.sharding import check_sharding, clip_gradients, gathered, local, whole
from detrex_mammo.engine.trainer import Trainer
from detrex_mammo.engine.training import distribute
from detrex_mammo.errors import UserError
from tests.engine.small_detector import images, make_detector
from tests.engine.test_launch import DETECTOR
from tests.engine.tiny import TinyDetector, TinyMapper, read_lines, tiny_dataset, write_config
from tests.tiny_configs import write_coco

DDP = {"broadcast_buffers": False, "find_unused_parameters": False}
FSDP = {"reshard_after_forward": True}
SHARED_HEADS = "projects/deformable_detr/configs/deformable_detr_r50_50ep.py"


def train(model: nn.Module, items: list[dict], fsdp: dict | None, **settings) -> dict:
    """Ten steps; what is left of them in the main process."""
    rank, size = comm.get_rank(), comm.get_world_size()
    model = copy.deepcopy(model)
    for parameter in model.parameters() if rank else ():
        parameter.data += 1  # the weights of the main process count
    wrapped = distribute(model, "cpu", DDP, fsdp)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, fused=settings.pop("fused", True))
    own = items[rank::size]
    share = len(own) // 2 // settings.get("accumulate", 1)
    batches = [own[i : i + share] for i in range(0, len(own), share)]
    trainer = Trainer(wrapped, itertools.cycle(batches), optimizer, max_norm=0.1, **settings)
    trainer.train(0, 10)
    held = sum(local(p).numel() for p in trainable) / sum(p.numel() for p in trainable)
    state = trainer.state_dict()["optimizer"]["state"]
    model.eval()
    with whole(model), torch.no_grad():  # one process has an image, the other none
        seen = model(own[:1])[0] if rank == 0 else None
    history = trainer.storage.history
    return {
        "model": gathered(model.state_dict()),
        "moments": {str(i): entry.get("exp_avg") for i, entry in state.items()},
        "numbers": [[v for v, _ in history(n).values()] for n in ("total_loss", "grad_norm")],
        "scores": seen["instances"].scores if seen and "instances" in seen else None,
        "held": held,
    }


def cases(folder: Path) -> Iterator[tuple[str, nn.Module, list[dict], dict]]:
    """Name, model, images and settings of the trainer."""
    padded = images(equal=False)
    detector = make_detector(folder)
    detector.transformer.encoder.checkpointing = True
    for parameter in detector.backbone.res2.parameters():
        parameter.requires_grad = False
    yield "two_stage", detector, padded, {"accumulate": 2}
    yield "shared_heads", make_detector(folder, recipe=SHARED_HEADS), padded, {"norm_type": 1.0}
    torch.manual_seed(0)
    tiny, items = TinyDetector(width=7), [TinyMapper()(item) for item in tiny_dataset(8)]
    yield "tiny", tiny, items, {"norm_type": float("inf"), "fused": False}
    yield "tiny_fp16", tiny, items, {"amp_dtype": torch.float16, "accumulate": 2}


def train_all(folder: Path) -> None:
    torch.set_num_threads(1)
    for name, model, items, settings in cases(folder):
        found = [train(model, items, fsdp, **settings) for fsdp in (None, FSDP)]
        if comm.is_main_process():
            torch.save(found, folder / f"{name}.pth")


def test_ten_sharded_steps_equal_those_of_whole_models(tmp_path: Path) -> None:
    """On images of four sizes, with 3, 0, 1 and 5 boxes, in two processes."""
    launch(functools.partial(train_all, tmp_path), World(num_processes=2))
    bounds = {"two_stage": 1e-9, "shared_heads": 1e-9, "tiny": 1e-6, "tiny_fp16": 1e-5}
    for name, atol in bounds.items():
        expected, found = torch.load(tmp_path / f"{name}.pth", weights_only=True)
        close = functools.partial(torch.testing.assert_close, rtol=0, atol=atol)
        assert list(found["model"]) == list(expected["model"])  # the names of the files
        close(found["model"], expected["model"])
        close(found["moments"], expected["moments"], msg=name)
        assert found["numbers"] == [pytest.approx(n, rel=1e-5) for n in expected["numbers"]], name
        assert len(found["numbers"][0]) == 10
        if expected["scores"] is not None:
            close(found["scores"], expected["scores"])
        assert expected["held"] == 1.0
        assert found["held"] == pytest.approx(0.5, abs=0.1), name


def test_unsharded_gradients_are_clipped_as_torch_does() -> None:
    """Gradients 3 and 4 have the norm 5, so a limit of 1 makes 0.6 and 0.8 of them."""
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    for parameter, value in zip(parameters, (3.0, 4.0)):
        parameter.grad = torch.tensor([value])
    assert float(clip_gradients(parameters, 1.0)) == 5.0
    assert [float(p.grad) for p in parameters] == pytest.approx([0.6, 0.8], rel=1e-5)


@pytest.mark.parametrize(("name", "value"), [("compile", True), ("tensorboard_images", 2)])
def test_what_does_not_go_together_is_one_sentence(name: str, value) -> None:
    settings = {"fsdp": {"enabled": True}, name: value}
    with pytest.raises(UserError, match=f"train.{name} is {value} and train.fsdp.enabled True"):
        check_sharding(settings)


def test_one_process_has_nothing_to_share_out(monkeypatch, caplog) -> None:
    monkeypatch.setattr(logging.getLogger("detrex_mammo"), "propagate", True)
    settings = load_config("projects/mammography/configs/demo.py").train
    assert not check_sharding(settings)
    settings.fsdp.enabled = True
    assert not check_sharding(settings)
    assert "no effect with one process" in caplog.text


SHARDED = "train.fsdp.enabled=True"
COMMON = ("train.ema.enabled=True", "train.ema.warmup=2", "train.best.metric=ema/tiny/error")


def run_all(config: str, folder: Path, plan: list[tuple[str, ...]]) -> None:
    """Runs one after the other in the same processes: each a folder's name and its overrides."""
    torch.set_num_threads(1)
    for name, *more in plan:
        resume = (folder / name).exists()
        comm.synchronize()  # all have looked
        place = f"train.output_dir={folder / name}"
        try:
            Job(config, (place, *COMMON, *more), resume=resume)()
        except UserError as error:
            (folder / f"{name}.txt").write_text(str(error))


def run(config: str, folder: Path, processes: int, *plan: tuple[str, ...]) -> None:
    job = functools.partial(run_all, config, folder, list(plan))
    launch(job, World(num_processes=processes))


@pytest.mark.slow
def test_a_run_goes_on_sharded_or_not(tmp_path: Path) -> None:
    """Checkpoints are the same, so each of these runs has the same losses and files."""
    config, half = write_config(tmp_path), "train.max_iter=4"
    run(config, tmp_path, 2, ("whole",), ("sharded", SHARDED), ("a", SHARDED, half), ("a",),
        ("b", half), ("b", SHARDED), ("c", SHARDED, half), ("d", SHARDED, half))  # fmt: skip
    run(config, tmp_path, 1, ("c",))
    run(config, tmp_path, 4, ("d", SHARDED))
    for name in ("sharded", "a", "b", "c", "d"):
        for key in ("total_loss", "grad_norm", "tiny/error", "ema/tiny/error"):
            wanted = read_lines(tmp_path / "whole/metrics.json", key)
            found = read_lines(tmp_path / name / "metrics.json", key)
            if key == "total_loss":
                assert len(found) == len(wanted) == 9
            assert found[-1] == pytest.approx(wanted[-1], rel=1e-4), (name, key)
            if "tiny" not in key:  # a run that stops is evaluated there
                assert found == pytest.approx(wanted, rel=1e-4), (name, key)
        files = [tmp_path / run / "model_final.pth" for run in ("whole", name)]
        one, other = (torch.load(file, weights_only=True) for file in files)
        assert list(one) == list(other) and list(one["model"]) == list(other["model"])
        close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-5)
        close(other["model"], one["model"])
        close(other["ema"]["model"], one["ema"]["model"])
        states = [content["trainer"]["optimizer"]["state"] for content in (one, other)]
        torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-4)
    best = [torch.load(tmp_path / r / "model_best.pth", weights_only=True) for r in "ab"]
    torch.testing.assert_close(best[0]["model"], best[1]["model"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_sharded_nan_is_dumped_whole(tmp_path: Path) -> None:
    nan, skip = "model.nan_at=4", "train.nan.policy=skip"
    run(write_config(tmp_path), tmp_path, 2, ("skipped", SHARDED, nan, skip), ("run", SHARDED, nan))
    assert "stopped at step 4 before the weights were" in (tmp_path / "run.txt").read_text()
    state = torch.load(tmp_path / "run/nan_step_4/state.pth", weights_only=True)["model"]
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        name: tuple(value.shape) for name, value in TinyDetector().state_dict().items()
    }
    assert len(read_lines(tmp_path / "skipped/metrics.json", "total_loss")) == 8


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_five_images_are_evaluated_by_sharded_processes(tmp_path: Path, processes: int) -> None:
    """Of four processes one has two images, the others one; alone, one has all five."""
    data = write_coco(tmp_path, num_images=5)
    config = tmp_path / "config.py"
    config.write_text(DETECTOR.format(json=data, output=tmp_path / "none"))
    more = ["train.max_iter=2", "train.eval_loss=True", SHARDED]
    run = tmp_path / "run"
    main(["--config-file", str(config), "--num-gpus", str(processes),
          f"train.output_dir={run}", *more])  # fmt: skip
    main(["--config-file", str(config), "--eval-only", f"train.output_dir={tmp_path / 'alone'}",
          "train.eval_loss=True", f"train.init_checkpoint={run / 'model_final.pth'}"])  # fmt: skip
    name = "inference/coco_instances_results.json"
    found, alone = (
        json.loads((folder / name).read_text()) for folder in (run, tmp_path / "alone/eval")
    )
    assert len(found) == len(alone) > 5
    assert [record["image_id"] for record in found] == [record["image_id"] for record in alone]
    for one, other in zip(found, alone):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    loss = json.loads((tmp_path / "alone/eval/metrics.json").read_text())["val/loss"]
    assert read_lines(run / "metrics.json", "val/loss") == [pytest.approx(loss, rel=1e-4)]
