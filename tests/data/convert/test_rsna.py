# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""RSNA 2023 has image labels only: what is a negative, and what must not become one."""

import pytest

from detrex_mammo.data.convert.rsna import convert
from detrex_mammo.errors import UserError
from tests.data.convert.trees import images_of, reported, write_broken_dicoms, write_dicom

HEADER = (
    "site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,implant,"
    "density,machine_id,difficult_negative_case"
)
ROWS = """\
2,10006,1,L,CC,61.0,0,0,0,,0,B,29,False
2,10006,2,R,MLO,61.0,0,0,0,2.0,0,,29,False
2,10007,3,L,CC,61.0,1,1,1,0.0,0,B,29,False
2,10008,4,L,CC,61.0,0,0,0,0.0,0,B,29,False
2,10008,5,L,CC,61.0,0,1,0,1.0,0,B,29,False
2,10008,6,L,CC,61.0,0,0,0,,0,B,29,True
"""


def _write(root, rows=ROWS):
    (root / "train.csv").write_text(f"{HEADER}\n{rows}")
    for row in ROWS.splitlines():
        _, patient, image, *_ = row.split(",")
        write_dicom(root / f"train_images/{patient}/{image}.dcm", (40, 30), PatientID="other")
    return root


def test_only_certain_negatives_are_taken(tmp_path):
    dataset = convert(_write(tmp_path), tmp_path)
    assert images_of(dataset, "patient_id", "laterality", "view", "density", "birads") == {
        "train_images/10006/1.dcm": ("10006", "L", "CC", "B", None),
        "train_images/10006/2.dcm": ("10006", "R", "MLO", None, "2"),
    }
    assert dataset.annotations == []
    assert [c["name"] for c in dataset.to_coco()["categories"]] == ["mass", "calcification"]
    assert reported(dataset, "dropped") == {
        "images with a cancer, which have no box": 1,
        "images that were recalled (BI-RADS 0)": 1,
        "images of a biopsied breast": 1,
        "images that were hard to call negative": 1,
    }


def test_all_without_cancer(tmp_path):
    dataset = convert(_write(tmp_path), tmp_path, negatives="no-cancer")
    assert len(dataset.images) == 5
    assert reported(dataset, "dropped") == {"images with a cancer, which have no box": 1}


def test_damaged_and_hostile_files_are_one_line_each(tmp_path):
    (tmp_path / "train_images/9").mkdir(parents=True)
    expected = write_broken_dicoms(tmp_path / "train_images/9")
    ids = [f"9,{name[:-4]}" for name in expected] + ["9,gone", "10006,1", "../../etc,passwd"]
    rows = ROWS + "".join(f"2,{i},L,CC,61.0,0,0,0,,0,B,29,False\n" for i in ids)
    rows += "2,10,7,L,CC,61.0,maybe,0,0,,0,B,29,False\n2,10,7\n"
    dataset = convert(_write(tmp_path, rows), tmp_path)
    assert len(dataset.images) == 2
    dropped = reported(dataset, "dropped")
    for reason in (
        *expected.values(),
        "images: file is missing",
        "images of two rows",
        "images whose path leads out of the folder",
        "images whose cancer label cannot be read",
        "rows of another number of cells than the header",
    ):
        assert dropped[reason] == max(1, list(expected.values()).count(reason))
    assert sum(dropped.values()) == 4 + len(expected) + 5


def test_wrong_folder(tmp_path):
    with pytest.raises(UserError, match="holds no table of RSNA"):
        convert(tmp_path, tmp_path)
