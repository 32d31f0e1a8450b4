# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""EMBED's traps: y before x, a join by accession and side, absolute paths, uncertain negatives."""

import csv

import pytest

from detrex_mammo.data.convert.embed import convert
from detrex_mammo.errors import UserError
from tests.data.convert.trees import (
    boxes_of,
    images_of,
    reported,
    write_broken_dicoms,
    write_dicom,
)

IMAGE = "empi_anon,acc_anon,FinalImageType,ImageLateralityFinal,ViewPosition,anon_dicom_path"
IMAGE = [*IMAGE.split(","), "num_roi", "ROI_coords", "ROI_frames"]
FINDING = ["empi_anon", "acc_anon", "numfind", "side", "asses", "tissueden", "path_severity"]


class Tree:
    def __init__(self, root):
        self.root, self.images, self.findings = root, [], []

    def add(self, name, rois="()", count=0, acc="77", side="L", kind="2D", file=True, path=None):
        if file:
            write_dicom(self.root / f"images/cohort_1/{name}.dcm", (60, 40), bits=12)
        path = path or f"{self.root.parent}/elsewhere/images/cohort_1/{name}.dcm"
        self.images.append(["e1", acc, kind, side, "MLO", path, count, rois, "()"])

    def finding(self, asses, side="L", acc="77", density="3.0", severity=""):
        self.findings.append(["e1", acc, 1, side, asses, density, severity])

    def convert(self, **options):
        for name, header, rows in (
            ("metadata", IMAGE, self.images),
            ("clinical", FINDING, self.findings),
        ):
            path = self.root / f"tables/EMBED_OpenData_{name}.csv"
            path.parent.mkdir(exist_ok=True)
            with open(path, "w", newline="") as file:
                csv.writer(file).writerows([header, *rows])
        return convert(self.root, self.root, **options)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_regions_are_y_before_x_and_tables_are_joined(tree):
    tree.add("a", "[[3, 2, 23, 12], [30, 20, 36, 25]]", 2)
    tree.add("b", "((3, 2, 23, 12),)", 1.0, side="R", acc="77.0")
    tree.finding("S", severity="4")
    tree.finding("M", severity="1.0")
    tree.finding("A", side="R")
    tree.finding("N", acc="78")
    dataset = tree.convert()
    a, b = "images/cohort_1/a.dcm", "images/cohort_1/b.dcm"
    assert images_of(
        dataset, "patient_id", "study_id", "laterality", "view", "density", "birads"
    ) == {
        a: ("e1", "77", "L", "MLO", "C", "5"),
        b: ("e1", "77", "R", "MLO", "C", "0"),
    }
    assert boxes_of(dataset, "pathology", "birads", "source") == [
        (a, "lesion", (2, 3, 10, 20), "malignant", "5", "ellipse"),
        (a, "lesion", (20, 30, 5, 6), "malignant", "5", "ellipse"),
        (b, "lesion", (2, 3, 10, 20), None, "0", "ellipse"),
    ]
    assert reported(dataset, "dropped") == {}


def test_paths_without_the_downloads_folder(tree):
    tree.add("a", "[[3, 2, 23, 12]]", 1, path="/anon_dicom/cohort_1/a.dcm")
    tree.add("b", "[[3, 2, 23, 12]]", 1, path="/anon_dicom/cohort_2/b.dcm")
    tree.add("c", "[[3, 2, 23, 12]]", 1, path="/anon_dicom/../images/cohort_1/c.dcm")
    dataset = tree.convert()
    assert list(images_of(dataset)) == ["images/cohort_1/a.dcm"]
    assert reported(dataset, "dropped") == {"images that are missing": 2}


def test_a_region_without_area_makes_no_negative(tree):
    tree.add("a", "[[23, 2, 3, 12]]", 1)
    tree.add("b", "[[3, 2, 23, 12]]", 1)
    dataset = tree.convert()
    assert list(images_of(dataset)) == ["images/cohort_1/b.dcm"]


def test_only_certain_negatives_are_taken(tree):
    for number, (asses, side) in enumerate([("N", "B"), ("B", ""), ("A", "L"), ("S", "B")]):
        tree.add(f"n{number}", acc=str(number))
        tree.finding(asses, side, acc=str(number))
    tree.add("other_side", acc="8")
    tree.finding("S", "R", acc="8")
    tree.finding("N", "L", acc="8")
    tree.add("no_row", acc="9")
    dataset = tree.convert()
    assert [file[16:-4] for file in images_of(dataset)] == ["n0", "n1", "other_side"]
    assert reported(dataset, "dropped") == {
        "images without a region, but not BI-RADS 1 or 2": 2,
        "images without a region and without a finding's row": 1,
    }


def test_types_of_images(tree):
    for kind in ("2D", "cview", "3D"):
        tree.add(kind, "[[3, 2, 23, 12]]", 1, kind=kind)
    assert [file[16:-4] for file in images_of(tree.convert())] == ["2D"]
    dataset = tree.convert(image_types=["2D", "cview"])
    assert [file[16:-4] for file in images_of(dataset)] == ["2D", "cview"]
    assert reported(dataset, "dropped") == {"images of type '3D', not chosen": 1}


def test_damaged_and_hostile_rows_are_one_line_each(tree):
    box = "[[3, 2, 23, 12]]"
    (tree.root / "images/cohort_1").mkdir(parents=True)
    expected = write_broken_dicoms(tree.root / "images/cohort_1")
    for name in expected:
        tree.add(name[:-4], box, 1, file=False)
    tree.add("good", box, 1)
    tree.add("good", box, 1)
    tree.add("outside", "[[-5, -5, 10, 100]]", 1)
    for number, (rois, count) in enumerate(
        [("__import__('os').abort()", 1), (box, 2), ("[[1, 2, 3]]", 1), ("[['a', 2, 3, 4]]", 1)]
    ):
        tree.add(f"bad{number}", rois, count)
    tree.add("gone", box, 1, file=False)
    tree.add("up", box, 1, file=False, path="../../../../etc/passwd")
    dataset = tree.convert()
    boxes = [row[2] for row in boxes_of(dataset)]
    assert boxes == [(2, 3, 10, 20), (0, 0, 40, 10)]
    assert reported(dataset, "fixed") == {"boxes cut at the image's border": 1}
    assert reported(dataset, "dropped") == {
        **{reason: list(expected.values()).count(reason) for reason in expected.values()},
        "regions of an image that was dropped": len(expected),
        "images of two rows": 1,
        "images with regions that cannot be read": 4,
        "images that are missing": 2,
    }


def test_wrong_folder(tmp_path):
    with pytest.raises(UserError, match="holds no table of images of EMBED"):
        convert(tmp_path, tmp_path)
