# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Images that cannot be read, and processes that load them and die."""

import logging
import shutil
from multiprocessing import connection, resource_sharer
from pathlib import Path
from unittest.mock import Mock

import pytest
from detectron2.config import LazyCall
from detectron2.data import build_detection_test_loader

from detrex_mammo.data.loader import build_train_loader
from detrex_mammo.engine.failures import told_in_a_sentence
from detrex_mammo.engine.hooks import LearningRate
from detrex_mammo.engine.loaders import build_test_loader
from detrex_mammo.errors import UserError
from tests.engine.faults import faulty_config, run
from tests.engine.tiny import TinyMapper, read_lines, tiny_dataset, write_config

SKIP = ["dataloader.train.mapper.unreadable=[3,7]", "dataloader.train.on_error=skip"]


@pytest.fixture
def propagates(monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("detrex_mammo"), "propagate", True)


def test_unreadable_image_ends_the_run_by_default(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^image_[37].png is damaged$"):
        run(faulty_config(tmp_path), SKIP[0])


def test_skipped_images_are_replaced_alike_with_workers_and_after_a_resume(tmp_path: Path) -> None:
    """And counted once each, however often they come."""
    config = faulty_config(tmp_path)
    noise = "dataloader.train.mapper.noise=0.5"
    losses = {}
    for workers in (0, 2):
        output = tmp_path / f"workers_{workers}"
        run(config, *SKIP, noise, f"train.output_dir={output}",
            f"dataloader.train.num_workers={workers}")  # fmt: skip
        losses[workers] = read_lines(output / "metrics.json", "total_loss")
        log = (output / "log.txt").read_text()
        assert log.count("images skipped") == 2
        assert "1 of at most 10 images skipped: image_" in log
        assert "2 of at most 10 images skipped: image_" in log
    assert len(losses[0]) == 9 and losses[0] == losses[2]
    output = f"train.output_dir={tmp_path / 'stopped'}"
    run(config, *SKIP, noise, output, "train.max_iter=4")
    run(config, *SKIP, noise, output, "--resume")
    assert read_lines(tmp_path / "stopped/metrics.json", "total_loss") == losses[0]


def test_every_place_in_a_batch_is_filled(tmp_path: Path) -> None:
    """By images of the data set that can be read; the others are seen as they would have been."""
    from detrex_mammo.data.loader import SKIPPED, SeededMap
    from tests.engine.faults import FaultyMapper

    seeded = SeededMap(tiny_dataset(12), FaultyMapper((3, 7), noise=0.5), skips=True)
    plain = SeededMap(tiny_dataset(12), FaultyMapper(noise=0.5))
    for seed in range(20):
        item = seeded[3, seed]
        assert item["image_id"] not in (3, 7)
        assert item["image"].equal(plain[item["image_id"], seed]["image"])
        assert item[SKIPPED][0] == (3, "image_3.png is damaged")
        assert seeded[3, seed]["image_id"] == item["image_id"]
        assert SKIPPED not in seeded[4, seed]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["dataloader.train.error_limit=1"], "2 training images cannot be read, more than .*=1"),
        (["dataloader.train.on_error=ignore"], "dataloader.train.on_error is 'ignore'"),
        (["dataloader.train.error_limit=-1"], "dataloader.train.error_limit is -1"),
        (
            ["dataloader.train.mapper.unreadable=[0,1,2,3,4,5,6,7,8,9,10,11]"],
            "20 training images in a row cannot be read; the last is image_",
        ),
    ],
)
def test_limit_and_wrong_settings_are_one_sentence(arguments, expected, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        run(faulty_config(tmp_path), *SKIP, *arguments)
    assert "\n" not in str(caught.value)


def test_worker_that_dies_while_it_hands_over_a_batch_is_one_sentence(monkeypatch) -> None:
    """As multiprocessing sees it where nobody is behind the address any more."""
    monkeypatch.setattr(connection, "Client", Mock(side_effect=ConnectionResetError(104, "")))
    with pytest.raises(UserError, match="a process that loads images has died"):
        with told_in_a_sentence(Path("run")):
            resource_sharer._ResourceSharer.get_connection(("address", 1))
    with pytest.raises(ConnectionResetError), told_in_a_sentence(Path("run")):
        raise ConnectionResetError(104, "of a server, say")


def test_dead_worker_is_one_sentence_and_the_run_goes_on_from_its_checkpoint(
    tmp_path: Path,
) -> None:
    config = faulty_config(tmp_path)
    output = f"train.output_dir={tmp_path / 'whole'}"
    run(config, output)
    run(config, "train.max_iter=3")
    with pytest.raises(UserError, match=r"loads images (\(pid \d+\) was killed|.*has died)"):
        run(config, "--resume", "dataloader.train.num_workers=1",
            "dataloader.train.mapper.die_at=2")  # fmt: skip
    run(config, "--resume", "dataloader.train.num_workers=1")
    expected = read_lines(tmp_path / "whole/metrics.json", "total_loss")
    assert read_lines(tmp_path / "run/metrics.json", "total_loss") == expected


class Refusing:
    """Cannot go to another process, as where /dev/shm is full."""

    def __reduce__(self):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("kind", ["train", "test"])
def test_batch_that_cannot_be_handed_over_is_one_sentence(kind: str) -> None:
    """Python drops it; the process that trains would wait without end."""
    settings = dict(dataset=tiny_dataset(4), mapper=lambda item: Refusing(), num_workers=1)
    if kind == "train":
        loader = build_train_loader(total_batch_size=2, **settings)
    else:
        loader = build_test_loader(LazyCall(lambda: build_detection_test_loader(**settings))())
    loader.timeout = 30
    with pytest.raises(UserError, match="process that loads images .* /dev/shm is full"):
        with told_in_a_sentence(Path("run")):
            next(iter(loader))


@pytest.mark.parametrize("step", [1, 4])
def test_folder_that_is_removed_is_one_sentence(step: int, tmp_path: Path, monkeypatch) -> None:
    before = LearningRate.before_step

    def remove(hook: LearningRate) -> None:
        if hook.trainer.iter == step:
            shutil.rmtree(tmp_path / "run")
        before(hook)

    monkeypatch.setattr(LearningRate, "before_step", remove)
    with pytest.raises(UserError, match=r"run.* \(No such file or directory\)"):
        run(faulty_config(tmp_path))


def test_lost_disk_is_one_sentence(tmp_path: Path) -> None:
    name = str(tmp_path / "run/a.json")
    for error in (
        OSError(30, "Read-only file system"),
        PermissionError(13, "denied", name.encode()),
        IsADirectoryError(21, "Is a directory", name),
        FileNotFoundError(2, "No such file", name),  # nor is there the folder
    ):
        with pytest.raises(UserError, match="cannot be read or written any more"):
            with told_in_a_sentence(tmp_path / "run"):
                raise error


def test_bug_about_files_keeps_its_traceback(tmp_path: Path) -> None:
    """Somebody's own code that opens what is not there has not lost a disk."""
    for error in (
        PermissionError(13, "of a socket, say"),
        PermissionError(13, "denied", str(tmp_path.parent / "other.json")),
        FileNotFoundError(2, "No such file", "no/such/table.csv"),
        FileNotFoundError(2, "No such file", str(tmp_path / "run.csv")),  # the folder is there
    ):
        with pytest.raises(type(error)), told_in_a_sentence(tmp_path):
            raise error


class OpensNothing(TinyMapper):
    """Reads a table that is not there."""

    def __call__(self, item: dict) -> dict:
        Path("no/such/table.csv").read_text()
        return super().__call__(item)


def test_bug_of_a_mapper_is_not_a_lost_disk(tmp_path: Path) -> None:
    mapper = f"dataloader.train.mapper._target_={__name__}.OpensNothing"
    config = write_config(tmp_path)
    with pytest.raises(FileNotFoundError, match="table.csv"):
        run(config, mapper)
