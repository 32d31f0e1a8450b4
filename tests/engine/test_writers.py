# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Optional writers, by stand-ins for the packages; pictures in TensorBoard."""

import importlib.machinery
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances

from detrex_mammo.config import load_config
from detrex_mammo.engine import writers
from detrex_mammo.engine.main import main
from detrex_mammo.engine.pictures import picture_of
from detrex_mammo.errors import UserError
from tests.engine.tiny import read_lines, write_config


class Fake(ModuleType):
    """A package that remembers what it is asked, or fails at it."""

    error: type[BaseException] = ConnectionError

    def __init__(self, name: str, fails_at: str = ""):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.calls: list[tuple[str, tuple, dict]] = []
        self.fails_at = fails_at

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **more: Any) -> "Fake":
            self.calls.append((name, args, more))
            if name == self.fails_at:
                raise self.error("no route to\nthe server")
            return self

        return call

    def named(self, name: str) -> list[tuple[tuple, dict]]:
        return [(args, more) for called, args, more in self.calls if called == name]


def call(config: str, *arguments: str) -> None:
    main(["--config-file", config, *arguments])


def test_weights_and_biases_gets_every_number(tmp_path: Path, monkeypatch) -> None:
    fake = Fake("wandb")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    call(write_config(tmp_path), "train.writers=[{wandb: {project: mammo}}]", "train.max_iter=3")
    ((_, start),) = fake.named("init")
    assert start["project"] == "mammo" and start["name"] == "run"
    assert start["config"]["train"]["max_iter"] == 3
    sent: dict[int, dict[str, float]] = {}
    for (numbers,), more in fake.named("log"):
        sent.setdefault(more["step"], {}).update(numbers)
    assert sorted(sent) == [0, 1, 2] or sorted(sent) == [0, 1, 2, 3]
    losses = [sent[step]["total_loss"] for step in range(3)]
    metrics = tmp_path / "run/metrics.json"
    assert losses == pytest.approx(read_lines(metrics, "total_loss"), rel=1e-6)
    errors = [numbers["tiny/error"] for numbers in sent.values() if "tiny/error" in numbers]
    assert errors == pytest.approx(read_lines(metrics, "tiny/error"))
    assert len(fake.named("finish")) == 1


def test_mlflow_gets_plain_names(tmp_path: Path, monkeypatch) -> None:
    fake = Fake("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    options = "{tracking_uri: 'file:x', experiment: mine}"
    call(write_config(tmp_path), f"train.writers=[{{mlflow: {options}}}]", "train.max_iter=2")
    assert fake.named("set_tracking_uri")[0][0] == ("file:x",)
    assert fake.named("set_experiment")[0][0] == ("mine",)
    assert fake.named("start_run")[0][1] == {"run_name": "run"}
    assert any("tiny/error" in args[0] for args, _ in fake.named("log_metrics"))
    assert len(fake.named("end_run")) == 1
    assert writers._plain_name("sens@0.25/a b") == "sens_0.25/a b"


@pytest.mark.parametrize("fails_at", ["init", "log", "finish"])
def test_an_error_is_told_once_and_breaks_nothing(tmp_path: Path, monkeypatch, fails_at) -> None:
    fake = Fake("wandb", fails_at)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    call(write_config(tmp_path), "train.writers=[wandb]")
    run = tmp_path / "run"
    assert (run / "model_final.pth").is_file()
    assert len(read_lines(run / "metrics.json", "total_loss")) == 9
    log = (run / "log.txt").read_text()
    assert log.count("wandb fails") == 1 and len(fake.named("init")) == 1
    assert "the run goes on: ConnectionError: no route to the server" in log


def test_a_package_that_would_leave_does_not_take_the_run_along(tmp_path, monkeypatch) -> None:
    fake = Fake("wandb", "init")
    fake.error = SystemExit
    monkeypatch.setitem(sys.modules, "wandb", fake)
    call(write_config(tmp_path), "train.writers=[wandb]")
    assert "the run goes on: SystemExit: no route" in (tmp_path / "run/log.txt").read_text()


@pytest.mark.parametrize("hangs_at", ["init", "log", "finish"])
def test_a_server_that_does_not_answer_does_not_hold_up_the_run(
    tmp_path: Path, monkeypatch, hangs_at: str
) -> None:
    """It hangs until the test is over; two steps may wait for it."""
    fake, over = Fake("wandb"), threading.Event()
    fake.__dict__[hangs_at] = lambda *args, **more: over.wait(120)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(writers, "MOST_WAITING", 2 if hangs_at == "log" else 1000)
    monkeypatch.setattr(writers, "CLOSE_SECONDS", 0.3)
    try:
        call(write_config(tmp_path), "train.writers=[wandb]")
        log = (tmp_path / "run/log.txt").read_text()
        assert not over.is_set() and log.count("wandb fails, the run goes on: ") == 1
        told = "2 steps wait" if hangs_at == "log" else "has not taken everything within 0.3 s"
        assert told in log and (tmp_path / "run/model_final.pth").is_file()
    finally:
        over.set()


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("[wandb]", "whose package is not installed: pip install wandb"),
        ("[wandbb]", "'wandbb', which is no writer: give wandb"),
        ("[7]", "has the entry 7"),
        ("[{wandb: 1}]", "give a name, or one name with its options"),
    ],
)
def test_a_wrong_entry_is_one_sentence(tmp_path: Path, monkeypatch, entry: str, told: str) -> None:
    monkeypatch.setattr(writers, "find_spec", lambda name: None)
    cfg = load_config(write_config(tmp_path), [f"train.writers={entry}"])
    with pytest.raises(UserError, match=told.replace("(", r"\(")):
        writers.optional_writers(cfg, tmp_path)


def test_number_of_pictures_is_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.tensorboard_images is -1"):
        call(write_config(tmp_path), "train.tensorboard_images=-1")


def test_pictures_that_cannot_be_drawn_do_not_break_a_run(tmp_path: Path) -> None:
    """The tiny detector predicts no boxes."""
    call(write_config(tmp_path), "train.tensorboard_images=1")
    log = (tmp_path / "run/log.txt").read_text()
    assert log.count("train.tensorboard_images: no pictures from here on") == 1
    assert (tmp_path / "run/model_final.pth").is_file()


def test_pictures_are_in_tensorboard(configs, tmp_path: Path, monkeypatch) -> None:
    """Two images at one evaluation, by a real, tiny detector."""
    from detectron2.utils.events import EventStorage

    put: list[tuple[str, torch.Tensor]] = []
    monkeypatch.setattr(EventStorage, "put_image", lambda self, *image: put.append(image))
    call(configs["refine"], f"train.output_dir={tmp_path}/run", "train.tensorboard_images=2")
    assert [name for name, _ in put] == ["predictions/0", "predictions/1"]
    assert all(image.shape[0] == 3 and image.dtype == torch.uint8 for _, image in put)
    assert "no pictures" not in (tmp_path / "run/log.txt").read_text()


def test_boxes_are_drawn_where_they_are() -> None:
    """A box in the pixels of a 40x40 original, on an image that was resized to 80x80."""
    item = {"image": torch.full((3, 80, 80), 90.0), "height": 40, "width": 40}
    output = Instances((40, 40))
    output.pred_boxes = Boxes(torch.tensor([[10.0, 10.0, 20.0, 20.0]]))
    output.scores, output.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    half = picture_of(item, output, ["mass"])
    output.pred_boxes = Boxes(torch.tensor([[20.0, 20.0, 40.0, 40.0]]))
    output._image_size = (80, 80)
    whole = picture_of(item, output, ["mass"])
    assert half.dtype.name == "uint8" and (half == whole).all()
    output.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 40.0, 40.0]]))
    assert (picture_of(item, output, ["mass"]) != whole).any()
