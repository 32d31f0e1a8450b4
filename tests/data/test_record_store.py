# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Records in arrays are those that a plain loader makes, in this process and in others."""

import copy
import json
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
import uuid
from multiprocessing import popen_spawn_posix
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.structures import BoxMode
from detectron2.utils import comm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from detrex_mammo.data import columns as columns_file
from detrex_mammo.data.columns import columns_of
from detrex_mammo.data.datasets import ANNOTATION_KEYS, EXTRA_KEYS, load_coco_json
from detrex_mammo.data.record_store import RecordStore, once_per_machine
from detrex_mammo.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def plain_records(content: dict, root: str) -> list[dict]:
    """The oracle: dicts, lists and loops; boxes clipped one at a time."""
    labels = {c: i for i, c in enumerate(sorted(c["id"] for c in content["categories"]))}
    records = {}
    for image in content["images"]:
        record = {"file_name": os.path.join(root, image["file_name"]), "image_id": image["id"]}
        record |= {"height": image["height"], "width": image["width"], "annotations": []}
        records[image["id"]] = record | {k: image[k] for k in EXTRA_KEYS if k in image}
    for annotation in content["annotations"]:
        record = records[annotation["image_id"]]
        x, y, width, height = map(float, annotation["bbox"])
        left, top = max(x, 0.0), max(y, 0.0)
        right, bottom = min(x + width, record["width"]), min(y + height, record["height"])
        if not (right > left and bottom > top):
            continue
        if (left, top, right, bottom) != (x, y, x + width, y + height):
            x, y, width, height = left, top, right - left, bottom - top
        told = {"bbox": [x, y, width, height], "bbox_mode": BoxMode.XYWH_ABS}
        told |= {"category_id": labels[annotation["category_id"]]}
        told |= {"iscrowd": annotation.get("iscrowd", 0)}
        told |= {k: annotation[k] for k in ANNOTATION_KEYS if k in annotation}
        record["annotations"].append(told)
    return list(records.values())


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
NUMBER = st.one_of(
    st.integers(-30, 90), st.floats(-30, 90), st.sampled_from([-0.0, math.inf, math.nan])
)
IDS = st.one_of(st.integers(-(10**12), 10**30), TEXT)
IMAGE = st.fixed_dictionaries(
    {"file_name": TEXT, "height": st.integers(1, 60), "width": st.integers(1, 60)},
    optional={
        "patient_id": st.one_of(st.none(), st.integers(0, 3), st.sampled_from(["1", "2", ""])),
        "dataset": st.sampled_from(["", "A", "\u00c4"]),
        "pixel_spacing": st.lists(st.floats(), max_size=2),
        "view": TEXT,
        "other": TEXT,
    },
)
BOX = st.fixed_dictionaries(
    {"bbox": st.lists(NUMBER, min_size=4, max_size=4)},
    optional={
        "iscrowd": st.integers(0, 1),
        "lesion_id": TEXT,
        "ignore": st.integers(0, 1),
        "pathology": st.none(),
        "score": NUMBER,
    },
)


@st.composite
def contents(draw) -> dict:
    """COCO contents: images in any order, annotations not in theirs, keys in any order."""
    ids = draw(st.lists(IDS, min_size=1, max_size=5, unique=True))
    labels = draw(st.lists(st.integers(-5, 10**12), min_size=1, max_size=4, unique=True))
    places = st.tuples(st.sampled_from(ids), st.sampled_from(labels), BOX)
    content = {
        "images": [{"id": i, **draw(IMAGE)} for i in ids],
        "annotations": [
            {"image_id": image, "category_id": label, **box}
            for image, label, box in draw(st.lists(places, max_size=12))
        ],
        "categories": [{"id": label, "name": f"class {label}"} for label in labels],
        "info": {"images": []},
    }
    return {key: content[key] for key in draw(st.permutations(list(content)))}


@pytest.fixture
def load(tmp_path):
    """Loads contents under a name of its own, forgotten afterwards."""
    names = []

    def write_and_load(content: dict) -> RecordStore:
        names.append(f"store_{uuid.uuid4().hex}")
        path = tmp_path / f"{names[-1]}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return load_coco_json(names[-1], str(path), "/root folder")

    yield write_and_load
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def same(ours: list[dict], expected: list[dict]) -> bool:
    """Values and their kinds; JSON's text also tells 1 from 1.0, 0.0 from -0.0, and finds NaN."""
    return [json.dumps(r, sort_keys=True) for r in ours] == [
        json.dumps(r, sort_keys=True) for r in expected
    ]


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(contents())
def test_records_are_those_of_a_plain_loader(load, content: dict) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detrex_mammo.data.record_builder._CHUNK", 2)  # boxes of several chunks
        store = load(content)
    expected = plain_records(content, "/root folder")
    assert same(list(store), expected)
    assert all(isinstance(a["bbox_mode"], BoxMode) for r in store for a in r["annotations"])
    own, found = columns_file._from_records(expected), store.columns
    assert list(found.image_ids) == own.image_ids
    assert list(found.dataset_names) == own.dataset_names
    for name in ("sizes", "box_starts", "box_classes", "patients", "datasets"):
        ours, theirs = getattr(found, name), getattr(own, name)
        assert ours.dtype == theirs.dtype, name
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def small(num_images: int = 5) -> dict:
    """Image i has i % 3 boxes; the annotations come in the opposite order of the images."""
    boxes = [(i, k) for i in range(num_images) for k in range(i % 3)]
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": 9 + i, "width": 99, "patient_id": i // 2}
            for i in range(num_images)
        ],
        "annotations": [
            {"image_id": i, "category_id": 1 + k, "bbox": [k, i, 5, 2.5], "lesion_id": f"{i} {k}"}
            for i, k in reversed(boxes)
        ],
        "categories": [{"id": 1, "name": "mass"}, {"id": 2, "name": "calcification"}],
    }


def test_it_is_a_sequence(load) -> None:
    store, expected = load(small()), plain_records(small(), "/root folder")
    assert len(store) == 5
    assert store[-1] == store[np.int64(4)] == expected[4]
    assert store[1:4] == expected[1:4] and store[::-2] == expected[::-2]
    assert list(reversed(store)) == expected[::-1]
    assert expected[2] in store and store.index(expected[2]) == 2
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"record {index} of 5"):
            store[index]
    with pytest.raises(TypeError):
        store["1"]


def test_a_record_is_the_callers_own(load) -> None:
    store = load(small())
    store[2]["annotations"].clear()
    store[2]["height"] = 0
    assert store[2] == plain_records(small(), "/root folder")[2]
    with pytest.raises(ValueError, match="read-only"):
        store.columns.sizes[0] = 0


def test_image_ids_are_a_sequence(load) -> None:
    ids = load(small()).columns.image_ids
    assert (len(ids), ids[-1], ids[1:3], list(ids)) == (5, 4, [1, 2], [0, 1, 2, 3, 4])
    with pytest.raises(IndexError):
        ids[5]


def test_moved_to_a_file_it_is_the_same(load) -> None:
    """Also without any box: empty arrays lie at the end of the file."""
    for content in (small(), small(1)):
        store = load(content)
        before, columns = list(store), store.columns
        path = store.move_to_file()
        assert os.stat(path).st_mode & 0o777 == 0o600
        os.unlink(path)
        assert list(store) == before
        np.testing.assert_array_equal(store.columns.box_classes, columns.box_classes)
        assert store.columns.sizes is store.arrays.sizes  # those of before are given up


def test_a_full_disk_is_one_sentence(load, monkeypatch, tmp_path) -> None:
    def full(arrays, file) -> None:
        raise OSError(28, "No space left on device")

    store = load(small())
    monkeypatch.setattr("detrex_mammo.data.record_store._write", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with pytest.raises(UserError, match=r"\(No space left on device\): set TMPDIR"):
        store.move_to_file()
    assert not os.listdir(tmp_path / "tmp")
    assert store[1] == plain_records(small(), "/root folder")[1]


def test_a_copy_is_the_store_itself(load) -> None:
    store = load(small())
    assert copy.deepcopy(store) is store


def _as_list(batch: list) -> list:
    return batch


@pytest.mark.parametrize(
    "method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.slow)]
)
def test_loader_workers_read_the_same_records(load, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    store = load(small())
    loader = DataLoader(
        store, 2, num_workers=1, collate_fn=_as_list, multiprocessing_context=method
    )
    assert [record for batch in loader for record in batch] == list(store)


class Starting:
    """Stands for a process that is being started: takes open files over."""

    DupFd = staticmethod(popen_spawn_posix._DupFd)

    def __init__(self) -> None:
        self.handed_over: list[int] = []

    def duplicate_for_child(self, number: int) -> int:
        self.handed_over.append(number)
        return os.dup(number)


def test_a_spawned_worker_is_sent_a_file_not_the_records(load, monkeypatch, tmp_path) -> None:
    """Ten times as many records are pickled into the same few bytes, and leave no file behind."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    lengths = []
    for count in (100, 1000):
        store, process = load(small(count)), Starting()
        with monkeypatch.context() as patch:
            patch.setattr("multiprocessing.context.get_spawning_popen", lambda p=process: p)
            sent = pickle.dumps(store)
        assert len(process.handed_over) == 1 and not os.listdir(folder)
        assert list(pickle.loads(sent)) == plain_records(small(count), "/root folder")
        lengths.append(len(sent))
    assert abs(lengths[1] - lengths[0]) < 50 and lengths[1] < 2000


def test_detectron2_takes_it_for_a_dataset(load) -> None:
    store = load(small())
    (name,) = [n for n in DatasetCatalog.list() if n.startswith("store_")]
    loader = build_detection_test_loader(store, mapper=lambda record: record["image_id"])
    assert list(loader) == [[0], [1], [2], [3], [4]]
    assert list(get_detection_dataset_dicts(name)) == list(store)


def test_columns_are_found_by_samplers(load) -> None:
    store = load(small())
    assert columns_of(store) is store.columns
    assert store.columns.num_boxes.tolist() == [0, 1, 2, 0, 1]
    assert store.columns.patients.tolist() == [0, 0, 1, 1, 2]


WORKER = """
import json, os, sys
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from torch.distributed import FileStore
from detrex_mammo.data.datasets import load_coco_json
from detrex_mammo.engine.launch import join
from detrex_mammo.errors import UserError

rank, meeting, file = int(sys.argv[1]), sys.argv[2], sys.argv[3]
join(rank, rank, 2, 2, "cpu", FileStore(meeting, 2))
try:
    load_coco_json("none", file + ".none", "")
except UserError as error:
    told = {"error": str(error)}
store = load_coco_json("of_two", file, "/root folder")
comm.synchronize()
lines = [line.split() for line in open("/proc/self/maps") if "detrex_mammo_records_" in line]
names = MetadataCatalog.get("of_two").thing_classes
told.update(records=list(store), names=names, mapped=[line[3:] for line in lines])
print(json.dumps(told), flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
def test_processes_of_a_machine_map_one_file(tmp_path: Path) -> None:
    """Two processes, each started on its own, as torchrun does. First a mistake: both tell it."""
    file, folder = tmp_path / "a.json", tmp_path / "tmp"
    file.write_text(json.dumps(small()))
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    environment["OMP_NUM_THREADS"] = "1"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    more = (str(tmp_path / "meeting"), str(file))
    started = [
        subprocess.Popen([sys.executable, "-c", WORKER, rank, *more], env=environment, **pipes)
        for rank in "01"
    ]
    ended = [process.communicate(timeout=300) for process in started]
    assert all(out.strip() for out, _ in ended), ended
    first, second = [json.loads(out.splitlines()[-1]) for out, _ in ended]
    assert first["error"] == second["error"]
    assert "a.json.none' does not exist: prepare the dataset first" in first["error"]
    expected = json.loads(json.dumps(plain_records(small(), "/root folder")))
    assert first["records"] == second["records"] == expected
    assert first["names"] == second["names"] == ["mass", "calcification"]
    # The same device and inode in both, and no name is left of it.
    assert len(first["mapped"]) == 1 and first["mapped"] == second["mapped"]
    assert first["mapped"][0][-1] == "(deleted)"
    assert not [name for name in os.listdir(folder) if "records" in name]


def test_one_process_reads_by_itself(load, monkeypatch) -> None:
    """Nothing is said to others where there are none: one process on each of two machines."""
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "get_local_size", lambda: 1)
    monkeypatch.setattr(comm, "all_gather", None)
    assert once_per_machine(lambda: ([], "facts")) == ([], "facts")
