# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""An evaluation shows how far it is, and a signal ends it; the resumed run makes it again."""

import functools
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import nn

from detrex_mammo import progress
from detrex_mammo.engine import interruption
from detrex_mammo.engine.dry_run import _trial_folder
from detrex_mammo.engine.evaluation_loop import run_evaluator
from detrex_mammo.engine.interruption import Interrupted, Signals
from detrex_mammo.engine.launch import World, launch
from detrex_mammo.engine.status import read_status
from detrex_mammo.errors import UserError
from tests.engine import tiny
from tests.engine.faults import exit_code, run, start
from tests.engine.test_interruption import assert_same_run
from tests.engine.tiny import TinyDetector, TinyEvaluator, write_config

SLOW = ["train.ema.enabled=True", "train.eval_loss=True", "train.checkpointer.period_epochs=0"]


def send(rank: int) -> None:
    """A signal to this process, if it is the one."""
    if comm.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGTERM)


class SignalledDetector(TinyDetector):
    """Gets a signal while its validation losses are computed for the n-th time.

    Args:
        loss_at: that time, counted in evaluations; -1 for never.
        width, nan_at: see there.
    """

    def __init__(self, loss_at: int = -1, width: int = 8, nan_at: int = -1):
        super().__init__(width, nan_at)
        self.loss_at, self.losses = loss_at, 0

    def forward(self, batch: list[dict]):
        if self.training and not torch.is_grad_enabled():
            if self.losses == 5 * self.loss_at + 2:  # the third of five images
                send(comm.get_world_size() - 1)
            self.losses += 1
        return super().forward(batch)


class SignalledEvaluator(TinyEvaluator):
    """Gets a signal at an image, or while it scores.

    Args:
        output_dir: see there.
        image_at: evaluations before, times 100, plus the images before; -1 for never.
        score_at: evaluations before; -1 for never.
        rank: of the process that gets it.
        seconds: that an image takes.
    """

    def __init__(
        self,
        output_dir: str,
        image_at: int = -1,
        score_at: int = -1,
        rank: int = 0,
        seconds: float = 0,
    ):
        super().__init__(output_dir)
        self.image_at, self.score_at, self.rank = image_at, score_at, rank
        self.seconds, self.evaluations = seconds, -1

    def reset(self) -> None:
        super().reset()
        self.evaluations += 1

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        if 100 * self.evaluations + len(self.errors) == self.image_at:
            send(self.rank)
        time.sleep(self.seconds)
        assert len(self.errors) < 500, "the evaluation goes on"
        super().process(inputs, outputs)

    def evaluate(self) -> dict:
        found = super().evaluate()
        if self.evaluations == self.score_at and comm.get_rank() == self.rank:
            time.sleep(0.5 * (comm.get_world_size() > 1))  # the others have come to wait
            send(self.rank)
            time.sleep(30)
            raise AssertionError("scoring goes on")
        return found


def signalled_config(folder: Path, *, images: int = 5) -> str:
    path = Path(write_config(folder))
    text = path.read_text().replace("TinyDetector)(", "SignalledDetector)(")
    text = text.replace("(TinyEvaluator)", "(SignalledEvaluator)")
    text = text.replace("num_images=5", f"num_images={images}")
    here = "from tests.engine.test_evaluation_loop import SignalledDetector, SignalledEvaluator\n"
    path.write_text(here + text)
    return str(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of 9 steps and 3 evaluations, each of the average and of the weights."""
    folder = tmp_path_factory.mktemp("whole")
    run(signalled_config(folder), *SLOW)
    return folder / "run"


@pytest.mark.parametrize(
    ("place", "step"),
    [
        ("dataloader.evaluator.image_at=2", 2),  # in the first evaluation, of the average
        ("dataloader.evaluator.image_at=302", 5),  # in the second, of the weights themselves
        ("dataloader.evaluator.score_at=2", 5),
        ("dataloader.evaluator.score_at=4", 8),  # after the last step, which is saved
        ("model.loss_at=2", 5),
    ],
)
def test_a_signal_ends_an_evaluation_and_nothing_is_lost(
    place: str, step: int, whole: Path, tmp_path: Path
) -> None:
    """No checkpoint is due before the end: the step before the evaluation is saved on leaving."""
    config, folder = signalled_config(tmp_path), tmp_path / "run"
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as ended:
        run(config, *SLOW, place)
    assert ended.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    saved = "model_final" if step == 8 else f"model_{step:07d}"
    assert [path.stem for path in folder.glob("model_*.pth")] == [saved]
    last = read_status(folder / "status.json")[-1]
    assert (last["status"], last["exit_code"]) == ("INTERRUPTED", 143)
    assert "--resume makes it again" in (folder / "log.txt").read_text()
    run(config, *SLOW, "--resume")
    assert_same_run(folder, whole)


def test_a_signal_in_the_evaluation_that_a_resumed_run_owes(whole: Path, tmp_path: Path) -> None:
    """Left twice in a row: there is nothing new to save."""
    config, folder = signalled_config(tmp_path), tmp_path / "run"
    for more in ([], ["--resume"]):
        with pytest.raises(Interrupted):
            run(config, *SLOW, "dataloader.evaluator.image_at=2", *more)
        assert [path.name for path in folder.glob("model_*.pth")] == ["model_0000002.pth"]
    run(config, *SLOW, "--resume")
    assert_same_run(folder, whole)


@pytest.mark.parametrize(
    "place", ["dataloader.evaluator.image_at=1", "dataloader.evaluator.score_at=0"]
)
def test_an_evaluation_alone_leaves_no_numbers(place: str, tmp_path: Path) -> None:
    config = signalled_config(tmp_path)
    with pytest.raises(Interrupted) as ended:
        run(config, "--eval-only", place)
    folder = tmp_path / "run/eval"
    assert ended.value.code == 143 and not (folder / "metrics.json").exists()
    assert read_status(folder / "status.json")[-1]["exit_code"] == 143


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_one_of_two_processes_is_signalled_at_an_image(rank: int, tmp_path: Path) -> None:
    """Two thousand images of 0.05 s: the evaluator refuses to see 500 of its 1000."""
    config = signalled_config(tmp_path, images=2000)
    with pytest.raises(SystemExit) as ended:
        run(config, "--num-gpus", "2", "dataloader.evaluator.image_at=3",
            "dataloader.evaluator.seconds=0.05", f"dataloader.evaluator.rank={rank}",
            "train.checkpointer.period_epochs=0")  # fmt: skip
    assert ended.value.code == 143
    assert [path.name for path in (tmp_path / "run").glob("model_*")] == ["model_0000002.pth"]
    assert read_status(tmp_path / "run/status.json")[-1]["exit_code"] == 143


@pytest.mark.slow
def test_the_main_of_two_processes_is_signalled_while_it_scores(tmp_path: Path) -> None:
    config = signalled_config(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(config, "--num-gpus", "2", "dataloader.evaluator.score_at=0")
    assert ended.value.code == 143
    assert (tmp_path / "run/model_0000002.pth").exists()


def test_the_log_has_a_line_now_and_then(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    run(write_config(tmp_path), "--eval-only", "train.eval_loss=True")
    log = (tmp_path / "run/eval/log.txt").read_text()
    assert "evaluation: 3 of 5 images in 00:00, " in log and " images/s, 00:00 left" in log
    assert "validation loss: 5 of 5 images" in log
    assert "Start inference on 5 batches" in log and "Inference done" not in log
    out, err = capsys.readouterr()
    assert "evaluation: 5 of 5 images" in out and err == ""


@pytest.mark.parametrize("flags", [[], ["--dry-run"], ["--eval-only"]])
def test_before_training_a_signal_ends_the_run_at_once(
    flags: list[str], tmp_path: Path, monkeypatch
) -> None:
    """While the data are read; of a dry run nothing is left."""

    def slow(num_images: int) -> list[dict]:
        send(0)
        time.sleep(60)
        raise AssertionError("the run goes on")

    monkeypatch.setattr(tiny, "tiny_dataset", slow)
    assert exit_code(start(write_config(tmp_path), *flags)) == 143
    left = sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".py")
    assert left == ([] if flags == ["--dry-run"] else ["run"])
    for path in tmp_path.rglob("status.json"):
        assert json.loads(path.read_text().splitlines()[-1])["exit_code"] == 143


def test_a_second_signal_does_not_disturb_the_leaving(tmp_path: Path) -> None:
    finished = []
    with pytest.raises(Interrupted), Signals(at_once=True), _trial_folder(tmp_path / "a"):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGUSR1)
            finished.append(True)
    assert finished and list(tmp_path.iterdir()) == []


def test_a_forked_process_does_nothing_about_it() -> None:
    with Signals(at_once=True):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert interruption.current().received == 0


class NanModel(nn.Module):
    """Says NaN of one image's scores or boxes.

    Args:
        bad: number of the image.
        field: of the detections.
    """

    def __init__(self, bad: int, field: str):
        super().__init__()
        self.bad, self.field = bad, field

    def forward(self, batch: list[dict]) -> list[dict]:
        return [{"instances": self.detect(item["image_id"])} for item in batch]

    def detect(self, number: int) -> Instances:
        values = {"scores": torch.ones(2), "pred_boxes": torch.ones(2, 4)}
        if number == self.bad:
            values[self.field][1] = torch.nan
        boxes = Boxes(values["pred_boxes"])
        return Instances((8, 8), scores=values["scores"], pred_boxes=boxes)


def evaluate_nan(folder: Path, bad: int, field: str) -> None:
    """Each process has two images; what it ends with goes into a file."""
    rank = comm.get_rank()
    loader = [[{"image_id": 2 * rank + i, "file_name": f"{2 * rank + i}.png"}] for i in range(2)]
    evaluator = DatasetEvaluators([])
    try:
        run_evaluator(NanModel(bad, field), loader, evaluator)
        (folder / f"{rank}").write_text("scored")
    except UserError as error:
        (folder / f"{rank}").write_text(str(error))


@pytest.mark.parametrize("field", ["scores", "pred_boxes"])
def test_nan_is_not_scored(field: str, tmp_path: Path) -> None:
    evaluate_nan(tmp_path, 1, field)
    assert "the image '1.png' is not finite and cannot be scored" in (tmp_path / "0").read_text()
    evaluate_nan(tmp_path, 5, field)
    assert (tmp_path / "0").read_text() == "scored"


def test_boxes_of_another_form_are_scored() -> None:
    """Of somebody's own model and evaluator: boxes in a tensor, scores in a list, no names."""
    model, seen = nn.Identity(), []
    found = {"instances": Instances((8, 8), scores=[1.0], pred_boxes=torch.ones(1, 4))}
    model.forward = lambda batch: [found]
    evaluator = DatasetEvaluator()
    evaluator.process = lambda inputs, outputs: seen.extend(outputs)
    run_evaluator(model, [[{"file_name": "", "image_id": 7}]], evaluator)
    assert seen == [found]
    found["instances"].pred_boxes[0, 0] = torch.nan
    with pytest.raises(UserError, match="the image '7' is not finite"):
        run_evaluator(model, [[{"file_name": "", "image_id": 7}]], evaluator)


def test_nan_in_one_process_is_known_to_all(tmp_path: Path) -> None:
    job = functools.partial(evaluate_nan, tmp_path, 3, "scores")
    launch(job, World(num_processes=2))
    for rank in range(2):
        assert "the image '3.png' is not finite" in (tmp_path / f"{rank}").read_text()
