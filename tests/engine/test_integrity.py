# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Checkpoints on a disk that fails: damaged, cut short, missing, full."""

import errno
import hashlib
import logging
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from detrex_mammo.engine.checkpointer import RunCheckpointer
from detrex_mammo.engine.integrity import CheckedFolder
from detrex_mammo.errors import UserError
from tests.engine.faults import exit_code, run, start
from tests.engine.tiny import TinyDetector, read_lines, write_config

NAMES = ["model_0000001.pth", "model_0000003.pth", "model_0000005.pth"]


def saver(folder: Path, width: int = 8) -> RunCheckpointer:
    return RunCheckpointer(TinyDetector(width=width), str(folder))


def write(folder: Path) -> None:
    """Three checkpoints, after steps 1, 3 and 5."""
    checkpointer = saver(folder)
    for step in (1, 3, 5):
        checkpointer.save(f"model_{step:07d}", iteration=step)


def flip(path: Path) -> None:
    """Change one bit of a weight, which torch.load does not notice."""
    content = bytearray(path.read_bytes())
    weights = torch.load(path, weights_only=True)["model"]["head.weight"].numpy().tobytes()
    content[content.index(weights)] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_checksums_are_those_of_the_files_as_sha256sum_reads_them(tmp_path: Path) -> None:
    write(tmp_path)
    lines = (tmp_path / "checkpoints.sha256").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == NAMES
    for line in lines:
        digest, name = line.split("  ")
        assert digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("damage", [flip, cut, empty, Path.unlink])
def test_damaged_newest_falls_back_with_a_warning_that_names_both(
    damage, tmp_path: Path, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(logging.getLogger("detrex_mammo"), "propagate", True)
    write(tmp_path)
    damage(tmp_path / NAMES[2])
    checkpointer = saver(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert checkpointer.newest()["iteration"] == 3
    assert NAMES[2] in caplog.text and f"the one before, '{NAMES[1]}'" in caplog.text
    assert (tmp_path / "last_checkpoint").read_text() == NAMES[1]
    assert (tmp_path / f"{NAMES[2]}.damaged").exists() == (damage is not Path.unlink)
    checkpointer.restore(checkpointer.newest())


def test_two_damaged_ones_fall_back_by_two_and_all_are_one_sentence(tmp_path: Path) -> None:
    write(tmp_path)
    cut(tmp_path / NAMES[2]), flip(tmp_path / NAMES[1])
    assert saver(tmp_path).newest()["iteration"] == 1
    write(tmp_path)
    for name in NAMES:
        cut(tmp_path / name)
    with pytest.raises(UserError, match="no whole checkpoint to resume from") as caught:
        saver(tmp_path).newest()
    assert "\n" not in str(caught.value)
    assert all((tmp_path / name).exists() for name in NAMES)  # nothing is touched


def test_files_of_before_there_were_checksums_are_read(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "checkpoints.sha256").unlink()
    assert saver(tmp_path).newest()["iteration"] == 5
    cut(tmp_path / NAMES[2])
    assert saver(tmp_path).newest()["iteration"] == 3


def test_keeping_one_keeps_the_one_to_fall_back_on(tmp_path: Path) -> None:
    checkpointer = saver(tmp_path)
    for step in (1, 3, 5, 7):
        checkpointer.save(f"model_{step:07d}", iteration=step)
        checkpointer.keep_newest(1)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [NAMES[2], "model_0000007.pth"]
    assert list(CheckedFolder(tmp_path).sums()) == [NAMES[2], "model_0000007.pth"]


def test_kept_are_those_written_last_not_those_of_the_highest_step(tmp_path: Path) -> None:
    """Gone back to step 3 by hand, a run writes 4, then 5 again: 3 is what 4 would fall back on."""
    write(tmp_path)
    checkpointer = saver(tmp_path)
    checkpointer.save("model_0000004", iteration=4)
    checkpointer.keep_newest(2)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["model_0000004.pth", NAMES[2]]


@pytest.mark.parametrize("moment", ["rename", "list"])
def test_kill_between_file_and_checksum_leaves_a_whole_one(
    moment: str, tmp_path: Path, monkeypatch
) -> None:
    """model_final.pth is replaced by another; whichever is there then, its checksum is known."""
    saver(tmp_path).save("model_final", iteration=1)
    replace, target = os.replace, tmp_path / "model_final.pth"

    def killed(source, destination) -> None:
        if Path(destination) == target:
            if moment == "list":
                replace(source, destination)
            raise KeyboardInterrupt
        replace(source, destination)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        saver(tmp_path).save("model_final", iteration=2)
    monkeypatch.undo()
    assert saver(tmp_path).newest()["iteration"] == (1 if moment == "rename" else 2)
    assert not list(tmp_path.glob("*.partial"))


def test_disk_full_is_one_sentence_and_the_earlier_file_stays(tmp_path: Path, monkeypatch) -> None:
    saver(tmp_path).save("model_0000001", iteration=1)

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left.*'model_0000001.pth' is whole"):
        saver(tmp_path).save("model_0000003", iteration=3)
    monkeypatch.undo()
    assert saver(tmp_path).newest()["iteration"] == 1
    assert not list(tmp_path.glob("*.partial"))  # its room is free again


def test_write_that_the_system_refuses_half_way_is_the_same_sentence(tmp_path: Path) -> None:
    """A limit on the size of files, which torch tells as a position in an archive."""
    saver(tmp_path).save("model_0000001", iteration=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written .*\(File too large\)"):
            saver(tmp_path, width=2000).save("model_0000003", iteration=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert saver(tmp_path).newest()["iteration"] == 1


def test_run_on_a_full_disk_ends_with_code_2_and_goes_on_with_room(tmp_path: Path) -> None:
    """No file may become larger than 4 KB after the first steps: a process of its own."""
    config = write_config(tmp_path)
    run(config, "train.max_iter=3")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        child = start(config, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert exit_code(child) == 2
    run(config, "--resume")
    assert len(read_lines(tmp_path / "run/metrics.json", "total_loss")) == 9


def test_resume_from_the_one_before_repeats_the_run(tmp_path: Path) -> None:
    """Steps that were done after it are done again, and stand in metrics.json once."""
    config = write_config(tmp_path)
    run(config, "model.dropout=0.1")
    whole = (tmp_path / "run/metrics.json").read_text().splitlines()
    expected = read_lines(tmp_path / "run/metrics.json", "total_loss")
    flip(tmp_path / "run/model_final.pth")
    run(config, "--resume", "model.dropout=0.1")
    assert read_lines(tmp_path / "run/metrics.json", "total_loss") == expected
    assert len((tmp_path / "run/metrics.json").read_text().splitlines()) == len(whole)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_text("")


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.pth")


@pytest.mark.parametrize("put", [folder, dangling])
def test_what_takes_a_checkpoint_s_place_is_set_aside(put, tmp_path: Path) -> None:
    """A run goes on from the one before, and writes the file again where it was."""
    config = write_config(tmp_path)
    settings = ["train.checkpointer.period_epochs=0.34", "train.max_iter=5"]
    run(config, *settings, f"train.output_dir={tmp_path / 'whole'}")
    run(config, *settings, "train.max_iter=4")
    (tmp_path / "run/model_final.pth").unlink()
    put(tmp_path / "run/model_0000002.pth")
    (tmp_path / "run/last_checkpoint").write_text("model_0000002.pth")
    run(config, *settings, "--resume")
    expected = read_lines(tmp_path / "whole/metrics.json", "total_loss")
    assert read_lines(tmp_path / "run/metrics.json", "total_loss") == expected
    assert (tmp_path / "run/model_0000002.pth").is_file()
    assert (tmp_path / "run/model_0000002.pth.damaged").is_dir() == (put is folder)


def test_checkpoint_that_cannot_be_read_is_one_sentence(tmp_path: Path, monkeypatch) -> None:
    """As on a drive that fails; the one before is taken."""
    write(tmp_path)

    def broken(path: Path) -> str:
        if path.name == NAMES[-1]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr("detrex_mammo.engine.integrity.file_sha256", broken)
    with pytest.raises(UserError, match=r"000005.pth' cannot be read \(Input/output error\)"):
        CheckedFolder(tmp_path).read(NAMES[-1])
    checkpointer = saver(tmp_path)
    assert checkpointer.newest()["iteration"] == 3
