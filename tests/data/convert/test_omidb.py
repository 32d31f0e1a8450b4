# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""OMI-DB's traps, parsed by the package omidb itself; without it one sentence."""

import json
import sys

import pytest

from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.omidb import _add_image, convert
from detrex_mammo.errors import UserError
from tests.data.convert.trees import (
    boxes_of,
    counts_of,
    images_of,
    reported,
    write_broken_dicoms,
    write_dicom,
)

SIZE = (60, 40)


class Tree:
    """One client has one episode "9" with one study "1.2"."""

    def __init__(self, root):
        pytest.importorskip("omidb.parser", reason="package omidb is not installed")
        self.root = root

    def client(self, name, images, opinion=None, episode="9", **tags):
        """Images as {number: {mark id: mark}}."""
        data = self.root / "data" / name
        (data / "1.2").mkdir(parents=True)
        series = {number: marks for number, marks in images.items()}
        study = {"StudyDate": "2012-01-02", "EpisodeID": "9", "1.2.3": series}
        imagedb = {"Site": "x", "STUDIES": {"1.2": study}}
        (data / f"imagedb_{name}.json").write_text(json.dumps(imagedb))
        event = {"L": {"1": {"DatePerformed": "2012-01-02"}}, "left_opinion": opinion}
        nbss = {
            episode: {"EpisodeType": "F", "SURGERY": event} if opinion else {"EpisodeType": "F"}
        }
        (data / f"nbss_{name}.json").write_text(json.dumps(nbss))
        for number in images:
            write_dicom(self.root / f"images/{name}/1.2/{number}.dcm", SIZE, **tags)


def mark(x1, y1, x2, y2, **features):
    corners = {"X1": x1, "Y1": y1, "X2": x2, "Y2": y2}
    return {"MarkID": "1", "LinkedNBSSLesionNumber": "1", **corners, **features}


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


@pytest.mark.parametrize("origin", ["top", "bottom"])
def test_marks_classes_and_corners(tree, origin):
    marks = {
        "a": mark(2, 3, 12, 23, Mass="1", WithCalcification="1", Conspicuity="Obvious"),
        "b": mark(12, 23, 2, 3, SuspiciousCalcifications="1"),
        "c": mark(2, 3, 12, 23, FatNecrosis="1", LinkedNBSSLesionNumber=None),
    }
    tree.client("demd1", {"1.2.3.4": marks}, "OM", ImageLaterality="L", ViewPosition="CC")
    dataset = convert(tree.root, tree.root, origin=origin)
    file = "images/demd1/1.2/1.2.3.4.dcm"
    keys = ("patient_id", "study_id", "laterality", "view")
    assert images_of(dataset, *keys) == {file: ("demd1", "1.2", "L", "CC")}
    box = (2, 3 if origin == "top" else 37, 10, 20)
    assert boxes_of(dataset, "features", "lesion_id", "conspicuity") == [
        (file, "mass", box, ["mass", "calcifications"], "demd1_9_1", "Obvious"),
        (file, "calcification", box, ["suspicious_calcifications"], "demd1_9_1", None),
        (file, "other", box, ["fat_necrosis"], None, None),
    ]


def test_negatives_are_images_of_normal_clients(tree):
    tree.client("demd1", {"1.2.3.4": {"a": mark(2, 3, 12, 23, Mass="1")}, "1.2.3.5": None}, "OM")
    tree.client("demd2", {"1.2.3.6": None})
    dataset = convert(tree.root, tree.root)
    assert [i["patient_id"] for i in dataset.images] == ["demd1", "demd2"]
    reason = "images without marks of clients that are not normal"
    assert reported(dataset, "dropped") == {reason: 1}


def test_damaged_and_hostile_clients_are_one_line_each(tree):
    good = {"a": mark(2, 3, 12, 23, Mass="1")}
    tree.client(
        "demd1", {"1.2.3.4": good, "1.2.3.5": {"a": {"MarkID": "1"}}, "1.2.3.9": good}, "OM"
    )
    (tree.root / "images/demd1/1.2/1.2.3.9.dcm").write_bytes(b"")
    tree.client("demd2", {"1.2.3.6": good}, "OM")
    (tree.root / "data/demd2/imagedb_demd2.json").write_text("[" * 100)
    tree.client("demd3", {"1.2.3.7": good}, episode="8")
    tree.client("demd4", {"1.2.3.8": good}, "OM", PresentationIntentType="FOR PROCESSING")
    dataset = convert(tree.root, tree.root)
    assert [row[2] for row in boxes_of(dataset)][:1] == [(2, 3, 10, 20)]
    assert list(images_of(dataset)) == ["images/demd1/1.2/1.2.3.4.dcm"]
    assert reported(dataset, "dropped") == {
        "images with a mark that omidb cannot parse": 1,
        "images: file is empty": 1,
        "images: raw FOR PROCESSING image": 1,
        "marks of an image that was dropped": 2,
        "clients that omidb cannot parse": 1,
        "images that omidb links to no episode": 1,
    }


def test_each_damaged_dicom_and_a_path_that_leads_out_are_one_line(tree):
    expected = write_broken_dicoms(tree.root)
    good = {"a": mark(2, 3, 12, 23, Mass="1")}
    names = [f"1.2.3.{number}" for number in range(10, 10 + len(expected))]
    images = {"1.2.3.4": good, **dict.fromkeys(names, good)}
    tree.client("demd1", {**images, "../../../../up": good}, "OM")
    for damaged, name in zip(expected, names):
        (tree.root / damaged).replace(tree.root / f"images/demd1/1.2/{name}.dcm")
    dataset = convert(tree.root, tree.root)
    assert list(images_of(dataset)) == ["images/demd1/1.2/1.2.3.4.dcm"]
    assert reported(dataset, "dropped") == {
        **counts_of(expected),
        "marks of an image that was dropped": len(expected),
        "images that omidb links to no episode": 1,  # the package itself has left it out
    }


@pytest.mark.parametrize("image", ["../../../up", "../../demd2/1.2/1.2.3.4", "../../../../../up"])
def test_a_path_that_leads_out_is_one_line(tmp_path, image):
    dataset = Dataset("omi-db")
    found = {"id": image, "client": "demd1", "study": "1.2", "marks": [], "is_normal": True}
    _add_image(dataset, tmp_path, found, 0, "top", False)
    assert dataset.images == []
    assert reported(dataset, "dropped") == {"images whose path leads out of the folder": 1}


def test_without_the_package(tmp_path, monkeypatch):
    for name in ("omidb", "omidb.parser"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="pip install omidb"):
        convert(tmp_path, tmp_path)


def test_wrong_folder(tree):
    with pytest.raises(UserError, match="holds no client of OMI-DB"):
        convert(tree.root, tree.root)
