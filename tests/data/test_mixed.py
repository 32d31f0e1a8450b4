# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Several datasets as one: classes by name, ids and patients that cannot be mistaken."""

import json
import logging
import pickle
import uuid
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from detrex_mammo.config import instantiate
from detrex_mammo.data import columns as columns_file
from detrex_mammo.data.class_names import file_ids_of_classes
from detrex_mammo.data.datasets import load_coco_json
from detrex_mammo.data.mixed import MixedStore, load_mixed
from detrex_mammo.errors import UserError


def coco(categories: dict[int, str], labels: list[list[int]], **image) -> dict:
    """Image i, id i + 1, has a box of side 2 + k for each of its ``labels[i]``."""
    return {
        "images": [
            {"id": i + 1, "file_name": f"{i}.png", "height": 50, "width": 40}
            | {k: v[i] for k, v in image.items()}
            for i in range(len(labels))
        ],
        "annotations": [
            {"id": 10 * i + k, "image_id": i + 1, "category_id": label, "bbox": [1, 1, 2 + k, 2]}
            for i, of_image in enumerate(labels)
            for k, label in enumerate(of_image)
        ],
        "categories": [{"id": key, "name": name} for key, name in categories.items()],
    }


# "mass" has id 1 in one file, 7 in the other, where "Mass" is something else.
CBIS = coco({1: "mass", 2: "calcification"}, [[1, 2], [], [2]], patient_id=["1", "1", "2"])
OTHER = coco({7: "mass", 5: "Mass", 6: "cluster"}, [[5], [7, 6, 7]], patient_id=["1", ""])


@pytest.fixture
def parts(tmp_path: Path) -> dict:
    """The two files as parts of a mixture."""
    made = {}
    for name, content in (("cbis", CBIS), ("other", OTHER)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        made[name] = {"json_file": str(path), "image_root": f"/{name}"}
    return made


@pytest.fixture
def name():
    made = f"mixed_{uuid.uuid4().hex}"
    yield made
    for registered in [n for n in DatasetCatalog.list() if n.startswith(made)]:
        DatasetCatalog.remove(registered)
        MetadataCatalog.remove(registered)


def labels(store) -> list[list[int]]:
    return [[a["category_id"] for a in record["annotations"]] for record in store]


def test_classes_are_those_of_the_names(parts, name) -> None:
    """All names in the order of the files, in each by id: mass, calcification, Mass, cluster."""
    store = load_mixed(name, parts)
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["mass", "calcification", "Mass", "cluster"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2, 4: 3}
    assert metadata.json_files == {part: told["json_file"] for part, told in parts.items()}
    assert labels(store) == [[0, 1], [], [1], [2], [0, 3, 0]]
    assert DatasetCatalog.get(name) is store


def test_records_say_where_they_are_from(parts, name, tmp_path) -> None:
    store = load_mixed(name, parts)
    ids = ["cbis/1", "cbis/2", "cbis/3", "other/1", "other/2"]
    assert [record["image_id"] for record in store] == ids == list(store.columns.image_ids)
    assert [record["file_name"] for record in store[2:4]] == ["/cbis/2.png", "/other/0.png"]
    assert [record["dataset"] for record in store] == ["cbis"] * 3 + ["other"] * 2
    assert store[-1] == store[4] and len(store) == 5
    with pytest.raises(IndexError):
        store[5]
    # But what a file says itself stays.
    path = tmp_path / "named.json"
    path.write_text(json.dumps(coco({1: "mass"}, [[1]], dataset=["CBIS-DDSM"])))
    named = {"part": {"json_file": str(path), "image_root": ""}}
    (record,) = load_mixed(f"{name}_named", named)
    assert (record["dataset"], record["image_id"]) == ("CBIS-DDSM", "part/1")


def test_columns_are_those_of_the_records(parts, name) -> None:
    store = load_mixed(name, parts)
    own, found = columns_file._from_records(list(store)), store.columns
    assert list(found.image_ids) == own.image_ids
    assert list(found.dataset_names) == own.dataset_names == ["cbis", "other"]
    for column in ("sizes", "box_starts", "box_classes", "patients", "datasets"):
        np.testing.assert_array_equal(getattr(found, column), getattr(own, column))
        assert getattr(found, column).dtype == getattr(own, column).dtype
    # "1" of the one and of the other are two women.
    assert found.patients.tolist() == [0, 0, 1, 2, 3]


def test_parts_of_one_dataset_share_its_patients(name, tmp_path) -> None:
    """Masses and calcifications of CBIS-DDSM are two files with the same women. The third image of
    each names none."""
    parts = {}
    for part, patients in (("masses", ["1", "2", ""]), ("calcs", ["3", "1", ""])):
        content = coco({1: "mass"}, [[]] * 3, patient_id=patients, dataset=["CBIS-DDSM"] * 3)
        (tmp_path / part).write_text(json.dumps(content))
        parts[part] = {"json_file": str(tmp_path / part), "image_root": ""}
    columns = load_mixed(name, parts).columns
    assert columns.patients.tolist() == [0, 1, 2, 3, 0, 4]
    assert columns.datasets.tolist() == [0, 0, 0, 1, 1, 1]
    assert columns.dataset_names == ["masses", "calcs"]


def test_a_map_and_an_order_of_classes(parts, name, caplog) -> None:
    """Mass becomes mass, cluster calcification; nothing else is needed. Boxes of Mass: 1."""
    class_map = {"Mass": "mass", "cluster": "calcification"}
    store = load_mixed(name, parts, ["calcification", "mass"], class_map)
    assert MetadataCatalog.get(name).thing_classes == ["calcification", "mass"]
    assert labels(store) == [[1, 0], [], [0], [1], [1, 0, 1]]
    with caplog.at_level(logging.WARNING):
        store = load_mixed(f"{name}_less", parts, None, {"Mass": None, "typo": None})
    assert labels(store) == [[0, 1], [], [1], [], [0, 2, 0]]
    told = [r for r in caplog.records if r.name.startswith("detrex_mammo.data")]
    told = [r.getMessage() for r in told if r.levelno >= logging.WARNING]
    assert told[0] == "class_map names 'typo', which is no class of the dataset"
    assert told[1].endswith("other.json: 1 boxes of class 'Mass' are left out, as class_map says")
    assert len(told) == 2


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        ({}, {"classes": ["mass", "Mass"]}, "cbis.json: class 'calcification' is neither in class"),
        ({}, {"classes": ["mass"], "class_map": {"Mass": "Max"}}, "names 'Max' for 'Mass'"),
        ({}, {"classes": ["mass", "mass"]}, "give each class once"),
        ({}, {"classes": []}, "give each class once, and one at least"),
        ({}, {"classes": "mass"}, r"classes is 'mass'; it is a list of names, such as \[mass\]"),
        ({}, {"class_map": "mass"}, "class_map is 'mass'; it is a map"),
        ({"weight": 1}, {}, "parts.other has no weight, others have"),
        ({"weight": -1}, {}, "parts.cbis.weight is -1"),
        ({"weight": True}, {}, "parts.cbis.weight is True"),
        ({"weight": float("nan")}, {}, "parts.cbis.weight is nan"),
        ({"wieght": 1}, {}, "parts.cbis has json_file, image_root, wieght: it needs json_file and"),
        ({"json_file": "none.json"}, {}, "'none.json' does not exist: prepare the dataset first"),
        ({"json_file": None}, {}, "json_file of the dataset is not set"),
    ],
)
def test_what_is_wrong_is_one_sentence(parts, name, change, more, message) -> None:
    parts["cbis"].update(change)
    with pytest.raises(UserError, match=message):
        load_mixed(name, parts, **more)
    assert name not in DatasetCatalog.list()


@pytest.mark.parametrize("wrong", [{}, None, {"a/b": {}}, {1: {}}, {"a": None}, {"a": {}}])
def test_parts_that_are_none(name, wrong) -> None:
    with pytest.raises(UserError, match="parts"):
        load_mixed(name, wrong)


def test_weights_are_for_all_or_none(parts, name) -> None:
    assert load_mixed(name, parts).dataset_weights == {}
    parts["cbis"]["weight"], parts["other"]["weight"] = 3, 0
    weighed = load_mixed(name, parts)
    assert weighed.dataset_weights == {"cbis": 3.0, "other": 0.0}
    assert DatasetCatalog.get(name) is weighed
    parts["cbis"]["weight"] = 0
    with pytest.raises(UserError, match="all weights are 0: give all parts one, some above 0"):
        load_mixed(name, parts)


def test_a_test_set_has_the_classes_of_the_mixture(parts, name, caplog) -> None:
    """Model classes: 0 calcification, 1 cyst, 2 mass. Of the file's categories (5 Mass, 6 cluster,
    7 mass) Mass is left out. Class 1 is not in the file: it gets 1, an id that the file does not
    use."""
    with caplog.at_level(logging.WARNING):
        store = load_coco_json(
            name,
            **parts["other"],
            classes=["calcification", "cyst", "mass"],
            class_map={"cluster": "calcification", "Mass": None},
        )
    assert labels(store) == [[], [2, 0, 2]]
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["calcification", "cyst", "mass"]
    assert metadata.thing_dataset_id_to_contiguous_id == {6: 0, 7: 2, 1: 1}
    assert "1 boxes of class 'Mass' are left out" in caplog.text
    assert [record["image_id"] for record in store] == [1, 2]


def test_boxes_that_are_left_out_are_not_counted_as_clipped(name, tmp_path, caplog) -> None:
    """Of two boxes that leave their image and two without area, one each is of the class wanted."""
    content = coco({1: "mass", 2: "marker"}, [[1, 2, 1, 2]])
    for annotation, box in zip(content["annotations"], [[-1, 1, 5, 5]] * 2 + [[1, 1, 0, 5]] * 2):
        annotation["bbox"] = box
    (tmp_path / "a.json").write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        load_coco_json(name, str(tmp_path / "a.json"), "", class_map={"marker": None})
    told = [r.getMessage().split("a.json: ")[-1] for r in caplog.records]
    assert told == [
        "1 boxes left their image and were clipped",
        "1 boxes without area were dropped",
        "2 boxes of class 'marker' are left out, as class_map says",
    ]


def test_a_class_that_the_file_lacks_gets_an_id_of_its_own() -> None:
    """1 is the file's; also one that is left out, 3, is taken."""
    categories = [{"id": 1, "name": "mass"}, {"id": 3, "name": "marker"}]
    file = SimpleNamespace(json_file="a.json", categories=categories)
    ids = file_ids_of_classes(file, ["cyst", "mass", "skin"], {1: 1, 3: None})
    assert ids == {1: 1, 2: 0, 4: 2}


def test_of_categories_that_are_merged_the_one_of_that_name_is_found(parts, name) -> None:
    """Who turns the table round (detectron2 does) finds 7, mass, although 5 became mass as well."""
    load_coco_json(name, **parts["other"], class_map={"Mass": "mass"})
    metadata = MetadataCatalog.get(name)
    table = metadata.thing_dataset_id_to_contiguous_id
    assert metadata.thing_classes == ["mass", "cluster"]
    assert table == {5: 0, 6: 1, 7: 0}
    assert {index: key for key, index in table.items()} == {0: 7, 1: 6}


def test_other_classes_need_another_name(parts, name) -> None:
    load_coco_json(name, **parts["other"])
    with pytest.raises(UserError, match="is registered with thing_classes .*: give it another"):
        load_coco_json(name, **parts["other"], class_map={"Mass": "mass"})


def test_a_lazy_config_builds_it(parts, name) -> None:
    """Mappings and lists of a config are not dicts and lists."""
    node = OmegaConf.create(
        {
            "_target_": "detrex_mammo.data.mixed.load_mixed",
            "name": name,
            "parts": parts,
            "classes": ["mass", "calcification", "cluster"],
            "class_map": {"Mass": None},
        }
    )
    assert labels(instantiate(node)) == [[0, 1], [], [1], [], [0, 2, 0]]


def _as_list(batch: list) -> list:
    return batch


@pytest.mark.slow
def test_a_spawned_worker_reads_the_same(parts, name) -> None:
    store = load_mixed(name, parts)
    loader = DataLoader(
        store, 1, num_workers=1, collate_fn=_as_list, multiprocessing_context="spawn"
    )
    assert [record for batch in loader for record in batch] == list(store)


def test_columns_are_not_pickled(parts, name, monkeypatch) -> None:
    store = load_mixed(name, parts)
    monkeypatch.setattr(
        "detrex_mammo.data.record_store.RecordStore.__reduce__", lambda s: (int, ())
    )
    assert len(store.columns.sizes) == 5  # made, and kept
    make, arguments = store.__reduce__()
    assert make is MixedStore and len(arguments) == 2
    assert b"columns" not in pickle.dumps(arguments)
