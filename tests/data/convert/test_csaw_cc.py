# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""CSAW-CC: masks found by name, and which images without a mask are negatives."""

import pytest

from detrex_mammo.data.convert.csaw_cc import convert
from detrex_mammo.errors import UserError
from tests.data.convert.trees import (
    boxes_of,
    images_of,
    mask,
    reported,
    write_broken_dicoms,
    write_dicom,
    write_picture,
)

HEADER = (
    "anon_patientid,exam_year,x_case,x_cancer_laterality,imagelaterality,viewposition,anon_filename"
)
SIZE = (60, 40)


class Tree:
    def __init__(self, root):
        self.root, self.rows = root, [HEADER]

    def add(
        self, name, patient, case=0, cancer="", side="Left", file=True, box=None, where="x_mask"
    ):
        self.rows.append(f"{patient},2013,{case},{cancer},{side},MLO,{name}")
        if file:
            write_dicom(self.root / f"batch_1/{name}", SIZE, bits=14)
        if box:
            stem = name.removesuffix(".dcm")
            target = f"masks/{stem}.png" if where == "folder" else f"{stem}{where[1:]}.png"
            write_picture(self.root / target, mask(SIZE, box))

    def convert(self, separator=",", **options):
        text = "\n".join(self.rows).replace(",", separator)
        (self.root / "CSAW-CC_breast_cancer_screening_data.csv").write_text(text)
        return convert(self.root, self.root, **options)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


@pytest.mark.parametrize("where", ["x_mask", "x_annotation", "folder"])
@pytest.mark.parametrize("separator", [",", ";"])
def test_masks_and_negatives(tree, where, separator):
    tree.add("a1.dcm", "7", 1, "Left", box=(2, 3, 10, 20), where=where)
    tree.add("a2.dcm", "7", 1, "Left", side="Right")
    tree.add("a3.dcm", "7", 1, "Left")  # an earlier round: no mask
    tree.add("b1.dcm", "8", 0, side="Right")
    dataset = tree.convert(separator)
    keys = ("patient_id", "study_id", "laterality", "view", "bits_stored")
    assert images_of(dataset, *keys) == {
        "batch_1/a1.dcm": ("7", "7_2013", "L", "MLO", 14),
        "batch_1/b1.dcm": ("8", "8_2013", "R", "MLO", 14),
    }
    expected = [("batch_1/a1.dcm", "cancer", (2, 3, 10, 20), "malignant", "mask")]
    assert boxes_of(dataset, "pathology", "source") == expected
    assert reported(dataset, "dropped") == {"images of a woman with cancer, without a mask": 2}
    assert len(tree.convert(separator, contralateral=True).images) == 3


def test_damaged_and_hostile_files_are_one_line_each(tree):
    (tree.root / "batch_1").mkdir()
    expected = write_broken_dicoms(tree.root / "batch_1")
    for name in expected:
        tree.add(name, "9", file=False)
    tree.add("good.dcm", "1", 1, "Left", box=(2, 3, 10, 20))
    tree.add("good.dcm", "1", file=False)
    tree.add("gone.dcm", "1", file=False)
    tree.add("../../etc/passwd", "1", file=False)
    tree.add("odd.dcm", "1", case="maybe")
    tree.add("black.dcm", "1", 1, box=(0, 0, 1, 1))
    tree.add("cut.dcm", "1", 1, box=(2, 3, 10, 20))
    (tree.root / "cut_mask.png").write_bytes(b"\x89PNG")
    write_picture(tree.root / "alone_mask.png", SIZE)
    dataset = tree.convert()
    assert list(images_of(dataset)) == ["batch_1/good.dcm"]
    assert reported(dataset, "dropped") == {
        **{reason: list(expected.values()).count(reason) for reason in expected.values()},
        "images of two rows": 1,
        "images that are missing": 2,
        "images without a mask whose case label cannot be read": 1,
        "images with an empty mask": 1,
        "images with a mask that cannot be read (no picture, or damaged)": 1,
        "masks without a row": 1,
    }


def test_wrong_folder(tmp_path):
    with pytest.raises(UserError, match="holds no table of CSAW-CC"):
        convert(tmp_path, tmp_path)
