# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The cache gives what the file gives, bit for bit; survives kills; refuses what is outdated.

The oracle is the mapper without a cache.
"""

import errno
import fcntl
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode

from detrex_mammo.data import cache_build, dicom
from detrex_mammo.data.cache import ImageCache, decode, encode
from detrex_mammo.data.cache_build import build_cache
from detrex_mammo.data.image_io import write_png16
from detrex_mammo.data.mapper import MammographyMapper
from detrex_mammo.data.preprocessing import Preprocessing
from detrex_mammo.errors import UserError

from .dicom_files import make_dicom
from .test_breast import phantom

ROOT = Path(__file__).resolve().parents[2]
WINDOW = dict(WindowCenter=2000, WindowWidth=1500, VOILUTFunction="SIGMOID")


def build(folder, records, spec=None, **options):
    return build_cache(folder, records, spec or Preprocessing(), progress=False, **options)


@pytest.fixture
def records(tmp_path):
    """A left breast as DICOM with a sigmoid window, a right one as PNG, two frames of a DBT."""
    left, _ = phantom(300, 200, noise=3.0)
    right, _ = phantom(310, 210, side="right", border=6)
    to_12_bits = (left * 16).astype(np.uint16)
    make_dicom(to_12_bits, **WINDOW).save_as(tmp_path / "left.dcm", enforce_file_format=True)
    write_png16(tmp_path / "right.png", right)
    frames = make_dicom(np.stack([to_12_bits, to_12_bits[::-1]]), PixelPaddingValue=0)
    frames.save_as(tmp_path / "frames.dcm", enforce_file_format=True)
    found = []
    for name, size, extra in (
        ("left.dcm", left.shape, {}),
        ("right.png", right.shape, {"laterality": "L"}),
        ("frames.dcm", left.shape, {"frame": 0}),
        ("frames.dcm", left.shape, {"frame": 1}),
    ):
        box = {"bbox": [150.0, 5.0, 45.0, 30.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        record = {"file_name": str(tmp_path / name), "image_id": len(found), "annotations": [box]}
        found.append({**record, "height": size[0], "width": size[1], **extra})
    return found


def assert_same(records, folder, spec=None, **settings):
    for is_train in (True, False):
        plain = MammographyMapper(is_train, preprocessing=spec)
        cached = MammographyMapper(is_train, preprocessing=spec, cache_dir=str(folder), **settings)
        for record in records:
            expected, mapped = plain(record), cached(record)
            torch.testing.assert_close(mapped["image"], expected["image"], rtol=0, atol=0)
            assert mapped["geometry"] == expected["geometry"]


@pytest.mark.parametrize(
    "spec,workers",
    [
        (Preprocessing(), 2),
        (Preprocessing("minmax", margin=0.2, chest_wall="right"), 1),
        (Preprocessing(crop_breast=False, chest_wall=""), 1),
    ],
    ids=["default", "right", "whole"],
)
def test_the_mapper_sees_the_same_and_decodes_nothing(
    tmp_path, records, spec, workers, monkeypatch
):
    report = build(tmp_path / "cache", records, spec, workers=workers)
    assert report.made == {"new": 4} and not report.failed and not report.outdated_bytes
    assert_same(records, tmp_path / "cache", spec)
    assert_same(records, tmp_path / "cache", spec, cache_megabytes=1)
    monkeypatch.setattr(dicom, "pixel_array", None)  # a call would fail
    cached = MammographyMapper(True, preprocessing=spec, cache_dir=str(tmp_path / "cache"))
    assert all(cached(record)["image"].max() > 0 for record in records)
    again = build(tmp_path / "cache", records, spec)
    assert again.kept == 4 and not again.made


def test_the_cache_travels_without_its_sources_and_through_pickle(tmp_path, records):
    build(tmp_path / "cache", records)
    expected = [MammographyMapper(True)(record)["image"] for record in records]
    for record in {record["file_name"] for record in records}:
        os.unlink(record)
    (tmp_path / "cache").rename(tmp_path / "moved")
    mapper = MammographyMapper(True, cache_dir=str(tmp_path / "moved"))
    mapper(records[0])  # its shard is mapped now
    pickled = pickle.dumps(mapper)
    assert len(pickled) < 20_000
    for record, image in zip(records, expected):
        torch.testing.assert_close(pickle.loads(pickled)(record)["image"], image, rtol=0, atol=0)


def test_side_against_the_header_is_reported(tmp_path, records):
    (sentence,) = build(tmp_path / "cache", records).wrong_sides
    assert "right.png" in sentence
    assert "laterality is 'L', but the chest wall lies on the right" in sentence


@pytest.mark.parametrize(
    "levels",
    [
        np.arange(65536) / np.float32(257),
        np.arange(65536) * (255 / 65535),
        255 / (1 + np.exp(-np.linspace(-60, 60, 65536))),
        np.nextafter(np.float32(100), np.arange(2) * np.float32(255)),
    ],
    ids=["picture", "dicom", "sigmoid", "neighbours"],
)
def test_every_grey_level_comes_back(levels):
    pixels = np.random.default_rng(0).permutation(levels.astype(np.float32)).reshape(2, -1)
    stored, table = encode(pixels)
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(decode(stored, table), pixels)


def test_small_shards_and_several_records_of_one_image(tmp_path, records):
    other = {**records[0], "image_id": 9, "annotations": []}
    report = build(tmp_path / "cache", [*records, other], shard_megabytes=0.01)
    assert report.made == {"new": 4}
    assert len(list((tmp_path / "cache").glob("shard-*.bin"))) == 4
    assert_same([*records, other], tmp_path / "cache")


@pytest.mark.parametrize("cut", [1, 30, 100_000])
def test_what_a_kill_left_half_written_is_made_again(tmp_path, records, cut):
    """Pixels without a line, a line's beginning, and an index that is gone."""
    folder = tmp_path / "cache"
    build(folder, records)
    whole = (folder / "shard-00000.bin").read_bytes()
    index = folder / "shard-00000.jsonl"
    lines = index.read_bytes()
    index.write_bytes(lines[: max(0, len(lines) - cut)])
    report = build(folder, records)
    assert report.made == {"new": 1 if cut < 100 else 4} and report.outdated_bytes == 0
    assert (folder / "shard-00000.bin").read_bytes() == whole and index.read_bytes() == lines
    assert_same(records, folder)


def test_a_killed_process_resumes(tmp_path):
    """SIGKILL with images still to make; the second run keeps those that were there."""
    pixels, _ = phantom(300, 200)
    for number in range(40):
        write_png16(tmp_path / f"{number}.png", np.roll(pixels, number, axis=0))
    script = (
        "import itertools, sys, time\n"
        "from detrex_mammo.data import cache_build as c\n"
        "from detrex_mammo.data.preprocessing import Preprocessing\n"
        "make, numbers = c._make, itertools.count()\n"
        "c._make = lambda *a: (time.sleep(60 * (next(numbers) == 20)), make(*a))[1]\n"
        "records = [{'file_name': f'{sys.argv[1]}/{i}.png'} for i in range(40)]\n"
        "c.build_cache(sys.argv[1] + '/cache', records, Preprocessing(), progress=False)\n"
    )
    started = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT)
    index = tmp_path / "cache" / "shard-00000.jsonl"
    while started.poll() is None and not (index.is_file() and index.stat().st_size > 1000):
        time.sleep(0.005)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    records = [{"file_name": str(tmp_path / f"{i}.png")} for i in range(40)]
    report = build(tmp_path / "cache", records)
    assert 0 < report.kept < 40 and report.kept + report.made["new"] == 40
    assert_same(records[::7], tmp_path / "cache")


@pytest.mark.slow
def test_workers_end_with_a_killed_process(tmp_path):
    """Images of 4 MB, more than a pipe holds: a worker that hands one over waits for a reader."""
    pixels, _ = phantom(2000, 1400)
    for number in range(30):
        write_png16(tmp_path / f"{number}.png", pixels)
    script = (
        "import multiprocessing, sys, threading, time\n"
        "from detrex_mammo.data.cache_build import build_cache\n"
        "from detrex_mammo.data.preprocessing import Preprocessing\n"
        "def tell():\n"
        "    while len(multiprocessing.active_children()) < 2: time.sleep(0.01)\n"
        "    print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "threading.Thread(target=tell, daemon=True).start()\n"
        "records = [{'file_name': f'{sys.argv[1]}/{i}.png'} for i in range(30)]\n"
        "build_cache(sys.argv[1] + '/cache', records, Preprocessing(), 2, progress=False)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in started.stdout.readline().split()]
    index = tmp_path / "cache" / "shard-00000.jsonl"
    while started.poll() is None and not (index.is_file() and index.stat().st_size):
        time.sleep(0.005)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    for _ in range(200):
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            break
        time.sleep(0.05)
    assert len(workers) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_a_changed_source_is_refused_by_name_and_made_again(tmp_path, records):
    folder = tmp_path / "cache"
    build(folder, records)
    os.utime(records[0]["file_name"])  # touched: the bytes are the same
    assert_same(records, folder)
    write_png16(records[1]["file_name"], phantom(310, 210, side="right")[0] / 2)
    with pytest.raises(UserError, match="right.png' has changed since the cache .* was made"):
        MammographyMapper(True, cache_dir=str(folder))(records[1])
    report = build(folder, records)
    assert report.made == {"changed": 1} and report.kept == 3 and report.outdated_bytes > 0
    assert_same(records, folder)


@pytest.mark.parametrize(
    "name,value", [("window", "minmax"), ("margin", 0.1), ("chest_wall", "right")]
)
def test_another_preprocessing_is_refused_by_name(tmp_path, records, name, value):
    build(tmp_path / "cache", records[:1])
    other = Preprocessing(**{name: value})
    message = f"was made with preprocessing.{name} .*, but the setting is {value!r}"
    with pytest.raises(UserError, match=message):
        MammographyMapper(True, preprocessing=other, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=message):
        build(tmp_path / "cache", records[:1], other)


def test_other_annotations_are_refused_and_made_again(tmp_path, records):
    """A lesion far outside the crop that is stored; evaluation never looks there."""
    folder = tmp_path / "cache"
    first = {**records[0], "annotations": []}
    build(folder, [first])
    with pytest.raises(UserError, match="other annotations of .*left.dcm"):
        MammographyMapper(True, cache_dir=str(folder))(records[0])
    assert MammographyMapper(False, cache_dir=str(folder))(records[0])["boxes_cut_by_crop"] == 1
    assert build(folder, records[:1]).made == {"other crop": 1}
    assert_same([first, records[0]], folder)


def test_a_flipped_bit_is_found(tmp_path, records):
    folder = tmp_path / "cache"
    build(folder, records)
    shard = folder / "shard-00000.bin"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 4
    shard.write_bytes(data)
    with pytest.raises(UserError, match="left.dcm' in .*shard-00000.bin' are damaged: .*--verify"):
        MammographyMapper(True, cache_dir=str(folder))(records[0])
    assert not build(folder, records).made
    assert build(folder, records, verify=True).made == {"damaged": 1}
    assert_same(records, folder)
    shard.write_bytes(b"")  # all of it gone
    assert build(folder, records, verify=True).made == {"damaged": 4}
    assert_same(records, folder)


def test_unreadable_images_stop_nothing(tmp_path, records):
    (tmp_path / "text.dcm").write_text("no image")
    bad = [{"file_name": str(tmp_path / name)} for name in ("text.dcm", "none.png")]
    report = build(tmp_path / "cache", [bad[0], *records, bad[1]])
    assert report.made == {"new": 4} and len(report.failed) == 2
    assert "text.dcm' is not a DICOM file" in report.failed[0]
    assert "none.png' does not exist" in report.failed[1]
    assert "2" in report.describe() and report.failed[0] in report.describe()
    with pytest.raises(UserError, match="none.png' is not in the cache"):
        ImageCache(tmp_path / "cache", Preprocessing()).crop(bad[1], None)


def test_folders_that_are_no_cache(tmp_path, records):
    with pytest.raises(UserError, match="has no cache.json: make it with tools/cache_data.py"):
        MammographyMapper(True, cache_dir=str(tmp_path / "none"))
    build(tmp_path / "cache", records[:1])
    described = tmp_path / "cache" / "cache.json"
    content = json.loads(described.read_text())
    described.write_text(json.dumps({**content, "version": 0}))
    with pytest.raises(UserError, match="is of version 0, not 1"):
        ImageCache(tmp_path / "cache", Preprocessing())
    described.write_text("{")
    with pytest.raises(UserError, match="cache.json' is damaged"):
        ImageCache(tmp_path / "cache", Preprocessing())
    described.write_text(json.dumps(content))
    (tmp_path / "cache" / "shard-00000.jsonl").write_text('{"file": 1}\n')
    with pytest.raises(UserError, match="shard-00000.jsonl' is damaged: delete"):
        ImageCache(tmp_path / "cache", Preprocessing())
    with pytest.raises(UserError, match="workers is 0"):
        build(tmp_path / "cache", records, workers=0)


def test_a_full_disk_is_one_sentence_and_what_is_there_is_kept(tmp_path, records, monkeypatch):
    build(tmp_path / "cache", records[:1])

    def no_room(entry):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_build, "index_line", no_room)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        build(tmp_path / "cache", records)
    monkeypatch.undo()
    report = build(tmp_path / "cache", records)
    assert report.kept == 1 and report.made == {"new": 3} and report.outdated_bytes == 0
    assert_same(records, tmp_path / "cache")


def test_one_builder_at_a_time(tmp_path, records):
    build(tmp_path / "cache", records[:1])
    with open(tmp_path / "cache" / "cache.lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being written by another process"):
            build(tmp_path / "cache", records)


def test_the_tool_from_end_to_end(tmp_path, records):
    """The shipped mammography config; a second run has nothing to do."""
    images = [
        {"id": i, **{k: r[k] for k in ("file_name", "height", "width")}}
        for i, r in enumerate(records[:2])
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "mass"}]}
    for record in images:
        record["file_name"] = os.path.basename(record["file_name"])
    (tmp_path / "a.json").write_text(json.dumps(content))
    shutil.copy(tmp_path / "a.json", tmp_path / "b.json")
    config = "projects/mammography/configs/" + min(
        p.name for p in (ROOT / "projects/mammography/configs").glob("*.py")
    )
    command = [sys.executable, "tools/cache_data.py", "--config-file", config]
    command += ["--out", str(tmp_path / "cache")]
    for part, name in (("train", "a"), ("test", "b")):
        command.append(f"dataloader.{part}.dataset.json_file={tmp_path / name}.json")
        command.append(f"dataloader.{part}.dataset.image_root={tmp_path}")
    for expected in ("0 images were there; made: 2 new", "2 images were there; made: none"):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and expected in done.stdout, done.stderr
