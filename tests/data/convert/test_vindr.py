# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""VinDr-Mammo's traps: negatives, several categories, boxes out of bounds, raw images."""

import csv

import pytest

from detrex_mammo.data.convert.vindr import CATEGORIES, convert
from detrex_mammo.errors import UserError
from tests.data.convert.trees import (
    boxes_of,
    images_of,
    reported,
    write_broken_dicoms,
    write_dicom,
)

IMAGE = (
    "study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,"
    "breast_density,split"
).split(",")
FINDING = [*IMAGE, "finding_categories", "finding_birads", "xmin", "ymin", "xmax", "ymax"]


class Tree:
    def __init__(self, root):
        self.root, self.images, self.findings = root, [], []

    def add(self, image, *findings, study="s1", split="training", size=(60, 40), said=None, **tags):
        """An image with findings (categories as text, birads, box)."""
        if size:
            write_dicom(self.root / f"images/{study}/{image}.dicom", size, **tags)
        height, width = said or size or (60, 40)
        row = [study, "r", image, "L", "MLO", height, width, "BI-RADS 4", "DENSITY C", split]
        self.images.append(row)
        for text, birads, box in findings or [("['No Finding']", "", ("", "", "", ""))]:
            self.findings.append([*row, text, birads, *box])

    def write(self):
        for name, header, rows in (
            ("breast-level_annotations.csv", IMAGE, self.images),
            ("finding_annotations.csv", FINDING, self.findings),
        ):
            with open(self.root / name, "w", newline="") as file:
                csv.writer(file).writerows([header, *rows])
        return self.root


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_images_with_and_without_findings(tree):
    tree.add("a", ("['Mass']", "BI-RADS 5", (2.5, 3, 12.5, 23)), bits=14, PatientID="other")
    tree.add("b", study="s2", split="test", PhotometricInterpretation="MONOCHROME1")
    dataset = convert(tree.write(), tree.root)
    keys = ("patient_id", "study_id", "laterality", "view", "density", "birads", "split")
    assert images_of(dataset, *keys, "bits_stored") == {
        "images/s1/a.dicom": ("s1", "s1", "L", "MLO", "C", "4", "train", 14),
        "images/s2/b.dicom": ("s2", "s2", "L", "MLO", "C", "4", "test", 12),
    }
    assert boxes_of(dataset, "birads", "source") == [
        ("images/s1/a.dicom", "Mass", (2.5, 3, 10, 20), "5", "box")
    ]
    assert [c["name"] for c in dataset.to_coco()["categories"]] == list(CATEGORIES)
    assert reported(dataset, "dropped") == reported(dataset, "fixed") == {}


@pytest.mark.parametrize("multi_label", ["all", "primary"])
def test_a_box_of_several_categories(tree, multi_label):
    text = "['Skin Retraction', 'Suspicious Calcification', 'Mass']"
    tree.add("a", (text, "BI-RADS 4", (1, 2, 11, 22)))
    dataset = convert(tree.write(), tree.root, multi_label=multi_label)
    found = [row[1:] for row in boxes_of(dataset, "other_categories")]
    primary = ("Mass", (1, 2, 10, 20), ["Suspicious Calcification", "Skin Retraction"])
    second = ("Suspicious Calcification", (1, 2, 10, 20), ["Mass", "Skin Retraction"])
    third = ("Skin Retraction", (1, 2, 10, 20), ["Mass", "Suspicious Calcification"])
    assert found == ([primary, second, third] if multi_label == "all" else [primary])
    assert list(reported(dataset, "fixed").values()) == [1]


def test_boxes_out_of_bounds_are_cut_and_counted(tree):
    tree.add("a", ("['Mass']", "", (-3, 50, 45.5, 70)))
    dataset = convert(tree.write(), tree.root)
    assert [row[2] for row in boxes_of(dataset)] == [(0, 50, 40, 10)]
    assert reported(dataset, "fixed") == {"boxes cut at the image's border": 1}
    assert reported(dataset, "dropped") == {}


def test_an_image_with_a_box_that_cannot_be_used_is_no_negative(tree):
    tree.add("outside", ("['Mass']", "", (41, 0, 50, 9)))
    tree.add("inverted", ("['Mass']", "", (20, 20, 10, 30)), ("['Mass']", "", (1, 2, 3, 4)))
    tree.add("whole", ("['Mass']", "", (1, 2, 3, 4)))
    dataset = convert(tree.write(), tree.root)
    assert list(images_of(dataset)) == ["images/s1/whole.dicom"]
    assert dataset.images[0]["id"] == dataset.annotations[0]["image_id"] == 1
    assert reported(dataset, "kept") == {"images": 1, "boxes": 1}
    assert reported(dataset, "dropped") == {
        "boxes without area in the image": 2,
        "images with a box that cannot be used": 2,
        "boxes of images with a box that cannot be used": 1,
    }


def test_a_table_of_findings_that_was_cut_off_makes_no_negatives(tree):
    for name in "abc":
        tree.add(name, *([("['Mass']", "", (1, 2, 3, 4))] if name != "a" else []))
    path = tree.write() / "finding_annotations.csv"
    text = path.read_bytes()
    path.write_bytes(text[: text.index(b",b,") + 9])  # in the row of b
    dataset = convert(tree.root, tree.root)
    assert list(images_of(dataset)) == ["images/s1/a.dicom"]
    assert reported(dataset, "dropped") == {
        "rows of another number of cells than the header": 1,
        "images without a row of findings": 2,
    }


def test_chosen_classes(tree):
    tree.add("a", ("['Mass']", "", (1, 2, 3, 4)), ("['Asymmetry']", "", (5, 6, 7, 8)))
    dataset = convert(tree.write(), tree.root, classes=["Asymmetry"])
    assert [row[1] for row in boxes_of(dataset)] == ["Asymmetry"]
    assert dataset.to_coco()["categories"] == [{"id": 1, "name": "Asymmetry"}]
    assert reported(dataset, "dropped") == {"findings of categories that were not chosen": 1}


def test_boxes_follow_a_file_of_another_size(tree):
    tree.add("a", ("['Mass']", "", (10, 20, 30, 60)), size=(60, 40), said=(120, 80))
    dataset = convert(tree.write(), tree.root)
    assert [row[2] for row in boxes_of(dataset)] == [(5, 10, 10, 20)]
    assert len(reported(dataset, "fixed")) == 1


def test_damaged_and_hostile_files_are_one_line_each(tree):
    (tree.root / "images/s9").mkdir(parents=True)
    expected = write_broken_dicoms(tree.root / "images/s9")
    for name in expected:
        path = tree.root / "images/s9" / name
        path.rename(path.with_suffix(".dicom"))
        tree.add(name[:-4], ("['Mass']", "", (1, 1, 5, 5)), study="s9", size=None)
    tree.add("good", ("['Mass']", "", (1, 1, 6, 6)))
    tree.add("gone", size=None)
    tree.add("../../../etc/passwd", size=None)
    tree.add("x", size=None, split="../secret")
    tree.add("code", ("__import__('os').abort()", "", (1, 1, 6, 6)))
    tree.add("word", ("['Tumour']", "", (1, 1, 6, 6)), ("['Mass']", "", (1, 1, 6, 6)))
    tree.add("nobox", ("['Mass']", "", ("", 1, 2, 3)))
    dataset = convert(tree.write(), tree.root)
    assert boxes_of(dataset) == [("images/s1/good.dicom", "Mass", (1, 1, 5, 5))]
    dropped = reported(dataset, "dropped")
    assert dropped == {
        **{reason: list(expected.values()).count(reason) for reason in expected.values()},
        "images: file is missing": 1,
        "findings of an image that was dropped": len(expected) + 1,
        "images with a finding that cannot be read": 3,
        "images whose path leads out of the folder": 1,
        "images of an unknown split": 1,
        "findings of an unknown category": 2,
        "findings without a box": 1,
    }
    assert len(convert(tree.root, tree.root, allow_for_processing=True).images) == 2


def test_without_the_table_of_images(tree):
    tree.add("a", ("['Mass']", "", (1, 2, 3, 4)))
    tree.write()
    (tree.root / "breast-level_annotations.csv").unlink()
    dataset = convert(tree.root, tree.root)
    assert len(dataset.images) == len(dataset.annotations) == 1
    assert reported(dataset, "dropped") == {"the table of images cannot be read": 1}


def test_wrong_folder_or_table(tmp_path):
    with pytest.raises(UserError, match="holds no table of VinDr-Mammo"):
        convert(tmp_path, tmp_path)
    (tmp_path / "finding_annotations.csv").write_text("image_id\n")
    with pytest.raises(UserError, match="lacks the column 'study_id'"):
        convert(tmp_path, tmp_path)
